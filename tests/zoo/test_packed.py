"""Weights in oneDNN's order compute the same, forwards and backwards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from zoo.both_ways import assert_same
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo import fast as fast_module
from simhpc.zoo import packed as packed_module
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.packed import PackedConvolution, PackedLinear, packed_convolution, packed_linear
from simhpc.zoo.penultimate import penultimate
from simhpc.zoo.stems import Stem
from simhpc.zoo.substitutes import substitutes
from simhpc.zoo.timm_import import timm

axes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(1, 12))
"""Kernel, stride, padding, dilation, side."""


@pytest.fixture(autouse=True)
def _without_kernels(monkeypatch):
    """It needs a compiler, which may not be there; tests/zoo/kernels is about it."""
    monkeypatch.setattr(fast_module, "kernel_convolution", lambda *_: None)


@given(rows=axes, columns=axes, channels=st.integers(1, 20), bias=st.booleans())
def test_the_same_as_the_convolution(rows, columns, channels, bias):
    """Whatever is left over at the right and lower edges, of a batch that it was packed for and of another."""
    kernel, stride, padding, dilation, size = zip(rows, columns, strict=True)
    sides = zip(kernel, padding, dilation, size, strict=True)
    assume(all(d * (k - 1) < side + 2 * p and p < k for k, p, d, side in sides))
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 5, kernel, stride, padding, dilation, bias=bias).requires_grad_(False)
    x = torch.randn(3, channels, *size).to(memory_format=torch.channels_last)
    packed = PackedConvolution(convolution, x.shape, convolution(x).shape)
    assert_same(convolution, packed, x)
    other = torch.randn(1, channels, size[0] + 3, size[1] + 1).to(memory_format=torch.channels_last)
    assert_same(convolution, packed, other)


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), bias=st.booleans())
def test_the_same_as_the_linear_layer(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(7, 11, bias=bias).requires_grad_(False)
    x = torch.randn(*shape, 7)
    packed = PackedLinear(linear, x.shape)
    assert_same(linear, packed, x)
    assert_same(linear, packed, torch.randn(13, 2, 7).transpose(0, 1))


def test_by_hand():
    """Taps 1, 10 with stride 2 in a row of 5: outputs see pixels (0, 1) and (2, 3), the last pixel is seen by none."""
    convolution = nn.Conv2d(1, 1, (1, 2), (1, 2), bias=False).requires_grad_(False)
    convolution.weight.copy_(torch.tensor([[[[1.0, 10.0]]]]))
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]], requires_grad=True)
    made = PackedConvolution(convolution, x.shape, torch.Size([1, 1, 1, 2]))(x)
    assert made.flatten().tolist() == [21.0, 43.0]
    (gradient,) = torch.autograd.grad(made, x, torch.tensor([[[[1.0, 2.0]]]]))
    assert gradient.flatten().tolist() == [1.0, 10.0, 2.0, 20.0, 0.0]
    linear = nn.Linear(2, 1).requires_grad_(False)
    linear.weight.copy_(torch.tensor([[3.0, 4.0]]))
    linear.bias.fill_(5.0)
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    made = PackedLinear(linear, x.shape)(x)
    assert made.tolist() == [[16.0]]
    # As a mean gives it: one number for all, with strides of 0.
    assert torch.autograd.grad(made, x, torch.tensor(2.0).expand(1, 1))[0].tolist() == [[6.0, 8.0]]


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Stem(nn.Conv2d(3, 64, 32, 32))
        self.wide = nn.Conv2d(64, 64, 3, padding=1)
        self.again = self.wide
        self.small = nn.Conv2d(64, 64, 1)
        self.grouped = nn.Conv2d(64, 512, 3, padding=1, groups=8)
        self.reflecting = nn.Conv2d(512, 64, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(64, 64, 3, padding="same")
        self.large, self.head = nn.Linear(64, 512), nn.Linear(512, 10)

    def forward(self, x):
        x = self.small(self.again(self.wide(self.stem(x))))
        return self.head(self.large(self.same(self.reflecting(self.grouped(x))).mean((2, 3))))


@pytest.mark.parametrize("is_amd", [True, False])
def test_which_layers_are_packed(monkeypatch, is_amd):
    """One that is used under two names is one layer in both; small ones and what is not plain stay."""
    monkeypatch.setattr(packed_module, "is_amd", lambda: is_amd)
    torch.manual_seed(0)
    model = Mixed().requires_grad_(False).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64).to(memory_format=torch.channels_last)
    found = substitutes(model, x, packed_convolution)
    assert set(found) == {"wide", "again"}
    assert found["wide"] is found["again"]
    assert type(found["wide"]) is PackedConvolution
    linear = substitutes(model, x, packed_linear)
    assert {name: type(layer) for name, layer in linear.items()} == ({"large": PackedLinear} if is_amd else {})


DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)


def classifier_of(model, **options):
    return PixelClassifier(with_statistics(model).float(), DATA, **options)


def kinds(fast):
    return {type(module) for module in fast.classifier.modules()}


@pytest.mark.parametrize(("name", "arguments"), [("resnet18", {}), ("vit_tiny_patch16_224", {"img_size": 64})])
def test_models_are_packed_where_single_precision_on_a_cpu_is_not_compiled(monkeypatch, name, arguments):
    monkeypatch.setattr(packed_module, "is_amd", lambda: True)
    torch.manual_seed(0)
    model, pixels = timm.create_model(name, num_classes=10, **arguments), torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(model), pixels)
    of_convolutions = (PackedConvolution, nn.Conv2d, "convolution(s)")
    kind, other, what = of_convolutions if name == "resnet18" else (PackedLinear, nn.Linear, "linear layer(s)")
    n_packed = sum(isinstance(module, kind) for module in fast.classifier.modules())
    assert n_packed > 15
    assert fast.done[-1] == f"{n_packed} {what} in oneDNN's order"
    assert all(module.weight.numel() < 2**15 for module in fast.classifier.modules() if type(module) is other)
    for without in (
        make_fast(classifier_of(model), pixels, is_compiled=True),
        make_fast(classifier_of(model, in_bfloat16=True), pixels),
        make_fast(classifier_of(model), pixels, torch.device("meta")),
    ):
        assert not kinds(without) & {PackedConvolution, PackedLinear}


class Looking(nn.Module):
    """Code that asks for what a packed layer does not have."""

    def __init__(self):
        super().__init__()
        self.first, self.wide, self.head = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.wide(self.first(x)).mean((2, 3)).view(-1, self.wide.out_channels))


def test_layers_that_a_model_looks_into_are_put_back():
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(Looking()), pixels)
    (reason,) = fast.left_out
    assert reason == "convolution(s) in oneDNN's order: 'PackedConvolution' object has no attribute 'out_channels'"
    assert type(fast.classifier.model.wide) is nn.Conv2d
    assert torch.isfinite(fast.classifier(pixels)).all()


class Encoder(nn.Module):
    """torch's own layer, which looks into its linear layers where no gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(192, 4, 512, batch_first=True)
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return self.head(self.layer(x.reshape(len(x), -1, 192)).mean(1))


def test_a_model_that_would_fail_without_a_gradient_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(packed_module, "is_amd", lambda: True)
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(Encoder()), pixels)
    assert len(fast.left_out) == 1
    assert fast.left_out[0].startswith("linear layer(s) in oneDNN's order: ")
    with torch.no_grad():
        assert torch.isfinite(fast.classifier(pixels)).all()


def test_features_are_found_before_a_packed_layer(monkeypatch):
    monkeypatch.setattr(packed_module, "is_amd", lambda: True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 16), nn.ReLU(), nn.Linear(16, 4096))
    pixels = torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(model), pixels)
    assert type(fast.classifier.model[3]) is PackedLinear
    found, where = penultimate(fast.classifier, pixels)
    assert (found(pixels).shape, where) == ((2, 16), "the input of its last linear layer, 3")


def test_a_teacher_is_not_packed():
    """It may be moved to a GPU, and answers under its student's autocast."""
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 64, 64)
    teacher = make_fast(classifier_of(timm.create_model("resnet18", num_classes=10)), pixels, is_portable=True)
    assert PackedConvolution not in kinds(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert teacher.classifier(pixels.to(memory_format=torch.channels_last)).dtype == torch.bfloat16


def test_a_kernel_that_computes_something_else_is_found_out(monkeypatch):
    right = PackedConvolution.forward
    monkeypatch.setattr(PackedConvolution, "forward", lambda self, x: right(self, x) * 1.001)
    torch.manual_seed(0)
    model, pixels = timm.create_model("resnet18", num_classes=10), torch.rand(2, 3, 64, 64)
    expected = classifier_of(model)(pixels)
    fast = make_fast(classifier_of(model), pixels)
    (reason,) = fast.left_out
    assert reason.startswith("convolution(s) in oneDNN's order: Conv2d(64, 64, kernel_size=(3, 3), ")
    assert reason.endswith("is not the same, relative error 0.002")
    assert PackedConvolution not in kinds(fast)
    torch.testing.assert_close(fast.classifier(pixels), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_torch_without_these_operators_is_told(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_convolution_weight'")

    monkeypatch.setattr(PackedConvolution, "__init__", missing)
    torch.manual_seed(0)
    fast = make_fast(classifier_of(timm.create_model("resnet18", num_classes=10)), torch.rand(2, 3, 64, 64))
    assert "no attribute '_reorder_convolution_weight'" in fast.left_out[0]
    assert PackedConvolution not in kinds(fast)
