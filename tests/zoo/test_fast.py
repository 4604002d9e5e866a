"""Faster, and the same: on real timm architectures of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo import fast as fast_module
from simhpc.zoo import stems
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.timm_import import timm

DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)


@pytest.fixture(autouse=True)
def _without_kernels(monkeypatch):
    """It needs a compiler, which may not be there; tests/zoo/kernels is about it."""
    monkeypatch.setattr(fast_module, "kernel_convolution", lambda *_: None)


def classifier_of(model, **options):
    return PixelClassifier(with_statistics(model).float(), DATA, **options)


def answers(classifier, pixels):
    """Logits and the gradient of the cross-entropies' sum."""
    variable = pixels.clone().requires_grad_(True)
    logits = classifier(variable)
    loss = nn.functional.cross_entropy(logits, torch.zeros(len(pixels), dtype=torch.int64), reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, variable)[0]


def done(fast):
    """Without oneDNN's order, which depends on the processor; see test_packed.py."""
    return tuple(what for what in fast.done if "oneDNN" not in what)


STEM = "stem's gradient as a convolution"
# What was done to each, at 64 pixels. Of convolutions with a ReLU the ResNet has two in each of four blocks and two
# after its first, the DenseNet one in each of 6 + 12 + 24 + 16 layers.
INSIDE = "convolutions with what follows inside"
KINDS = {
    "resnet10t": f"folded 14 of 14 batch norms; {STEM}; 10 {INSIDE}; channels_last",
    "test_efficientnet": f"folded 13 of 13 batch norms; {STEM}; channels_last",
    "densenet121": f"folded 59 of 121 batch norms; {STEM}; 58 {INSIDE}; channels_last",
    "resnetv2_50d_gn": f"{STEM}; channels_last",
    "convnext_atto": f"{STEM}; channels_last",
    "repvit_m0_9": f"merged branches; {STEM}; 10 {INSIDE}; channels_last",
    "test_vit": "last block for the tokens in use; patches as a product",
}


@pytest.mark.parametrize("name", KINDS)
def test_the_same_answers_and_gradients(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    pixels = torch.rand(3, 3, 64, 64)
    classifier = classifier_of(model)
    logits, gradient = answers(classifier, pixels)
    fast = make_fast(classifier, pixels[:2])
    assert "; ".join(done(fast)) == KINDS[name], fast
    assert fast.left_out == ()
    assert fast.is_in_parts == (name == "test_vit")
    found, found_gradient = answers(fast.classifier, pixels.to(memory_format=fast.memory_format))
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    off = (found_gradient - gradient).norm() / gradient.norm()
    assert off < 0.02, float(off)
    assert not any(parameter.requires_grad for parameter in fast.classifier.parameters())
    assert not fast.classifier.training


class Skip(nn.Module):
    """The batch norm's input is used a second time: folding it would change that, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.more, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        x = self.more(self.conv(x))
        return self.head((x + self.norm(x)).mean((2, 3)))


def test_what_is_not_exact_is_found_out_and_left_out():
    torch.manual_seed(0)
    classifier = classifier_of(Skip())
    pixels = torch.rand(2, 3, 64, 64)
    logits, gradient = answers(classifier, pixels)
    fast = make_fast(classifier, pixels)
    (reason,) = fast.left_out
    assert reason.startswith("folded 1 of 1 batch norms: not exact, relative error of logits and gradient ")
    # As an affine map it is exact, and no batch norm is left to torch.
    assert done(fast) == ("1 batch norm(s) as affine maps", "channels_last")
    for ours, expected in zip(answers(fast.classifier, pixels), (logits, gradient), strict=True):
        torch.testing.assert_close(ours, expected)


def test_one_rewriting_that_is_not_exact_leaves_the_others():
    torch.manual_seed(0)
    model = Skip()
    model.conv = nn.Conv2d(3, 4, 3, stride=2)
    classifier = classifier_of(model)
    pixels = torch.rand(2, 3, 64, 64)
    expected = answers(classifier, pixels)
    fast = make_fast(classifier, pixels)
    assert len(fast.left_out) == 1
    assert done(fast) == ("1 batch norm(s) as affine maps", STEM, "channels_last")
    for ours, theirs in zip(answers(fast.classifier, pixels), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_stem_that_is_not_exact_is_left_out(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10))
    model(torch.rand(1, 3, 64, 64).repeat(2, 1, 1, 1))
    monkeypatch.setattr(stems, "_filters", lambda *_: torch.ones(12, 4, 2, 2, dtype=torch.float64))
    fast = make_fast(classifier_of(model), torch.rand(2, 3, 64, 64))
    assert done(fast) == ("folded 1 of 1 batch norms",)
    (reason,) = fast.left_out
    assert reason.startswith(f"{STEM}: not exact, relative error of logits and gradient ")
    assert type(fast.classifier.model[0]) is nn.Conv2d


def test_a_model_that_cannot_be_laid_out_otherwise_stays_as_it_is():
    class Viewing(Skip):
        def forward(self, x):
            x = self.norm(self.more(self.conv(x)))
            return self.head(x.view(len(x), -1)[:, :4])

    torch.manual_seed(0)
    classifier = classifier_of(Viewing())
    pixels = torch.rand(2, 3, 64, 64)
    expected = classifier(pixels)
    fast = make_fast(classifier, pixels)
    assert fast.memory_format == torch.contiguous_format
    assert done(fast) == ("folded 1 of 1 batch norms",)
    assert fast.left_out[0].startswith("channels_last: view size is not compatible")
    torch.testing.assert_close(fast.classifier(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_compute_in_double_precision_stays_as_it_is():
    class Single(Skip):
        def forward(self, x):
            return self.head(self.norm(self.more(self.conv(x)).float()).mean((2, 3)))

    torch.manual_seed(0)
    classifier = classifier_of(Single())
    fast = make_fast(classifier, torch.rand(2, 3, 64, 64))
    assert fast.left_out
    assert any(isinstance(module, nn.BatchNorm2d) for module in fast.classifier.modules())


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_bfloat16_is_what_autocast_gives(name):
    """Casting the weights once changes nothing; pixels, gradient and logits are in single precision."""
    torch.manual_seed(0)
    classifier = classifier_of(timm.create_model(name, num_classes=10), in_bfloat16=True)
    pixels = torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier, pixels)
    laid_out = pixels.to(memory_format=fast.memory_format)
    logits, gradient = answers(fast.classifier, laid_out)
    assert (logits.dtype, gradient.dtype) == (torch.float32, torch.float32)
    single = PixelClassifier(fast.classifier.model.float(), DATA)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = single(laid_out)
    # The weights have been rounded by now, so rounding them again gives the same.
    torch.testing.assert_close(logits, expected.float(), rtol=0, atol=0)
    assert (logits - single(laid_out)).abs().max() > 0


class SquareRoot(nn.Module):
    """The same as `Skip` forwards; backwards the root of zero gives NaN."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) + (x * 0).square().sum((1, 2, 3))[:, None].sqrt()


def test_a_gradient_that_is_no_number_is_not_exact(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(fast_module, "_fold", lambda model, inputs: (SquareRoot(model), "broke the gradient"))
    fast = make_fast(classifier_of(Skip()), torch.rand(2, 3, 64, 64))
    assert fast.left_out == ("broke the gradient: not exact, relative error of logits and gradient 0 and nan",)
    # As an affine map it is exact, and no batch norm is left to torch.
    assert done(fast) == ("1 batch norm(s) as affine maps", "channels_last")


class Doubled(nn.Module):
    """A layer that timm can merge, and nothing else that could be rewritten."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 64 * 64, 10)

    def forward(self, x):
        return 2 * self.linear(x)

    def fuse(self):
        merged = nn.Linear(3 * 64 * 64, 10)
        merged.weight.data, merged.bias.data = 2 * self.linear.weight.data, 2 * self.linear.bias.data
        return merged


def test_where_one_rewriting_finds_nothing_the_next_is_tried():
    torch.manual_seed(0)
    fast = make_fast(classifier_of(nn.Sequential(nn.Flatten(), Doubled())), torch.rand(2, 3, 64, 64))
    assert (done(fast), fast.left_out) == (("merged branches",), ())
