"""Winograd's convolutions compute the same, forwards and backwards."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo.both_ways import assert_same, there_and_back
from zoo.norms import with_statistics

from simhpc.study import DataConfig
from simhpc.zoo import winograd
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.packed import PackedConvolution
from simhpc.zoo.timm_import import timm
from simhpc.zoo.winograd import WinogradConvolution, gains, memory_bytes

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc)")

DATA = DataConfig(input_size_px=64, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), interpolation="bilinear", crop_pct=1.0)


def classifier_of(model, **options):
    return PixelClassifier(with_statistics(model).float(), DATA, **options)


def convolution(channels=64, out_channels=64, kernel=3, **options):
    torch.manual_seed(0)
    return nn.Conv2d(channels, out_channels, kernel, **{"padding": 1, **options}).requires_grad_(False)


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


class Spy:
    """The compiled transforms, with the turns that they were called for."""

    def __init__(self):
        self.compiled, self.turns = winograd._transforms(), []

    def simhpc_tiles(self, *given):
        self.turns.append(given[2:4])
        self.compiled.simhpc_tiles(*given)

    def simhpc_pixels(self, *given):
        assert given[3:5] == self.turns[-1]
        self.compiled.simhpc_pixels(*given)


@needs_compiler
@pytest.mark.parametrize(
    ("n_fitting", "turns"),
    [
        (1, [(row, row + 1) for row in range(35)]),  # one row of tiles, however long it is
        (12, [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24), (24, 28), (28, 32), (32, 35)]),
        (90, [(0, 18), (18, 35)]),
        (1000, [(0, 35)]),
    ],
)
def test_in_turns(monkeypatch, n_fitting, turns):
    """18 x 10 pixels are 5 rows of 3 tiles; 7 images have 35. What lies outside of the last turn is not touched."""
    monkeypatch.setattr(winograd, "_n_fitting", lambda *_: n_fitting)
    spy = Spy()
    monkeypatch.setattr(winograd, "_transforms", lambda: spy)
    layer = convolution(16, 32)
    x = torch.randn(8, 16, 18, 10).to(memory_format=torch.channels_last)
    x[7:] = torch.nan
    assert_same(layer, WinogradConvolution(layer), x[:7])
    assert spy.turns == 2 * turns  # there and back


@pytest.mark.parametrize(
    ("channels", "n_fitting"),
    [((48, 64), 151), ((64, 64), 113), ((128, 128), 128), ((512, 2048), 256), ((2048, 64), 64)],
)
def test_tiles_at_a_time(channels, n_fitting):
    """2^20 bytes hold 2^20 / (36 * 4 * channels); as many as filters are worth it in any case, up to 256."""
    assert winograd._n_fitting(*channels) == n_fitting


@needs_compiler
def test_a_batch_of_none():
    made = WinogradConvolution(convolution())(torch.zeros(0, 64, 8, 8))
    assert made.shape == (0, 64, 8, 8)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whatever_dtype_torch_makes_tensors_of(dtype):
    """C writes float32, and would write it past a tensor of another."""
    layer, x = convolution(), torch.randn(2, 64, 8, 8)
    expected = layer(x)
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            made = WinogradConvolution(layer)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_bias_that_lies_apart():
    layer = convolution()
    layer.bias = nn.Parameter(torch.arange(128.0)[::2], requires_grad=False)
    assert_same(layer, WinogradConvolution(layer), torch.randn(2, 64, 8, 8))


@needs_compiler
def test_filters_are_transformed_again_only_for_another_number_of_tiles(monkeypatch):
    layer = convolution()
    by_winograd = WinogradConvolution(layer)
    for batch, side in ((4, 8), (1, 8), (4, 7), (1, 13)):  # 16, 4, 16 and 16 tiles
        by_winograd(torch.randn(batch, 64, side, side))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "kron", None)
        by_winograd(torch.randn(4, 64, 8, 8))
    assert_same(layer, by_winograd, torch.randn(7, 64, 8, 8))


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


THREADS = """
from pathlib import Path
from simhpc.zoo import winograd
assert hasattr(winograd._transforms(), "GOMP_parallel")
print({line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line})
"""


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_its_threads_are_those_of_torch():
    """A second library would wait on the same cores; scikit-learn brings its own, so that this asks a new process."""
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    (library,) = ast.literal_eval(done.stdout)
    assert Path(library).parents[1] == Path(torch.__file__).parent


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


def test_a_compiler_that_hangs(monkeypatch, tmp_path):
    (tmp_path / "cc").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(winograd, "_LIMIT_S", 0.2)
    with pytest.raises(OSError, match=r"/cc has not translated winograd.c in 0.2 s"):
        winograd._transforms.__wrapped__()


class Named(nn.Module):
    """Used with a named input, with one image that is no batch, and hooked."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third, self.fourth = (convolution() for _ in range(4))
        self.fourth.register_forward_hook(lambda *arguments: 1.05 * arguments[-1])

    def forward(self, x):
        return self.fourth(self.third(self.second(input=self.first(x))[0])[None])


def test_memory():
    """64 x 64 filters of 9 taps are 36 numbers more for each direction; 113 tiles of 64 channels are at work."""
    filters, at_work = 64 * 64 * 2 * 36 * 4, 113 * 36 * (64 + 64) * 4
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), convolution(), nn.Conv2d(64, 64, 3, stride=2))
    assert memory_bytes(network, torch.zeros(2, 3, 16, 16)) == filters + at_work
    assert memory_bytes(network.to("meta"), torch.zeros(2, 3, 9, 9, device="meta")) == 0
    assert memory_bytes(nn.Sequential(convolution(), convolution()), torch.zeros(1, 64, 8, 8)) == 2 * filters + at_work
    assert memory_bytes(Named(), torch.zeros(1, 64, 8, 8)) == filters + at_work
