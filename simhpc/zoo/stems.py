"""The convolution that looks at the pixels, with an input gradient that is fast as well, and patches as a product.

Torch's kernels compute the input gradient of a strided convolution of three channels in three of the lanes that they
fill. Here it is a convolution with stride 1 and many channels, as sub-pixel convolutions are (Shi et al. 2016, arXiv
1609.07009): each of the s x s positions that a pixel can have within a stride is seen by taps of its own.

Of a transformer's patches, which do not overlap, it is a matrix product with the patches as rows. cuDNN has no kernel
for tensor cores there (0.8 of a step's 17 ms of ViT-S in bfloat16 on an H100), and rows are what a transformer goes on
with.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simhpc.zoo.consecutive import is_hooked

_MOST_CHANNELS = 4
"""Of pixels. With more, the taps of 0 that fill up the filters cost more than is gained."""


class Stem(nn.Module):
    """A strided convolution (B, C, H, W) to (B, K, H', W') of which only the input has a gradient.

    Args:
        convolution: frozen.
        is_product: whether to compute it as a matrix product; see `is_patches`. The result is in channels_last order.
    """

    filters: Tensor

    def __init__(self, convolution: Any, *, is_product: bool = False) -> None:
        super().__init__()
        self.convolution = convolution
        self._is_product = is_product
        rows, columns = zip(convolution.kernel_size, convolution.stride, convolution.padding, strict=True)
        self.reach = (_reach(*rows), _reach(*columns))
        self.register_buffer("filters", _filters(convolution, *self.reach))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _StemFunction.apply(x, self)  # type: ignore[no-untyped-call]
        return made

    def convolved(self, x: Tensor) -> Tensor:
        """What the convolution makes, without a gradient."""
        c = self.convolution
        if not self._is_product:
            made: Tensor = c(x)
            return made
        (rows, columns), (batch, channels, *sides) = c.stride, x.shape
        height, width = sides[0] // rows, sides[1] // columns
        patches = x[:, :, : height * rows, : width * columns]
        # Before they are put in order, which moves half as much then.
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            patches = patches.to(c.weight.dtype)
        patches = patches.reshape(batch, channels, height, rows, width, columns).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return functional.linear(patches, c.weight.flatten(1), c.bias).permute(0, 3, 1, 2)

    def input_gradient(self, arriving: Tensor, shape: torch.Size) -> Tensor:
        """(B, K, H', W') to the gradient of an input of this shape, (B, C, H, W)."""
        batch, channels, *sides = shape
        rows, columns = self.convolution.stride
        cells = [-(-side // stride) for side, stride in zip(sides, (rows, columns), strict=True)]
        # What the filters need on either side differs. Padding is alike on both; what is made too much is cut off.
        padding = [
            max(last, n - first - made, 0)
            for n, made, (first, last) in zip(cells, arriving.shape[2:], self.reach, strict=True)
        ]
        spread = functional.conv2d(arriving, self.filters.to(arriving.dtype), padding=padding).permute(0, 2, 3, 1)
        top, left = (n - last for n, (_, last) in zip(padding, self.reach, strict=True))
        spread = spread[:, top : top + cells[0], left : left + cells[1]]
        spread = spread.reshape(batch, cells[0], cells[1], rows, columns, channels).transpose(2, 3)
        pixels = spread.reshape(batch, cells[0] * rows, cells[1] * columns, channels).permute(0, 3, 1, 2)
        return pixels[:, :, : sides[0], : sides[1]]


def make_stems(model: nn.Module, *, as_products: bool = False) -> int:
    """Make every such convolution of pixels a `Stem`, in place; how many there were.

    Args:
        as_products: only those of patches, as products.
    """
    is_wanted = is_patches if as_products else is_stem
    found = {name: module for name, module in model.named_modules() if is_wanted(module)}
    for name, convolution in found.items():
        model.set_submodule(name, Stem(convolution, is_product=as_products))
    return len(found)


def is_patches(module: Any) -> bool:
    """Whether it is a `Stem` of patches that do not overlap, which nothing else looks at."""
    return is_stem(module) and module.kernel_size == module.stride and not any(module.padding) and not is_hooked(module)


def is_stem(module: Any) -> bool:
    """Whether this very module is a strided convolution of pixels that `Stem` can do."""
    return (
        type(module) is nn.Conv2d
        and module.in_channels <= _MOST_CHANNELS
        and max(module.stride) > 1
        and module.groups == 1
        and module.dilation == (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and all(padding < kernel for padding, kernel in zip(module.padding, module.kernel_size, strict=True))
    )


class _StemFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stem: Stem) -> Tensor:
        ctx.stem, ctx.shape, ctx.dtype = stem, x.shape, x.dtype
        return stem.convolved(x)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None]:
        gradient: Tensor = ctx.stem.input_gradient(arriving[0], ctx.shape).to(ctx.dtype)
        return gradient, None


def _reach(kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """First and last d such that output q - d sees a pixel of cell q, which are q * stride and those that follow."""
    return math.ceil((1 - stride - padding) / stride), (kernel - 1 - padding) // stride


def _filters(convolution: Any, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """(stride * stride * C, K, n, m): for each position in a cell, in rows, and channel the taps that see it."""
    weight: Tensor = convolution.weight.detach()
    out_channels, channels, *kernel = weight.shape
    stride, padding = convolution.stride, convolution.padding
    shape = (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1)
    filters = weight.new_zeros(*stride, channels, out_channels, *shape)
    for a, b, i, j in itertools.product(*map(range, (*stride, *shape))):
        y, x = stride[0] * (rows[1] - i) + a + padding[0], stride[1] * (columns[1] - j) + b + padding[1]
        if 0 <= y < kernel[0] and 0 <= x < kernel[1]:
            filters[a, b, :, :, i, j] = weight[:, :, y, x].T
    return filters.flatten(0, 2)
