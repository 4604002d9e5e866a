"""Convolutions by kernels compute the same, forwards and backwards, with and without what follows them."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo.both_ways import assert_same, there_and_back
from zoo.kernels.compiler import convolution, needs_compiler
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.fused import ConvReLU
from simhpc.zoo.kernels import pointwise as pointwise_module
from simhpc.zoo.kernels.convolution import KernelConvolution, kernel_convolution, kernel_of, memory_bytes
from simhpc.zoo.kernels.pointwise import Pointwise
from simhpc.zoo.kernels.winograd import Winograd
from simhpc.zoo.timm_import import timm

KERNELS = {1: Pointwise, 3: Winograd}

DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)


def classifier_of(model, **options):
    return PixelClassifier(with_statistics(model).float(), DATA, **options)


def by_kernel(layer):
    is_relu = isinstance(layer, ConvReLU)
    inner = layer.convolution if is_relu else layer
    return KernelConvolution(inner, KERNELS[inner.kernel_size[0]], is_relu=is_relu)


@needs_compiler
@given(
    kernel=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    batch=st.integers(1, 4),
    channels=st.sampled_from([16, 48]),
    out_channels=st.sampled_from([16, 32, 48]),
    bias=st.booleans(),
)
def test_the_same_as_the_convolution(kernel, size, batch, channels, out_channels, bias):
    """Of one batch, of another, and of the first again."""
    layer = convolution(channels, out_channels, kernel, bias=bias)
    other = by_kernel(layer)
    x = torch.randn(batch, channels, *size).to(memory_format=torch.channels_last)
    assert_same(layer, other, x)
    assert_same(layer, other, torch.randn(2, channels, size[1], size[0]))
    assert_same(layer, other, x)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("is_large", [False, True])  # streamed past the caches
@pytest.mark.parametrize("has_residual", [False, True])
def test_the_same_with_what_follows(kernel, is_large, has_residual):
    channels, out_channels, side = (64, 112, 57) if is_large else (48, 80, 9)
    layer = ConvReLU(convolution(channels, out_channels, kernel))
    given = [torch.randn(7, n, side, side + 1) for n in ((channels, out_channels) if has_residual else (channels,))]
    found = there_and_back(by_kernel(layer), *given)
    assert 0.3 < float((found[0] == 0).double().mean()) < 0.7
    assert_same(layer, by_kernel(layer), *given)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [16, 1040])
@pytest.mark.parametrize("has_residual", [False, True])
def test_a_relu_lets_no_gradient_through_where_it_made_0(kernel, channels, has_residual):
    """The squares' sum has none there anyway. What is within rounding of 0 may pass or not, and is left out here."""
    convolved = convolution(32, channels, kernel)
    given = [torch.randn(3, n, 10, 9) for n in ((32, channels) if has_residual else (32,))]
    exact = copy.deepcopy(convolved).double()
    doubles = [x.double().requires_grad_(True) for x in given]
    before = sum(doubles[1:], exact(doubles[0]))
    arriving = torch.randn(before.shape, dtype=torch.float64) * (before.abs() > 1e-4)
    expected = torch.autograd.grad(before.relu(), doubles, arriving)
    variables = [x.requires_grad_(True) for x in given]
    found = torch.autograd.grad(by_kernel(ConvReLU(convolved))(*variables), variables, arriving.float())
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_residual_alone(kernel):
    """Without a ReLU, in orders of the elements that C does not read."""
    layer = convolution(16, 32, kernel)
    x, residual = torch.randn(2, 16, 7, 5), torch.randn(2, 32, 5, 7).mT
    for found, expected in zip(
        there_and_back(by_kernel(layer), x, residual),
        there_and_back(lambda x, residual: layer(x) + residual, x, residual),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_was_saved_may_come_back_in_another_order(kernel):
    layer = ConvReLU(convolution(16, 16, kernel))
    given = torch.randn(2, 16, 6, 4), torch.randn(2, 16, 6, 4)
    expected = there_and_back(layer, *given)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved.contiguous(), lambda saved: saved):
        found = there_and_back(by_kernel(layer), *given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_what_is_no_number_stays(kernel):
    """As in torch, and only in the image where it is."""
    x = torch.randn(2, 16, 8, 8)
    x[1, 3, 4, 4] = torch.nan
    layer = ConvReLU(convolution(16, 16, kernel))
    found, expected = there_and_back(by_kernel(layer), x), there_and_back(layer, x)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours[0].isnan(), theirs[0].isnan())
        assert not ours[0].isnan().any()
        assert (theirs[1].isnan() <= ours[1].isnan()).all()


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_batch_of_none(kernel):
    made = by_kernel(convolution(kernel=kernel))(torch.zeros(0, 64, 8, 8))
    assert made.shape == (0, 64, 8, 8)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whatever_dtype_torch_makes_tensors_of(kernel, dtype):
    """C writes float32, and would write it past a tensor of another."""
    layer, x = convolution(kernel=kernel), torch.randn(2, 64, 8, 8)
    expected = layer(x)
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            made = by_kernel(layer)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_bias_that_lies_apart(kernel):
    layer = convolution(kernel=kernel)
    layer.bias = nn.Parameter(torch.arange(128.0)[::2], requires_grad=False)
    assert_same(layer, by_kernel(layer), torch.randn(2, 64, 8, 8))


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_gradient_that_is_one_number(kernel):
    """As a mean gives it, with strides of 0."""
    layer = convolution(kernel=kernel)
    variable = torch.randn(2, 64, 8, 8).requires_grad_(True)
    found, expected = (torch.autograd.grad(each(variable).mean(), variable)[0] for each in (by_kernel(layer), layer))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_same_bits_whatever_threads_there_are(kernel):
    layer = ConvReLU(convolution(kernel=kernel))
    other, given = by_kernel(layer), (torch.randn(3, 64, 15, 16), torch.randn(3, 64, 15, 16))
    first = there_and_back(other, *given)
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 3, 5, n_threads):
            torch.set_num_threads(n)
            assert all(map(torch.equal, there_and_back(other, *given), first))
    finally:
        torch.set_num_threads(n_threads)


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    ("x", "residual", "said"),
    [
        (torch.zeros(1, 64, 8, 8, dtype=torch.float64), None, "torch.float64"),
        (torch.zeros(1, 64, 8, 8, dtype=torch.bfloat16), None, "torch.bfloat16"),
        (torch.zeros(1, 32, 8, 8), None, "(1, 32, 8, 8)"),
        (torch.zeros(1, 64, 8, 8, device="meta"), None, "on the CPU"),
        (torch.zeros(1, 64, 8, 8), torch.zeros(1, 64, 8, 1), "(1, 64, 8, 1)"),
        (torch.zeros(1, 64, 8, 8), torch.zeros(1, 64, 8, 8, dtype=torch.float64), "torch.float64"),
    ],
)
def test_what_its_kernels_cannot_read_is_refused(kernel, x, residual, said):
    with pytest.raises(RuntimeError) as raised:
        by_kernel(convolution(kernel=kernel))(x, residual)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("layer", "size", "kernel"),
    [
        (convolution(), (56, 56), Winograd),
        (convolution(512, 512), (7, 7), Winograd),
        (convolution(), (8, 20), Winograd),
        (convolution(), (10, 10), Winograd),
        (convolution(), (9, 9), None),  # 9 tiles for 5
        (convolution(), (2, 2), None),
        (convolution(32, 64), (56, 56), None),
        (convolution(64, 72), (56, 56), None),
        (convolution(stride=2), (56, 56), None),
        (convolution(kernel=(3, 1)), (56, 56), None),
        (convolution(padding=0), (56, 56), None),
        (convolution(padding="same"), (56, 56), None),
        (convolution(dilation=2), (56, 56), None),
        (convolution(groups=2), (56, 56), None),
        (convolution(padding_mode="circular"), (56, 56), None),
        (convolution(kernel=1), (16, 16), Pointwise),
        (convolution(kernel=1), (15, 17), None),  # 4,096 weights for 255 pixels are less than 2^20
        (convolution(512, 2048, 1), (1, 1), Pointwise),
        (convolution(64, 72, 1), (56, 56), None),
        (convolution(72, 64, 1), (56, 56), None),
        (convolution(kernel=1, padding=1), (56, 56), None),
        (convolution(kernel=1, stride=2), (56, 56), None),
        (convolution(kernel=1, groups=2), (56, 56), None),
        (nn.Linear(64, 64), (56, 64), None),
    ],
)
def test_where_it_gains(monkeypatch, layer, size, kernel):
    monkeypatch.setattr(pointwise_module, "is_amd", lambda: True)
    assert kernel_of(layer, torch.Size([2, 64, *size])) is kernel
    monkeypatch.setattr(pointwise_module, "is_amd", lambda: False)
    assert kernel_of(layer, torch.Size([2, 64, *size])) is (None if kernel is Pointwise else kernel)


def test_nothing_is_made_of_what_does_not_gain():
    shape = torch.Size([2, 64, 9, 9])
    assert kernel_convolution(convolution(), shape, shape) is None
    assert kernel_convolution(ConvReLU(convolution()), shape, shape) is None


@needs_compiler
@pytest.mark.parametrize("is_amd", [False, True])
def test_models_are_given_them_where_they_gain(monkeypatch, is_amd):
    """A ResNet-26 for 64 pixels has 16, 8, 4 and 2 a side in its stages, of which three gain in the 3 x 3 ones.

    Its bottlenecks are twice 1 x 1, 3 x 3, 1 x 1 in each stage; strides are of the 3 x 3 ones, and of the 1 x 1 of
    shortcuts, but for the first stage's.
    """
    monkeypatch.setattr(pointwise_module, "is_amd", lambda: is_amd)
    torch.manual_seed(0)
    model, pixels = timm.create_model("resnet26", num_classes=10), torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(model), pixels)
    made = [module for module in fast.classifier.modules() if isinstance(module, KernelConvolution)]
    by_kind = {kind: sum(isinstance(module.there, kind) for module in made) for kind in (Pointwise, Winograd)}
    assert by_kind == {Pointwise: 17 if is_amd else 0, Winograd: 4}
    # Three are of shortcuts or end a block in front of no ReLU that torch would take alone.
    assert sum(module.is_relu for module in made) == len(made) - is_amd
    assert f"{len(made)} convolution(s) by kernels in C" in fast.done
    assert fast.left_out == ()
    for without in (
        make_fast(classifier_of(model), pixels, is_compiled=True),
        make_fast(classifier_of(model), pixels, is_portable=True),
        make_fast(classifier_of(model, in_bfloat16=True), pixels),
        make_fast(classifier_of(model), pixels, torch.device("meta")),
    ):
        assert KernelConvolution not in {type(module) for module in without.classifier.modules()}
        assert ConvReLU not in {type(module) for module in without.classifier.modules()}


class Named(nn.Module):
    """Used with a named input, with one image that is no batch, and hooked."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = (convolution() for _ in range(4))
        self.fourth.register_forward_hook(lambda *arguments: 1.05 * arguments[-1])

    def forward(self, x):
        return self.fourth(self.third(self.second(input=self.first(x))[0])[None])


def test_memory():
    """64 x 64 filters are 36 numbers each for both directions; 120 tiles of 64 channels are at work."""
    filters, at_work = 64 * 64 * 2 * 36 * 4, 120 * 36 * (64 + 64) * 4
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), convolution(), nn.Conv2d(64, 64, 3, stride=2))
    assert memory_bytes(network, torch.zeros(2, 3, 16, 16)) == filters + at_work
    assert memory_bytes(network.to("meta"), torch.zeros(2, 3, 9, 9, device="meta")) == 0
    assert memory_bytes(nn.Sequential(convolution(), convolution()), torch.zeros(1, 64, 8, 8)) == 2 * filters + at_work
    assert memory_bytes(nn.Sequential(convolution(kernel=1)), torch.zeros(1, 64, 8, 8)) == 0
    assert memory_bytes(Named(), torch.zeros(1, 64, 8, 8)) == filters + at_work
