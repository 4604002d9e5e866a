"""Winograd's algorithm in turns of tiles, and by hand."""

from __future__ import annotations

import pytest
import torch
from zoo.both_ways import assert_same
from zoo.kernels.compiler import convolution, needs_compiler

from simhpc.zoo.kernels import winograd
from simhpc.zoo.kernels.convolution import KernelConvolution
from simhpc.zoo.kernels.winograd import Winograd


@needs_compiler
@pytest.mark.parametrize("n_threads", [1, 3, 40])
@pytest.mark.parametrize("shared_tiles", [None, 14, 35, 105])
@pytest.mark.parametrize("n", [1, 7])
def test_in_turns(monkeypatch, n_threads, shared_tiles, n):
    """18 x 10 pixels are 5 rows of 3 tiles; 7 images have 105, one has fewer than threads. What lies after the last
    image is not touched."""
    if shared_tiles is not None:
        monkeypatch.setattr(winograd, "_SHARED_TILES", shared_tiles)
        monkeypatch.setattr(winograd, "_LARGE_FILTERS_BYTES", 0)
    layer = convolution(16, 32)
    x = torch.randn(n + 1, 16, 18, 10).to(memory_format=torch.channels_last)
    x[n:] = torch.nan
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        assert_same(layer, KernelConvolution(layer, Winograd, is_relu=False), x[:n])
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_large_filters_are_shared():
    """2^24 bytes hold 36 numbers of 2^24 / 144 pairs of channels: 340 x 340, not 352 x 352."""
    assert not winograd._is_shared(340, 340)
    assert winograd._is_shared(352, 352)
    layer = convolution(352, 352)
    assert_same(layer, KernelConvolution(layer, Winograd, is_relu=False), torch.randn(3, 352, 8, 7))


@needs_compiler
def test_by_hand():
    """One pixel of 1 in the third channel, on the border between two tiles: around it lie the filters' taps."""
    layer = convolution(16, 16)
    x = torch.zeros(1, 16, 8, 8)
    x[0, 2, 3, 4] = 1
    made = KernelConvolution(layer, Winograd, is_relu=False)(x) - layer.bias.view(1, 16, 1, 1)
    expected = torch.zeros_like(made)
    expected[0, :, 2:5, 3:6] = layer.weight[:, 2].flip(1, 2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)


def test_the_filters_of_the_paper():
    """A filter of one tap of 1 in the middle makes the outer product of G's middle column (section 4.3)."""
    weight = torch.zeros(2, 1, 3, 3)
    weight[1, 0, 1, 1] = 1
    points = winograd._transformed(weight)
    middle = torch.tensor([0, -1 / 6, 1 / 6, 1 / 12, -1 / 12, 0])
    assert points.shape == (36, 2, 1)
    assert not points[:, 0].any()
    torch.testing.assert_close(points[:, 1, 0], torch.outer(middle, middle).flatten())
