"""3 x 3 convolutions with a quarter of the products, for CPUs (Winograd's F(4 x 4, 3 x 3)).

Lavin & Gray 2015, arXiv 1509.09308: pixels and filters are transformed such that a tile of 4 x 4 outputs takes 36
products for a pair of channels in place of 144. The transforms are a few lines of C, which the machine's compiler
translates for its very processor when a process first needs them; the products are oneDNN's, with weights in its order
(`packed`). The input gradient of such a convolution is one itself, of filters that are turned around.

Rounding errors are three to six times those of oneDNN's direct sum: 2e-6 to 5e-6 of the result in single precision.
"""

from __future__ import annotations

import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simhpc.zoo.substitutes import watch

_TILE, _POINTS = 4, 36
"""Pixels along a tile, and numbers that stand for it between the transforms."""

_LANES = 16
"""Channels that the transforms compute at a time."""

_FILTERS = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
"""The matrix G of the paper (section 4.3)."""

_CACHE_BYTES = 2**20
"""What transformed pixels may take at a time, to be in a cache when they are needed again."""

_MOST_FILTERS = 256
"""As many tiles as there are filters up to this are computed at a time in any case: with fewer, reading the filters
takes longer than the products."""

_FILTERS_AT_ONCE = 2**13
"""That are transformed in double precision: memory that is freed is kept (`stages.runtime`)."""

_PRODUCTS: tuple[Any, ...] = ((0, 0), (1, 1), (1, 1), _POINTS, "none", [], "")
"""Padding, stride, dilation and groups of a 1 x 1 convolution that is the products of all points, and nothing else."""

_LIMIT_S = 60
"""For the compiler, which needs a fifth of a second."""

_FEWEST_CHANNELS = 48
"""On either side. With fewer, the transforms take what the products save."""

_MOST_PRODUCTS = 0.4
"""Of those of the direct sum: a quarter where tiles fill the image, more where they reach beyond it."""


class WinogradConvolution(nn.Module):
    """A 3 x 3 convolution (B, C, H, W) to (B, K, H, W) of which only the input has a gradient.

    Args:
        convolution: see `gains`; frozen, float32, on the CPU.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self.bias = None if bias is None else bias.detach().contiguous()
        self.forwards, self.backwards = _Direction(weight, is_turned=False), _Direction(weight, is_turned=True)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Convolution.apply(x, self)  # type: ignore[no-untyped-call]
        return made


def winograd_convolution(layer: Any, shape: torch.Size, _: torch.Size) -> WinogradConvolution | None:
    """The convolution by Winograd's algorithm, if that gains (`substitutes.Make`).

    When it is first used it raises an OSError if there is no compiler, or what that makes cannot be used.
    """
    return WinogradConvolution(layer) if gains(layer, shape) else None


def gains(layer: Any, shape: torch.Size) -> bool:
    """Whether it is a convolution that is faster so, of an input of this shape (B, C, H, W) in channels_last order."""
    return (
        type(layer) is nn.Conv2d
        and len(shape) == 4
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= _FEWEST_CHANNELS
        and layer.in_channels % _LANES == layer.out_channels % _LANES == 0
        and _POINTS * _n_tiles(shape[2]) * _n_tiles(shape[3]) <= _MOST_PRODUCTS * 9 * shape[2] * shape[3]
    )


def memory_bytes(model: nn.Module, inputs: Tensor) -> int:
    """What the convolutions of a model that gain take beside their weights, inputs and results.

    Args:
        model: float32; may be on the meta device.
        inputs: what it takes.
    """
    kept: dict[nn.Module, int] = {}
    at_work = [0]

    def look(layer: Any, x: Tensor, _: Tensor) -> None:
        if layer not in kept:
            kept[layer] = layer.weight.nbytes * 2 * _POINTS // 9 if gains(layer, x.shape) else 0
        if kept[layer]:
            sides = (layer.in_channels, layer.out_channels)
            most = max(_n_fitting(*sides), _n_fitting(*reversed(sides)))
            at_work.append(most * _POINTS * sum(sides) * x.element_size())

    watch(model, inputs, look)
    return sum(kept.values()) + max(at_work)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, convolution: WinogradConvolution) -> Tensor:
        ctx.convolution = convolution
        return convolution.forwards(x, convolution.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None]:
        return ctx.convolution.backwards(arriving[0], None), None


class _Direction:
    """One of the two convolutions of a layer: its own, or that of the gradient, with its filters turned around.

    Args:
        weight: (K, C, 3, 3) of the layer.
    """

    def __init__(self, weight: Tensor, *, is_turned: bool) -> None:
        self._weight, self._is_turned = weight, is_turned
        self._channels, self._out_channels = weight.shape[:2] if is_turned else (weight.shape[1], weight.shape[0])
        self._packed, self._n_tiles = weight, 0

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        channels, out_channels = self._channels, self._out_channels
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[1] != channels:
            raise RuntimeError(f"float32 (B, {channels}, H, W) on the CPU is wanted, not {x.dtype} {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        batch, _, height, width = x.shape
        # Whatever torch's defaults are: C writes there.
        made = torch.empty(
            (batch, out_channels, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        if not made.numel():
            return made
        n_rows, columns = batch * _n_tiles(height), _n_tiles(width)
        n_turns = math.ceil(n_rows * columns / _n_fitting(channels, out_channels))
        at_once = math.ceil(n_rows / n_turns)
        filters = self._filters(at_once * columns)
        points = x.new_empty((1, at_once * columns, 1, _POINTS * channels)).permute(0, 3, 1, 2)
        transforms, sides = _transforms(), (height, width)
        for first in range(0, n_rows, at_once):
            # In the last turn the end of `points` may be of the turn before.
            rows = (first, min(first + at_once, n_rows))
            transforms.simhpc_tiles(x.data_ptr(), points.data_ptr(), *rows, *sides, channels)
            products = torch.ops.mkldnn._convolution_pointwise(points, filters, None, *_PRODUCTS)
            products = products.contiguous(memory_format=torch.channels_last)
            added = None if bias is None else bias.data_ptr()
            transforms.simhpc_pixels(products.data_ptr(), added, made.data_ptr(), *rows, *sides, out_channels)
        return made

    def _filters(self, n_tiles: int) -> Tensor:
        """Transformed, in the order that oneDNN chooses by the number of tiles, which is the same in most passes.

        Products in the order for a few tiles take thirty times as long for many, and the other way round.
        """
        if n_tiles != self._n_tiles:
            self._packed = self._weight  # not both orders in memory
            weight = self._weight.transpose(0, 1).flip(2, 3) if self._is_turned else self._weight
            taps, g = weight.reshape(-1, 9), torch.tensor(_FILTERS, dtype=torch.float64, device="cpu")
            points = taps.new_empty((_POINTS * self._out_channels, self._channels, 1, 1))
            into, both = points.view(_POINTS, -1), torch.kron(g, g)
            for first in range(0, len(taps), _FILTERS_AT_ONCE):
                some = slice(first, first + _FILTERS_AT_ONCE)
                into[:, some] = both @ taps[some].double().T
            shape = (1, _POINTS * self._channels, n_tiles, 1)
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(points, *_PRODUCTS[:4], shape)
            self._n_tiles = n_tiles
        return self._packed


def _n_fitting(channels: int, out_channels: int) -> int:
    """Tiles that are computed at a time."""
    return max(_CACHE_BYTES // (_POINTS * channels * 4), min(out_channels, _MOST_FILTERS))


def _n_tiles(side: int) -> int:
    """Along a side of so many pixels."""
    return math.ceil(side / _TILE)


@functools.cache
def _transforms() -> Any:
    """winograd.c, translated for this processor; its threads are torch's own, whose library is in the process."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise OSError("there is no C compiler (cc)")
    source = Path(__file__).with_name("winograd.c")
    with tempfile.TemporaryDirectory(prefix="simhpc-", ignore_cleanup_errors=True) as folder:
        library = Path(folder) / "winograd.so"
        command = [compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", str(source), "-o", str(library)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"{compiler} has not translated {source.name} in {_LIMIT_S} s") from None
        if done.returncode:
            raise OSError(f"{compiler} cannot translate {source.name}: {done.stderr.strip()}")
        found = ctypes.CDLL(str(library))
    found.simhpc_tiles.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 5
    found.simhpc_pixels.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 5
    return found
