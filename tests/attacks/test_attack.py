from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simhpc.attacks import attack as attack_module
from simhpc.attacks import method
from simhpc.attacks.attack import NonFiniteGradientError, attack_images
from simhpc.attacks.batches import (
    NonFiniteLogitsError,
    Target,
    at,
    fixed_size_batches,
    predict,
    predict_probabilities,
    true_class_margin,
)

CPU = torch.device("cpu")


def settings(name="pgd-linf", eps_255=32, step_size_eps=0.4, steps=3, **arguments):
    return method.Settings(method.find(name), eps_255, step_size_eps, steps, arguments)


def attack(target, n=20, batch_size=8, restarts=1, layout=torch.contiguous_format, **chosen):
    classifier, images, labels = target
    seeds = [range(number * 1000, number * 1000 + n) for number in range(restarts)]
    return attack_images(
        Target(classifier, CPU, layout), images[:n], labels[:n], seeds, settings(**chosen),
        batch_size=batch_size, finished={}, on_batch=lambda first, images: None,
    )  # fmt: skip


@pytest.mark.parametrize("name", method.names())
def test_every_attack_gives_8_bit_images_in_its_ball(target, name):
    classifier, images, labels = target
    adversarial = attack(target, name=name, eps_255=200 if name == "pgd-l2" else 16, step_size_eps=1.0)
    offset = (adversarial.int() - images[:20].int()).flatten(1)
    if name == "pgd-l2":
        assert (offset.square().sum(1) <= 200**2).all()
        assert (offset.square().sum(1) > 150**2).all()
    else:
        assert offset.abs().max() == 16
    margins = predict(Target(classifier, CPU), adversarial, labels[:20], 20)[1]
    assert margins.mean() < predict(Target(classifier, CPU), images[:20], labels[:20], 20)[1].mean() - 0.5


class Broken(torch.nn.Module):
    """Its logits are fine, their gradient is not: the derivative of the root at 0 is infinite, times 0 it is NaN."""

    def forward(self, pixels):
        return pixels.flatten(1)[:, :2] + (pixels.sum((1, 2, 3)) * 0.0).sqrt()[:, None]


def test_a_gradient_of_nan_is_named():
    with pytest.raises(NonFiniteGradientError, match="input gradient is not finite"):
        attack((Broken(), torch.full((20, 3, 4, 4), 9, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)))


def test_restarts_keep_of_each_image_what_fools_best(target):
    classifier, _, labels = target

    def margins(adversarial):
        return predict(Target(classifier, CPU), adversarial, labels[:20], 8)[1]

    weak = {"steps": 1, "step_size_eps": 0.1}
    single = [attack(target, **weak)]
    single += [
        attack_images(
            Target(classifier, CPU), target[1][:20], labels[:20], [range(number * 1000, number * 1000 + 20)],
            settings(**weak), batch_size=8, finished={}, on_batch=lambda first, images: None,
        )
        for number in (1, 2)
    ]  # fmt: skip
    best = attack(target, restarts=3, **weak)
    each = torch.stack([margins(one) for one in single])
    assert torch.equal(margins(best), each.amin(0))
    assert len(set(each.argmin(0).tolist())) > 1
    for row, chosen in enumerate(each.argmin(0).tolist()):
        assert torch.equal(best[row], single[chosen][row])


def test_the_memory_format_hardly_changes_the_result(target):
    one, other = attack(target), attack(target, layout=torch.channels_last)
    assert other.is_contiguous()
    assert (one != other).float().mean() < 0.01


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
            Target(classifier, CPU), images[:10], labels[:10], [range(10)], settings(eps_255=8, steps=1),
            batch_size=4, finished=finished, on_batch=seen.__setitem__,
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


def test_a_batch_under_way_is_not_lost_when_another_is_interrupted(target, monkeypatch):
    """As on a GPU: two are begun before the first is looked at."""
    classifier, images, labels = target
    seen = {}

    def attacked(on_batch):
        seen.clear()
        return attack_images(
            Target(classifier, CPU), images[:10], labels[:10], [range(10)], settings(eps_255=8, steps=1),
            batch_size=4, finished={}, on_batch=on_batch,
        )  # fmt: skip

    def interrupted(first, part):
        seen[first] = part
        raise KeyboardInterrupt

    whole = attacked(seen.__setitem__)
    monkeypatch.setattr(attack_module, "_batches_at_once", lambda _: 2)
    assert torch.equal(attacked(seen.__setitem__), whole)
    assert list(seen) == [0, 4, 8]
    with pytest.raises(KeyboardInterrupt):
        attacked(interrupted)
    assert list(seen) == [0, 4]
    assert torch.equal(torch.cat(list(seen.values())), whole[:8])


def test_no_images_at_all(target):
    assert attack(target, n=0).shape == (0, 3, 16, 16)
    classifier, images, labels = target
    classes, margins = predict(Target(classifier, CPU), images[:0], labels[:0], 4)
    assert len(classes) == len(margins) == 0


@given(st.integers(0, 50), st.integers(1, 20))
def test_batches_cover_everything_once_in_one_shape(n, batch_size):
    covered = []
    for positions, count in fixed_size_batches(n, batch_size):
        assert len(positions) == batch_size
        assert 0 < count <= batch_size
        covered += positions[:count].tolist()
        assert set(positions[count:].tolist()) <= {n - 1}
    assert covered == list(range(n))


def test_a_batch_that_is_whole_is_not_copied():
    tensor = torch.arange(7)
    (whole, _), (filled_up, _) = fixed_size_batches(7, 4)
    assert at(tensor, whole).tolist() == [0, 1, 2, 3]
    assert at(tensor, whole).data_ptr() == tensor.data_ptr()
    assert at(tensor, filled_up).tolist() == [4, 5, 6, 6]
    assert at(tensor, torch.tensor([6])).tolist() == [6]


def test_margins_by_hand():
    logits = torch.tensor([[3.0, 1.0, 2.5], [0.0, 4.0, 5.0]])
    torch.testing.assert_close(true_class_margin(logits, torch.tensor([0, 1])), torch.tensor([0.5, -1.0]))


def test_predictions_do_not_depend_on_the_batch_size(target):
    classifier, images, labels = target
    one, margin_one = predict(Target(classifier, CPU), images, labels, 64)
    other, margin_other = predict(Target(classifier, CPU), images, labels, 7)
    assert torch.equal(one, other)
    assert torch.equal(one, labels)
    assert (margin_one > 0).all()
    torch.testing.assert_close(margin_one, margin_other, rtol=1e-4, atol=1e-4)


def test_probabilities_are_the_softmax_in_16_bits(target):
    classifier, images, labels = target
    classes, margins, probabilities = predict_probabilities(Target(classifier, CPU), images, labels, 7)
    assert probabilities.dtype == torch.float16
    with torch.no_grad():
        exact = classifier(images.float() / 255).double()
    exact = exact.exp() / exact.exp().sum(1, keepdim=True)
    torch.testing.assert_close(probabilities.double(), exact, rtol=2**-11 + 1e-4, atol=2**-25)
    alone = predict(Target(classifier, CPU), images, labels, 7)
    assert torch.equal(classes, alone[0])
    assert torch.equal(margins, alone[1])


def test_a_model_that_answers_nan_is_an_error_and_not_class_zero():
    images = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    broken = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    torch.nn.init.constant_(broken[1].weight, float("nan"))
    with pytest.raises(NonFiniteLogitsError):
        predict_probabilities(Target(broken, CPU), images, torch.zeros(3, dtype=torch.int64), 2)
