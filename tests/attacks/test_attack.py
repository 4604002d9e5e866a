from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simhpc.attacks.attack import EpsilonExceededError, attack_images, check_within
from simhpc.attacks.batches import NonFiniteLogitsError, fixed_size_batches, predict, true_class_margin

CPU = torch.device("cpu")


def attack(target, n=20, batch_size=8, steps=3, eps_255=32):
    classifier, images, labels = target
    return attack_images(
        classifier, images[:n], labels[:n], range(n), eps_255=eps_255, step_size_eps=0.4, steps=steps,
        batch_size=batch_size, device=CPU, finished={}, on_batch=lambda first, images: None,
    )  # fmt: skip


@pytest.mark.parametrize("eps_255", [1, 8, 255])
def test_stored_images_stay_within_eps(target, eps_255):
    _, images, _ = target
    adversarial = attack(target, eps_255=eps_255)
    assert adversarial.dtype == torch.uint8
    furthest = (adversarial.int() - images[:20].int()).abs().max()
    assert 0 < furthest <= eps_255


def test_batch_size_does_not_change_the_start(target):
    # Without steps, what is stored is the rounded start itself.
    assert torch.equal(attack(target, batch_size=20, steps=0), attack(target, batch_size=3, steps=0))


def test_batch_size_hardly_changes_the_result(target):
    one, other = attack(target, batch_size=20), attack(target, batch_size=7)
    assert (one != other).float().mean() < 0.01


def test_the_same_twice_is_identical(target):
    assert torch.equal(attack(target), attack(target))


def test_an_attack_goes_on_from_finished_batches(target):
    """What was finished is taken as it is, not attacked again; what is reported adds up to the result."""
    classifier, images, labels = target

    def attacked(finished):
        seen = {}
        result = attack_images(
            classifier, images[:10], labels[:10], range(10), eps_255=8, step_size_eps=0.1, steps=1,
            batch_size=4, device=CPU, finished=finished, on_batch=seen.__setitem__,
        )  # fmt: skip
        return result, seen

    whole, batches = attacked({})
    assert {first: len(part) for first, part in batches.items()} == {0: 4, 4: 4, 8: 2}
    assert torch.equal(torch.cat(list(batches.values())), whole)
    result, seen = attacked({4: images[4:8]})
    assert sorted(seen) == [0, 8]
    assert torch.equal(result[:4], whole[:4])
    assert torch.equal(result[4:8], images[4:8])
    assert torch.equal(result[8:], whole[8:])


def test_no_images_at_all(target):
    assert attack(target, n=0).shape == (0, 3, 16, 16)
    classifier, images, labels = target
    classes, margins = predict(classifier, images[:0], labels[:0], 4, CPU)
    assert len(classes) == len(margins) == 0


def test_leaving_the_ball_is_never_stored():
    clean = torch.full((300, 3, 2, 2), 100, dtype=torch.uint8)
    far = clean.clone()
    far[299, 0, 0, 0] = 91
    check_within(clean, far, 9)
    with pytest.raises(EpsilonExceededError, match="9 levels from its clean one, eps is 8"):
        check_within(clean, far, 8)
    wrapped = torch.full_like(clean, 250)
    with pytest.raises(EpsilonExceededError):
        check_within(torch.full_like(clean, 5), wrapped, 20)  # 250 is 245 away from 5, not 11


@given(st.integers(0, 50), st.integers(1, 20))
def test_batches_cover_everything_once_in_one_shape(n, batch_size):
    covered = []
    for positions, count in fixed_size_batches(n, batch_size):
        assert len(positions) == batch_size
        assert 0 < count <= batch_size
        covered += positions[:count].tolist()
        assert set(positions[count:].tolist()) <= {n - 1}
    assert covered == list(range(n))


def test_margins_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])
    torch.testing.assert_close(true_class_margin(logits, torch.tensor([0, 1])), torch.tensor([0.5, -1.0]))


def test_predictions_do_not_depend_on_the_batch_size(target):
    classifier, images, labels = target
    one, margin_one = predict(classifier, images, labels, 64, CPU)
    other, margin_other = predict(classifier, images, labels, 7, CPU)
    assert torch.equal(one, other)
    assert torch.equal(one, labels)
    assert (margin_one > 0).all()
    torch.testing.assert_close(margin_one, margin_other, rtol=1e-4, atol=1e-4)


def test_a_model_that_answers_nan_is_an_error_and_not_class_zero():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    torch.nn.init.constant_(broken[1].weight, float("nan"))
    with pytest.raises(NonFiniteLogitsError):
        predict(broken, images, torch.zeros(3, dtype=torch.int64), 2, CPU)
