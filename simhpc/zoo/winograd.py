"""3 x 3 convolutions with a quarter of the products, for CPUs (Winograd's F(4 x 4, 3 x 3)).

Lavin & Gray 2015, arXiv 1509.09308: pixels and filters are transformed such that a tile of 4 x 4 outputs takes 36
products for a pair of channels in place of 144. The transforms are a few lines of C, which the machine's compiler
translates for its very processor when a process first needs them; the products are oneDNN's, with weights in its order
(`packed`). The input gradient of such a convolution is one itself, of filters that are turned around.

Rounding errors are three to six times those of the direct sum: 2e-6 to 4e-6 of the result in single precision.
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

_PRODUCTS: tuple[Any, ...] = ((0, 0), (1, 1), (1, 1), _POINTS, "none", [], "")
"""Padding, stride, dilation and groups of a 1 x 1 convolution that is the products of all points, and nothing else."""

_FEWEST_CHANNELS = 48
"""On either side. With fewer, the transforms take what the products save."""

_MOST_PRODUCTS = 0.4
"""Of those of the direct sum: a quarter where tiles fill the image, more where they reach beyond it."""


class WinogradConvolution(nn.Module):
    """A 3 x 3 convolution (B, C, H, W) to (B, K, H, W) of which only the input has a gradient.

    Args:
        convolution: see `gains`; frozen, float32, on the CPU.

    Raises:
        OSError: there is no compiler, or what it makes cannot be used.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.bias = convolution.bias
        weight = convolution.weight.detach()
        self.forwards, self.backwards = _Direction(weight), _Direction(weight.transpose(0, 1).flip(2, 3))
        _transforms()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Convolution.apply(x, self)  # type: ignore[no-untyped-call]
        return made


def winograd_convolution(layer: Any, shape: torch.Size, _: torch.Size) -> WinogradConvolution | None:
    """The convolution by Winograd's algorithm, if that gains (`substitutes.Make`)."""
    return WinogradConvolution(layer) if gains(layer, shape) else None


def gains(layer: Any, shape: torch.Size) -> bool:
    """Whether it is a convolution that is faster so, of an input of this shape (B, C, H, W) in channels_last order."""
    if type(layer) is not nn.Conv2d or layer.kernel_size != (3, 3) or layer.stride != (1, 1):
        return False
    channels, (height, width) = (layer.in_channels, layer.out_channels), shape[2:]
    return (
        layer.padding == (1, 1)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and min(channels) >= _FEWEST_CHANNELS
        and all(n % _LANES == 0 for n in channels)
        and _POINTS * _n_tiles(height) * _n_tiles(width) <= _MOST_PRODUCTS * 9 * height * width
    )


def kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """What the convolutions of a model keep that gain, apart from the weights that they were made of.

    Args:
        model: float32; may be on the meta device.
        inputs: what it takes.
    """
    found: dict[Any, bool] = {}

    def look(layer: nn.Module, arguments: tuple[Any, ...], _: Tensor) -> None:
        found[layer] = gains(layer, arguments[0].shape)

    hooks = [layer.register_forward_hook(look) for layer in model.modules() if type(layer) is nn.Conv2d]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    # Turned around, and transformed for each direction.
    return sum(layer.weight.nbytes * (1 + 2 * _POINTS // 9) for layer, is_one in found.items() if is_one)


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
    """One of the two convolutions of a layer.

    Args:
        weight: (K, C, 3, 3).
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = self._packed = weight
        self._n_tiles = 0

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        out_channels, channels = self._weight.shape[:2]
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[1] != channels:
            raise RuntimeError(f"float32 (B, {channels}, H, W) on the CPU is wanted, not {x.dtype} {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        batch, _, height, width = x.shape
        made = torch.empty((batch, out_channels, height, width), memory_format=torch.channels_last)
        n_rows, columns = batch * _n_tiles(height), _n_tiles(width)
        # As many tiles as filters at least: with fewer, reading these takes longer than the products.
        n_fitting = max(_CACHE_BYTES // (_POINTS * channels * x.element_size()), out_channels)
        at_once = math.ceil(n_rows / math.ceil(n_rows * columns / n_fitting))
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
        """Transformed, in the order that oneDNN chooses by the number of tiles; it is the same in most passes."""
        if n_tiles != self._n_tiles:
            out_channels, channels = self._weight.shape[:2]
            g = torch.tensor(_FILTERS, dtype=torch.float64)
            points = (g @ self._weight.double() @ g.T).float().permute(2, 3, 0, 1)
            points = points.reshape(_POINTS * out_channels, channels, 1, 1)
            shape = (1, _POINTS * channels, n_tiles, 1)
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(points, *_PRODUCTS[:4], shape)
            self._n_tiles = n_tiles
        return self._packed


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
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{compiler} cannot translate {source.name}: {done.stderr.strip()}")
        found = ctypes.CDLL(str(library))
    found.simhpc_tiles.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_long] * 5
    found.simhpc_pixels.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 5
    return found
