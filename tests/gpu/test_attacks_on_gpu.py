"""Attacks on a CUDA device: the same as on the CPU, nothing waits in the loop, and a recorded step is the step."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from simhpc.attacks import method
from simhpc.attacks.attack import attack_images
from simhpc.attacks.backoff import with_backoff
from simhpc.attacks.batches import Target, predict
from simhpc.attacks.gradient import InputGradient, StepGraph, input_gradient, try_graph
from simhpc.attacks.noise import unit_ball_points
from simhpc.stages.runtime import set_tf32
from simhpc.stages.smoke import attack_everywhere
from simhpc.store import image_set
from simhpc.study import DataConfig
from simhpc.zoo import build
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.fused import ConvReLU
from simhpc.zoo.geometry import clean_view
from simhpc.zoo.timm_import import timm

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
CPU = torch.device("cpu")
SIDE_PX = 64

NETWORKS = {
    "resnet": ("resnet18", {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96], "stem_width": 16}),
    "vit": ("vit_tiny_patch16_224", {"img_size": SIDE_PX, "depth": 3}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 96]}),
    "efficientnet": ("test_efficientnet", {}),
    "xcit": ("xcit_nano_12_p16_224", {"img_size": SIDE_PX, "depth": 2}),
    "densenet": ("densenet121", {"block_config": [2, 2], "growth_rate": 16}),
}


@pytest.fixture(autouse=True)
def exact():
    set_tf32(False)
    torch.use_deterministic_algorithms(True)
    yield
    set_tf32(False)


def classifier_of(name, *, in_bfloat16=False):
    torch.manual_seed(0)
    timm_name, arguments = NETWORKS[name]
    network = timm.create_model(timm_name, num_classes=10, **arguments).eval()
    data = DataConfig(
        input_size_px=SIDE_PX, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), interpolation="bicubic", crop_pct=1.0
    )
    return PixelClassifier(network, data, in_bfloat16=in_bfloat16)


def batch(n=8, seed=0):
    levels = torch.randint(0, 256, (n, 3, SIDE_PX, SIDE_PX), generator=torch.Generator().manual_seed(seed))
    return levels.to(torch.uint8), torch.arange(n) % 10


def on_gpu(name, *, in_bfloat16=False):
    levels, labels = batch()
    fast = make_fast(classifier_of(name, in_bfloat16=in_bfloat16), levels[:2].float() / 255, GPU)
    assert fast.left_out == ()
    target = Target(fast.classifier, GPU, fast.memory_format)
    return target, target.pixels(target.moved(levels)), target.moved(labels)


def off(found, expected):
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_double_precision_on_the_cpu(name):
    levels, labels = batch()
    exact = classifier_of(name).double()
    expected, expected_loss = input_gradient(exact, levels.double() / 255, labels)
    target, pixels, truth = on_gpu(name)
    found, loss = input_gradient(target.classifier, pixels, truth)
    assert off(found, expected) < 1e-4
    torch.testing.assert_close(loss.double().cpu(), expected_loss, rtol=1e-4, atol=1e-5)


FUSED = {"resnet": 8, "convnext": 0, "efficientnet": 0, "densenet": 4}


@pytest.mark.parametrize(("precision", "most"), [("tf32", 0.05), ("bfloat16", 0.2)])
@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_compute_the_same(name, precision, most):
    set_tf32(precision == "tf32")
    levels, labels = batch()
    expected, expected_loss = input_gradient(classifier_of(name).double(), levels.double() / 255, labels)
    fast = make_fast(classifier_of(name, in_bfloat16=precision == "bfloat16"), levels[:2].float() / 255, GPU)
    assert fast.left_out == ()
    assert sum(isinstance(module, ConvReLU) for module in fast.classifier.modules()) == FUSED[name]
    assert fast.memory_format == torch.channels_last
    target = Target(fast.classifier, GPU, fast.memory_format)
    found, loss = input_gradient(target.classifier, target.pixels(target.moved(levels)), target.moved(labels))
    assert off(found, expected) < most
    torch.testing.assert_close(loss.double().cpu(), expected_loss, rtol=most, atol=most)


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"groups": 4, "padding": 2, "dilation": 2}])
@pytest.mark.parametrize("has_residual", [False, True])
def test_a_fused_convolution_against_double_precision(settings, has_residual):
    set_tf32(True)
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 32, 3, **settings).requires_grad_(False)
    x = torch.randn(4, 16, 20, 20)
    made = convolution(x)
    residual, arriving = (torch.randn_like(made) for _ in range(2)) if has_residual else (None, torch.randn_like(made))

    def answers(module, device, dtype):
        given = [None if t is None else t.to(device, dtype).requires_grad_(True) for t in (x, residual)]
        result = module.to(device, dtype)(*given)
        inputs = [t for t in given if t is not None]
        return [result, *torch.autograd.grad(result, inputs, arriving.to(device, dtype))]

    expected = answers(ConvReLU(copy.deepcopy(convolution)), CPU, torch.float64)
    found = answers(ConvReLU(convolution), GPU, torch.float32)
    assert len(found) == (3 if has_residual else 2)
    for one, other in zip(found, expected, strict=True):
        # What is within rounding of 0 may pass the ReLU here and not there.
        assert off(one, other) < 0.02
        assert one.dtype == torch.float32


@pytest.mark.parametrize("in_bfloat16", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_step_is_the_step(name, in_bfloat16):
    target, pixels, truth = on_gpu(name, in_bfloat16=in_bfloat16)
    graph = StepGraph(target.classifier, pixels, truth)
    recorded, plain = InputGradient(target.classifier, graph), InputGradient(target.classifier)
    assert graph.is_repeatable
    before = graph.n_replays
    held = []
    for seed in range(3):
        levels, labels = batch(seed=seed + 1)
        shown, truth = target.pixels(target.moved(levels)), target.moved(labels.flip(0))
        kept = shown.clone()
        (gradient, loss), expected = recorded.with_loss(shown, truth), plain.with_loss(shown, truth)
        held.append((gradient, loss, *expected))
        assert torch.equal(shown, kept)
        assert gradient.stride() == shown.stride()
    assert graph.n_replays == before + 3
    # Compared only now: a replay must not change what an earlier one has given.
    for gradient, loss, expected, expected_loss in held:
        assert off(gradient, expected) < (1e-2 if in_bfloat16 else 1e-5)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-2 if in_bfloat16 else 1e-5, atol=1e-5)
    assert recorded.was_finite()


def test_another_batch_size_is_not_replayed():
    target, pixels, truth = on_gpu("resnet")
    graph = StepGraph(target.classifier, pixels, truth)
    before = graph.n_replays
    found = InputGradient(target.classifier, graph)(pixels[:3], truth[:3])
    assert graph.n_replays == before
    assert off(found, input_gradient(target.classifier, pixels[:3], truth[:3])[0]) == 0


class Looks(nn.Module):
    """Asks the device for a number, which cannot be recorded."""

    def forward(self, pixels):
        scale = 1.0 if pixels.mean().item() > -1 else 2.0
        return pixels.flatten(1)[:, :10] * scale


class Remembers(nn.Module):
    """Answers by what it was shown first, which a graph would do for ever."""

    def __init__(self):
        super().__init__()
        self.n_calls = 0

    def forward(self, pixels):
        self.n_calls += 1
        return pixels.flatten(1)[:, :10] * float(self.n_calls)


@pytest.mark.parametrize(("network", "why"), [(Looks, "synchroniz"), (Remembers, "a CUDA graph's gradient is another")])
def test_what_cannot_be_recorded_says_why_and_harms_nothing(network, why):
    pixels, truth = torch.rand(4, 3, 8, 8, device=GPU), torch.arange(4, device=GPU)
    graph, reason = try_graph(network(), pixels, truth)
    assert graph is None
    assert why in reason
    assert torch.isfinite(InputGradient(network())(pixels, truth)).all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    # The device is as it was: another model can be recorded.
    target, pixels, truth = on_gpu("resnet")
    assert try_graph(target.classifier, pixels, truth)[0] is not None


@contextmanager
def nothing_waits():
    """What waits for the device raises an error here."""
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", method.names())
def test_nothing_waits_for_the_device_in_the_loop(name, graph):
    target, pixels, truth = on_gpu("resnet")
    attack = method.find(name)
    unit = unit_ball_points(attack.norm, list(range(8)), tuple(pixels.shape[1:])).to(GPU)
    unit = unit.to(memory_format=target.memory_format)
    gradient = InputGradient(target.classifier, StepGraph(target.classifier, pixels, truth) if graph else None)
    steps = {"eps": 0.1, "step_size": 0.05, "steps": 6 if attack.takes_steps else 1}
    with torch.no_grad():
        attack.attack(gradient, pixels, truth, unit, **steps)
        with nothing_waits():
            found = attack.attack(gradient, pixels, truth, unit, **steps)
    assert float((found - pixels).abs().amax()) > 0


def test_the_check_for_waiting_would_find_one():
    one = torch.ones(1, device=GPU)
    with nothing_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        one.item()


@pytest.fixture(scope="module")
def digits(finished):
    """Two trained networks with images that they get right: by key a classifier, images, labels."""
    found, chosen = {}, image_set.load(finished.dir.images)
    for key in ("cnn", "vit"):
        model = finished.study.model(key)
        loaded = build.load(model, num_classes=10, trained=finished.dir.checkpoint(key))
        images, labels = torch.from_numpy(clean_view(chosen.images, model.data)), torch.from_numpy(chosen.labels).long()
        right = predict(Target(loaded.classifier, CPU), images, labels, 16)[0] == labels
        found[key] = loaded.classifier, images[right], labels[right]
    return found


def attacked(digits, key, device, name="pgd-linf", *, graph=False, steps=10, batch_size=16):
    classifier, images, labels = digits[key]
    fast = make_fast(copy.deepcopy(classifier), images[:2].float() / 255, device)
    target = Target(fast.classifier, device, fast.memory_format)
    with torch.no_grad():
        if graph:
            pixels, truth = target.pixels(target.moved(images[:batch_size])), target.moved(labels[:batch_size])
            target = replace(target, graph=StepGraph(target.classifier, pixels, truth))
        eps_255 = 150 if name == "pgd-l2" else 24
        steps = steps if method.find(name).takes_steps else 1
        settings = method.Settings(method.find(name), eps_255, 0.2, steps, {})
        made = attack_images(
            target, images, labels, [range(len(images))], settings,
            batch_size=batch_size, finished={}, on_batch=lambda *_: None,
        )  # fmt: skip
    margins = predict(Target(classifier.to(CPU), CPU), made, labels, 16)[1]
    return made, margins


@pytest.mark.parametrize("key", ["cnn", "vit"])
@pytest.mark.parametrize("name", method.names())
def test_attacks_are_as_strong_as_on_the_cpu_and_the_same_each_time(digits, name, key):
    made, margins = attacked(digits, key, GPU, name)
    again, _ = attacked(digits, key, GPU, name)
    recorded, _ = attacked(digits, key, GPU, name, graph=True)
    assert torch.equal(made, again)
    assert torch.equal(made, recorded)
    there, there_margins = attacked(digits, key, CPU, name)
    assert (made != there).float().mean() < 0.1
    fooled, fooled_there = (margins < 0).sum(), (there_margins < 0).sum()
    assert abs(int(fooled) - int(fooled_there)) <= 2
    assert fooled > 0


def test_a_batch_is_looked_at_when_the_next_is_under_way():
    target, pixels, truth = on_gpu("resnet")
    levels, labels = (torch.cat([part] * 4)[:27] for part in batch())
    steps, seen = 5, []
    with torch.no_grad():
        graph = StepGraph(target.classifier, pixels, truth)
        before = graph.n_replays
        made = attack_images(
            replace(target, graph=graph), levels, labels, [range(27)],
            method.Settings(method.find("pgd-linf"), 8, 0.25, steps, {}),
            batch_size=8, finished={},
            on_batch=lambda first, part: seen.append((first, len(part), (graph.n_replays - before) // steps)),
        )  # fmt: skip
    assert seen == [(0, 8, 2), (8, 8, 3), (16, 8, 4), (24, 3, 4)]
    assert torch.equal(made[:3], made[8:11]) is False  # of one image each, from other starts
    assert int((made.int() - levels.int()).abs().amax((1, 2, 3)).min()) == 8


def test_tf32_is_off_unless_asked_for():
    one, other = (torch.randn(512, 512, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    kernel = torch.randn(64, 64, 3, 3, generator=torch.Generator().manual_seed(2))
    image = torch.randn(4, 64, 16, 16, generator=torch.Generator().manual_seed(3))
    found = {}
    for is_on in (False, True):
        set_tf32(is_on)
        found[is_on] = (
            off(one.to(GPU) @ other.to(GPU), one.double() @ other.double()),
            off(
                nn.functional.conv2d(image.to(GPU), kernel.to(GPU)),
                nn.functional.conv2d(image.double(), kernel.double()),
            ),
        )
    assert max(found[False]) < 1e-5
    assert min(found[True]) > 1e-4


def test_a_batch_that_does_not_fit_is_halved():
    target = on_gpu("densenet")[0]
    torch.cuda.empty_cache()
    images, labels = batch(1)
    many = images.repeat(2048, 1, 1, 1), labels.repeat(2048)
    settings = method.Settings(method.find("pgd-linf"), 8, 0.25, 1, {})
    tried = []

    def attack(size):
        tried.append(size)
        with torch.no_grad():
            shown, of = target.pixels(target.moved(many[0][:size])), target.moved(many[1][:size])
            graph, reason = try_graph(target.classifier, shown, of)
        assert graph is not None, reason
        return attack_images(
            replace(target, graph=graph), *many, [range(2048)], settings,
            batch_size=size, finished={}, on_batch=lambda *_: None,
        )  # fmt: skip

    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(1e9 / total)
        made = with_backoff(attack, 2048, lambda _: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tried[0] == 2048
    assert 1 <= tried[-1] < 2048
    assert int((made[:4].int() - images.int()).abs().max()) > 0


def test_an_image_tests_itself_on_every_gpu():
    assert attack_everywhere()[1] == torch.cuda.get_device_name(0)
