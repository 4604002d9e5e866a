"""1 x 1 convolutions in blocks of rows, and by hand."""

from __future__ import annotations

import pytest
import torch
from zoo.both_ways import assert_same
from zoo.kernels.compiler import convolution, needs_compiler

from simhpc.zoo.fused import ConvReLU
from simhpc.zoo.kernels.convolution import KernelConvolution
from simhpc.zoo.kernels.library import Around, library
from simhpc.zoo.kernels.pointwise import Pointwise


@needs_compiler
@pytest.mark.parametrize("channels", [16, 512, 1024, 1040])  # the last two are copied
@pytest.mark.parametrize("side", [1, 3, 23])  # fewer pixels than a tile has rows, some more, more than a block
@pytest.mark.parametrize("n_threads", [1, 3])
def test_in_blocks(channels, side, n_threads):
    layer = ConvReLU(convolution(channels, 48, 1))
    other = KernelConvolution(layer.convolution, Pointwise, is_relu=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        assert_same(layer, other, torch.randn(1, channels, side, side), torch.randn(1, 48, side, side))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_by_hand():
    """Every output channel sees twice its own input and the one before."""
    weight = 2 * torch.eye(16) + torch.eye(16).roll(1, 0)
    x = torch.zeros(1, 16, 1, 2).to(memory_format=torch.channels_last)
    x[0, 3, 0, 0], x[0, 15, 0, 1] = 1, -10
    made = torch.full_like(x, torch.nan)
    bias = torch.arange(16.0)
    Pointwise(weight[:, :, None, None])(x, made, Around(bias=bias, is_relu=True))
    expected = bias.repeat(2, 1)
    expected[0, 3], expected[0, 4], expected[1, 15], expected[1, 0] = 5, 5, 0, 0
    assert torch.equal(made[0, :, 0].T, expected)


@needs_compiler
def test_no_memory_for_a_copy(monkeypatch):
    class Full:
        def __getattr__(self, name):
            return (lambda *given: 0) if name == "simhpc_pointwise" else getattr(library.__wrapped__(), name)

    layer = convolution(16, 16, 1)
    other = KernelConvolution(layer, Pointwise, is_relu=False)
    monkeypatch.setattr("simhpc.zoo.kernels.pointwise.library", Full)
    with pytest.raises(MemoryError, match="copy"):
        other(torch.zeros(1, 16, 2, 2))
