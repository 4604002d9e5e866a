"""The loop, against slow computations of one's own; and whatever step it is resumed at, it ends the same."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from zoo.training.made_up import CLASSES, CPU, DATA, EVERYTHING, PLAIN, Noise, network, trainer

from simhpc.errors import StudyError
from simhpc.study import Training
from simhpc.zoo.training import States, Trainer, TrainingDivergedError, recipe


def ignore(steps):
    pass


class Stop(Exception):
    pass


def stop_at(step):
    def on_steps(steps):
        if steps[-1].number == step:
            raise Stop

    return on_steps


def assert_same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(
    ("optimizer", "accumulation", "workers"), [("adamw", 1, 0), ("sgd", 2, 0), ("lamb", 1, 2), ("lion", 1, 0)]
)
def test_a_resumed_training_ends_with_the_same_weights(tmp_path, optimizer, accumulation, workers):
    """Stopped in mid-epoch and at an epoch's end, with all that is random switched on."""
    settings = {**EVERYTHING, "optimizer": optimizer, "accumulation": accumulation}
    whole, seen = network(), []
    loss = trainer(whole, **settings).run(seen.extend)
    states = States(tmp_path, "0" * 64)
    for stop in (3, 8):  # 4 steps an epoch
        first = trainer(network(), workers=workers, **settings)
        if begun := states.last():
            first.load(states.load(begun))
        with pytest.raises(Stop):
            first.run(stop_at(stop))
        states.save(first.done, first.state())
    torch.rand(5)
    resumed, rest = network(), []
    last = trainer(resumed, **settings)
    last.load(states.load(states.last()))
    assert last.done == 8
    assert last.run(rest.extend) == loss
    assert_same(resumed, whole)
    assert str(rest) == str(seen[8:])


def test_a_state_of_the_last_step_gives_the_result_too(tmp_path):
    whole = network()
    finished = trainer(whole, ema_decay=0.8)
    held = []
    loss = finished.run(lambda steps: held.append(copy.deepcopy(finished.state())))
    again = network()
    other = trainer(again, ema_decay=0.8)
    other.load(held[-1])
    assert other.run(ignore) == loss
    assert_same(again, whole)


def test_how_often_one_looks_changes_nothing():
    nets, seen = (network(), network()), ([], [])
    for net, steps, every in zip(nets, seen, (1, 5), strict=True):
        trainer(net).run(steps.extend, look_every=every)
    assert_same(*nets)
    assert str(seen[0]) == str(seen[1])


def test_one_epoch_of_sgd_by_hand():
    """Against torch alone: all images in one batch, no augmentation, weight decay for the matrix alone."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, CLASSES))
    ours = copy.deepcopy(net)
    settings = {**PLAIN, "epochs": 2, "batch_size": 36, "warmup_epochs": 0, "lr": 0.1, "weight_decay": 0.3}
    settings |= {"optimizer": "momentum", "label_smoothing": 0.2}
    source = Noise()
    seen = []
    loss = trainer(ours, **settings).run(seen.extend)
    pixels = torch.from_numpy(source.pixels).permute(0, 3, 1, 2) / 255 * 2 - 1
    weight, bias = (each.detach().clone().requires_grad_(True) for each in net.parameters())
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step in range(2):
        lr = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 2))
        log_p = torch.log_softmax(pixels.flatten(1) @ weight.T + bias, dim=1)
        targets = nn.functional.one_hot(torch.from_numpy(source.labels).long(), CLASSES) * 0.8 + 0.2 / CLASSES
        expected = -(targets * log_p).sum(1).mean()
        assert seen[step].loss_nats == pytest.approx(expected.item(), rel=1e-5)
        assert seen[step].lr == pytest.approx(lr)
        gradients = torch.autograd.grad(expected, [weight, bias])
        with torch.no_grad():
            for place, parameter in enumerate((weight, bias)):
                decay = 0.3 * parameter if place == 0 else 0
                velocity[place] = 0.9 * velocity[place] + gradients[place] + decay
                parameter -= lr * velocity[place]
    torch.testing.assert_close(ours[1].weight, weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1].bias, bias, rtol=1e-4, atol=1e-6)
    assert loss == seen[-1].loss_nats


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    seen = []
    trainer(network(), warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-4).run(seen.extend)
    expected = [1e-3 + step / 4 * 9e-3 for step in range(4)]
    expected += [1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + math.cos(math.pi * step / 12)) for step in range(4, 12)]
    assert [step.lr for step in seen] == pytest.approx(expected)
    assert [step.epoch for step in seen] == [1] * 4 + [2] * 4 + [3] * 4


def test_accumulated_passes_are_one_step():
    """Without what depends on the size of a pass (dropout, batch norm), to float tolerance."""
    nets = [network(dropout=0.0, norm=False) for _ in range(3)]
    seen = ([], [], [])
    for net, steps, passes in zip(nets, seen, (1, 2, 4), strict=True):
        trainer(net, accumulation=passes, optimizer="sgd", clip_grad_norm=1.0).run(steps.extend)
    for other, steps in zip(nets[1:], seen[1:], strict=True):
        for name, value in nets[0].state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6)
        assert [step.loss_nats for step in steps] == pytest.approx([step.loss_nats for step in seen[0]], rel=1e-4)
        assert [step.grad_norm for step in steps] == pytest.approx([step.grad_norm for step in seen[0]], rel=1e-4)


def test_the_average_is_over_the_weights_of_every_step():
    net = network()
    one = trainer(net, ema_decay=0.7)
    weights = []
    one.run(lambda steps: weights.append({name: value.clone() for name, value in one.state()["model"].items()}))
    average = weights[0]  # the first step only sets it
    for later in weights[1:]:
        average = {
            name: 0.7 * value + 0.3 * later[name] if value.is_floating_point() else later[name]
            for name, value in average.items()
        }
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    last = weights[-1]
    assert not torch.allclose(net.state_dict()["0.weight"], last["0.weight"])


def test_a_gradient_is_cut_to_its_norm():
    nets = [network(dropout=0.0, norm=False) for _ in range(2)]
    for net, most in zip(nets, (0.0, 1e-3), strict=True):
        seen = []
        one = trainer(
            net, clip_grad_norm=most, optimizer="momentum", weight_decay=0.0, epochs=1, batch_size=36, warmup_epochs=0
        )
        one.run(seen.extend)
        assert math.isnan(seen[0].grad_norm) == (most == 0)
    before = network(dropout=0.0, norm=False)
    moved = [
        math.sqrt(sum(((a - b) ** 2).sum().item() for a, b in zip(net.parameters(), before.parameters(), strict=True)))
        for net in nets
    ]
    assert seen[0].grad_norm > 1e-3
    assert moved[1] == pytest.approx(1e-2 * 1e-3, rel=1e-2)
    assert moved[0] == pytest.approx(1e-2 * seen[0].grad_norm, rel=1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_binary_cross_entropy_of_mixed_targets(threshold):
    settings = {"loss": "bce", "bce_target_threshold": threshold, "mixup_alpha": 0.5, "label_smoothing": 0.1}
    training = Training.model_validate({"batch_size": 4, **settings})
    task = recipe.make_task(nn.Identity(), training, torch.device("cpu"))
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    targets = torch.tensor([[0.6, 0.15, 0.25]])
    wanted = torch.tensor([[1.0, 0.0, 1.0]]) if threshold else targets
    p = torch.sigmoid(logits)
    expected = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean()
    torch.testing.assert_close(task(logits, targets)["loss"], expected)


def test_mixing_keeps_the_mass_of_targets_and_happens():
    mixing = recipe.make_mixing(Training.model_validate({"mixup_alpha": 0.8, "label_smoothing": 0.1}), CLASSES)
    pixels, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone(), torch.tensor([0, 1, 2, 3])
    mixed, targets = mixing(pixels.clone(), labels)
    assert torch.allclose(targets.sum(1), torch.ones(4))
    share = (targets[0, 0] - 0.1 / CLASSES) / 0.9
    torch.testing.assert_close(mixed[0], share * pixels[0] + (1 - share) * pixels[3])
    assert recipe.make_mixing(Training(), CLASSES) is None


def test_bfloat16_computes_in_bfloat16_and_keeps_float32():
    seen = {}
    for precision in ("float32", "bfloat16"):
        net, steps = network(), []
        trainer(net, precision=precision, epochs=1).run(steps.extend)
        seen[precision] = steps[0].loss_nats
        assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert seen["float32"] != seen["bfloat16"]
    assert seen["float32"] == pytest.approx(seen["bfloat16"], rel=2e-2)


def test_a_loss_that_is_not_finite_stops_it():
    with pytest.raises(TrainingDivergedError, match=r"loss is (nan|inf) in step \d+ of 12 \(epoch \d\): lower"):
        trainer(network(norm=False), optimizer="sgd", lr=1000.0, warmup_epochs=0).run(ignore)


def test_a_weight_that_is_not_finite_is_never_saved():
    net = network()
    one = trainer(net)
    with torch.no_grad():
        net[0].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(TrainingDivergedError, match="0.weight is no longer finite after step 0"):
        one.state()


def test_a_weight_that_the_last_step_has_broken_is_no_result():
    """Its own loss was finite still, and there is no next one."""
    net = network(dropout=0.0, norm=False)
    with torch.no_grad():
        net[0].bias.fill_(1e37)  # in what comes before ReLU
        net[5].weight.fill_(0.0)
        net[5].weight[0].fill_(1e-36)
    one = trainer(net, epochs=1, batch_size=36, optimizer="sgd", lr=1000.0, warmup_epochs=0)
    seen = []
    with pytest.raises(TrainingDivergedError, match=r"5\.weight is no longer finite after step 1: lower"):
        one.run(seen.extend)
    assert len(seen) == one.steps == 1
    assert math.isfinite(seen[0].loss_nats)


@pytest.mark.parametrize("optimizer", ["adahessian", "adamww"])
def test_an_optimiser_that_cannot_be_used_is_refused_before_a_training_begins(optimizer):
    with pytest.raises(StudyError, match=f"model 'm': training.optimizer: timm's '{optimizer}' cannot be used"):
        recipe.check_settings("m", Training(optimizer=optimizer))
    recipe.check_settings("m", Training(optimizer="lamb"))


def test_fewer_images_than_a_batch_are_one_batch():
    assert trainer(network(), n=6).batch_size == 6
    assert trainer(network(), n=5, mixup_alpha=0.2).batch_size == 4  # pairs
    with pytest.raises(StudyError, match="1 training image\\(s\\) are too few for a step of at least 2"):
        trainer(network(), n=1, mixup_alpha=0.2)


def test_an_uneven_share_is_an_error_that_says_what_to_do():
    training = Training.model_validate({"batch_size": 9, "accumulation": 3})
    with pytest.raises(StudyError, match=r"model 'm': training.batch_size = 9 .* 2 processes: make it a multiple of 6"):
        Trainer(
            network(), Noise(), range(36), training, DATA, num_classes=CLASSES, seed=0,
            processes=type(CPU)(CPU.device, 0, 2), key="m",
        )  # fmt: skip
