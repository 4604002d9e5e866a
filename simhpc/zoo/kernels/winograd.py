"""3 x 3 convolutions with a quarter of the products (Winograd's F(4 x 4, 3 x 3)).

Lavin & Gray 2015, arXiv 1509.09308: pixels and filters are transformed such that a tile of 4 x 4 outputs takes 36
products for a pair of channels in place of 144.

Rounding errors are three to six times those of oneDNN's direct sum: 2e-6 to 5e-6 of the result in single precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from simhpc.zoo.kernels.library import STREAMED_BYTES, Around, address, in_panels, library

_TILE, _POINTS = 4, 36
"""Pixels along a tile, and numbers that stand for it between the transforms."""

_FILTERS = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
"""The matrix G of the paper (section 4.3)."""

_SHARED_TILES = 120
"""That all threads compute together where filters are large; else each takes as many as its registers hold."""

_LARGE_FILTERS_BYTES = 2**24
"""Those that are read from memory each time, which takes longer than the products of a few tiles."""

_FILTERS_AT_ONCE = 2**13
"""That are transformed in double precision: memory that is freed is kept (`stages.runtime`)."""

_FEWEST_CHANNELS = 48
"""On either side. With fewer, the transforms take what the products save."""

_MOST_PRODUCTS = 0.4
"""Of those of the direct sum: a quarter where tiles fill the image, more where they reach beyond it."""


class Winograd:
    """A 3 x 3 convolution (`convolution.Kernel`).

    Args:
        weight: float32 (K, C, 3, 3).
    """

    def __init__(self, weight: Tensor) -> None:
        self.out_channels, self.channels = weight.shape[:2]
        self._filters = in_panels(_transformed(weight))

    def __call__(self, x: Tensor, made: Tensor, around: Around) -> None:
        batch, channels, height, width = x.shape
        is_shared, n_threads = _is_shared(channels, self.out_channels), torch.get_num_threads()
        room = _SHARED_TILES if is_shared else library().simhpc_rows()
        n_tiles = room if is_shared else room * n_threads
        buffers = x.new_empty(n_tiles * _POINTS * (channels + self.out_channels))
        tensors = (x, around.gate, around.gated, self._filters, around.bias, around.residual, made, buffers)
        sizes = (batch, height, width, channels, self.out_channels, room, n_threads)
        how = (is_shared, around.is_relu, made.nbytes > STREAMED_BYTES)
        library().simhpc_winograd(*map(address, tensors), *sizes, *how)


def winograd_gains(convolution: Any, shape: torch.Size) -> bool:
    """Whether a convolution of this kernel size is faster so, of an input of this shape (B, C, H, W).

    Args:
        convolution: see `convolution.kernel_of`.
    """
    return (
        min(convolution.in_channels, convolution.out_channels) >= _FEWEST_CHANNELS
        and _POINTS * _n_tiles(shape[2]) * _n_tiles(shape[3]) <= _MOST_PRODUCTS * 9 * shape[2] * shape[3]
    )


def kept_bytes(channels: int, out_channels: int) -> int:
    """Of the transformed filters."""
    return _POINTS * channels * out_channels * 4


def at_work_bytes(channels: int, out_channels: int) -> int:
    """Of transformed pixels and their products at a time, of a dozen threads at most."""
    return _SHARED_TILES * _POINTS * (channels + out_channels) * 4


def _is_shared(channels: int, out_channels: int) -> bool:
    return kept_bytes(channels, out_channels) > _LARGE_FILTERS_BYTES


def _transformed(weight: Tensor) -> Tensor:
    """Filters (K, C, 3, 3) to (36, K, C)."""
    taps, g = weight.reshape(-1, 9), torch.tensor(_FILTERS, dtype=torch.float64, device="cpu")
    points = taps.new_empty((_POINTS, len(taps)))
    both = torch.kron(g, g)
    for first in range(0, len(taps), _FILTERS_AT_ONCE):
        some = slice(first, first + _FILTERS_AT_ONCE)
        points[:, some] = (both @ taps[some].double().T).to(points.dtype)
    return points.view(_POINTS, *weight.shape[:2])


def _n_tiles(side: int) -> int:
    """Along a side of so many pixels."""
    return math.ceil(side / _TILE)
