"""Winograd's convolutions compute the same, forwards and backwards."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo import winograd
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.packed import PackedConvolution
from simhpc.zoo.timm_import import timm
from simhpc.zoo.winograd import WinogradConvolution, gains, kept_bytes

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc)")

DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)


def classifier_of(model, **options):
    return PixelClassifier(with_statistics(model).float(), DATA, **options)


def convolution(channels=64, out_channels=64, kernel=3, **options):
    torch.manual_seed(0)
    return nn.Conv2d(channels, out_channels, kernel, **{"padding": 1, **options}).requires_grad_(False)


def there_and_back(layer, x):
    """What comes out, and the gradient of its squares' sum."""
    variable = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    made = layer(variable)
    return made.detach(), torch.autograd.grad(made.square().sum(), variable)[0]


def assert_same(layer, winograd_layer, x):
    exact = there_and_back(copy.deepcopy(layer).double(), x.double())
    for found, expected in zip(there_and_back(winograd_layer, x), exact, strict=True):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm().clamp_(min=1e-30)) < 1e-5


@needs_compiler
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    batch=st.integers(1, 4),
    channels=st.sampled_from([16, 48]),
    out_channels=st.sampled_from([16, 32]),
    bias=st.booleans(),
)
def test_the_same_as_the_convolution(size, batch, channels, out_channels, bias):
    """Whatever of the last tiles lies outside the image; of one batch, of another, and of the first again."""
    layer = convolution(channels, out_channels, bias=bias)
    by_winograd = WinogradConvolution(layer)
    x = torch.randn(batch, channels, *size).to(memory_format=torch.channels_last)
    assert_same(layer, by_winograd, x)
    assert_same(layer, by_winograd, torch.randn(2, channels, size[1], size[0]))
    assert_same(layer, by_winograd, x)


@needs_compiler
@pytest.mark.parametrize("cache_bytes", [1, 3 * 5 * 36 * 16 * 4, 2**30])
def test_in_turns(monkeypatch, cache_bytes):
    """15 tiles for 5 rows and 3 columns in each of 7 images: in turns of as many as filters, of 15, and in one."""
    monkeypatch.setattr(winograd, "_CACHE_BYTES", cache_bytes)
    layer = convolution(16, 16)
    assert_same(layer, WinogradConvolution(layer), torch.randn(7, 16, 18, 10))


@needs_compiler
def test_by_hand():
    """One pixel of 1 in the third channel, on the border between two tiles: around it lie the filters' taps."""
    layer = convolution(16, 16)
    x = torch.zeros(1, 16, 8, 8)
    x[0, 2, 3, 4] = 1
    made = WinogradConvolution(layer)(x) - layer.bias.view(1, 16, 1, 1)
    expected = torch.zeros_like(made)
    expected[0, :, 2:5, 3:6] = layer.weight[:, 2].flip(1, 2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


@needs_compiler
def test_a_gradient_that_is_one_number():
    """As a mean gives it, with strides of 0."""
    layer = convolution()
    variable = torch.randn(2, 64, 8, 8).requires_grad_(True)
    found, expected = (
        torch.autograd.grad(each(variable).mean(), variable)[0] for each in (WinogradConvolution(layer), layer)
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


@needs_compiler
def test_twice_the_same_bits_and_one_thread_the_same_numbers():
    layer = convolution()
    by_winograd, x = WinogradConvolution(layer), torch.randn(3, 64, 16, 16)
    first, second = there_and_back(by_winograd, x), there_and_back(by_winograd, x)
    assert all(map(torch.equal, first, second))
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = there_and_back(by_winograd, x)
        torch.set_num_threads(3)
        assert_same(layer, by_winograd, x)
    finally:
        torch.set_num_threads(n_threads)
    for found, expected in zip(alone, first, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_its_threads_are_those_of_torch():
    """A second library of threads in the process would wait on the same cores."""
    WinogradConvolution(convolution())
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
    assert len(mapped) == 1


@needs_compiler
@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(1, 64, 8, 8, dtype=torch.float64), "torch.float64"),
        (torch.zeros(1, 64, 8, 8, dtype=torch.bfloat16), "torch.bfloat16"),
        (torch.zeros(1, 32, 8, 8), "(1, 32, 8, 8)"),
        (torch.zeros(1, 64, 8, 8, device="meta"), "on the CPU"),
    ],
)
def test_what_its_kernels_cannot_read_is_refused(x, said):
    with pytest.raises(RuntimeError) as raised:
        WinogradConvolution(convolution())(x)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("layer", "size", "gain"),
    [
        (convolution(), (56, 56), True),
        (convolution(512, 512), (7, 7), True),
        (convolution(), (8, 20), True),
        (convolution(), (10, 10), True),
        (convolution(), (9, 9), False),  # 9 tiles for 5
        (convolution(), (2, 2), False),
        (convolution(32, 64), (56, 56), False),
        (convolution(64, 72), (56, 56), False),
        (convolution(stride=2), (56, 56), False),
        (convolution(kernel=(3, 1)), (56, 56), False),
        (convolution(padding=0), (56, 56), False),
        (convolution(padding="same"), (56, 56), False),
        (convolution(dilation=2), (56, 56), False),
        (convolution(groups=2), (56, 56), False),
        (convolution(padding_mode="circular"), (56, 56), False),
        (nn.Linear(64, 64), (56, 64), False),
    ],
)
def test_where_it_gains(layer, size, gain):
    assert gains(layer, torch.Size([2, 64, *size])) is gain


@needs_compiler
def test_models_are_given_them_where_they_gain():
    """A ResNet-18 for 64 pixels has 16, 8, 4 and 2 a side in its stages, of which three gain."""
    torch.manual_seed(0)
    model, pixels = timm.create_model("resnet18", num_classes=10), torch.rand(2, 3, 64, 64)
    fast = make_fast(classifier_of(model), pixels)
    names = {name for name, module in fast.classifier.model.named_modules() if isinstance(module, WinogradConvolution)}
    in_blocks = {"layer1": "0.conv1 0.conv2 1.conv1 1.conv2", "layer2": "0.conv2 1.conv1 1.conv2"}
    in_blocks["layer3"] = in_blocks["layer2"]
    assert names == {f"{stage}.{layer}" for stage, layers in in_blocks.items() for layer in layers.split()}
    assert "10 convolution(s) by Winograd's algorithm" in fast.done
    assert fast.left_out == ()
    for without in (
        make_fast(classifier_of(model), pixels, is_compiled=True),
        make_fast(classifier_of(model), pixels, is_portable=True),
        make_fast(classifier_of(model, in_bfloat16=True), pixels),
        make_fast(classifier_of(model), pixels, torch.device("meta")),
    ):
        assert WinogradConvolution not in {type(module) for module in without.classifier.modules()}


FAILING = """#!/bin/sh
echo "cc1: this processor is not known" >&2
exit 1
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "there is no C compiler (cc)"),
        (FAILING, "cannot translate winograd.c: cc1: this processor is not known"),
        ("#!/bin/sh\n", "cannot open shared object file"),
    ],
)
def test_without_a_compiler_that_works(monkeypatch, tmp_path, script, reason):
    """torch's convolutions take the places, packed, and the log says why."""
    if script is not None:
        (tmp_path / "cc").write_text(script)
        (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(winograd, "_transforms", winograd._transforms.__wrapped__)
    torch.manual_seed(0)
    fast = make_fast(classifier_of(timm.create_model("resnet18", num_classes=10)), torch.rand(2, 3, 64, 64))
    (left_out,) = fast.left_out
    assert left_out.startswith("convolution(s) by Winograd's algorithm: ")
    assert reason in left_out
    kinds = {type(module) for module in fast.classifier.modules()}
    assert PackedConvolution in kinds
    assert WinogradConvolution not in kinds


def test_what_is_kept_in_memory():
    """64 x 64 filters of 9 taps: turned around, and 36 numbers for each direction; of one layer of the three."""
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), convolution(), nn.Conv2d(64, 64, 3, stride=2))
    assert kept_bytes(network, torch.zeros(2, 3, 16, 16)) == 64 * 64 * (9 + 2 * 36) * 4
    assert kept_bytes(network.to("meta"), torch.zeros(2, 3, 9, 9, device="meta")) == 0
