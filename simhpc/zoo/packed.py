"""Weights in the order in which oneDNN computes with them, for CPUs.

Torch hands oneDNN a convolution's weights in its own order, and oneDNN rearranges them in every pass: with small images
that takes as long as a third of the products. A model under attack keeps its weights, so here it is done once. Linear
layers torch gives to MKL, which is slower than oneDNN on AMD's processors.

The operators are those of torch's compiler for frozen weights (torch/_inductor/fx_passes/mkldnn_fusion.py). They belong
to no public interface and have no gradients. What is packed can be neither copied nor moved to a GPU, and does not see
autocast.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simhpc.zoo.fused import ConvReLU

_FEWEST_WEIGHTS = 2**15
"""With fewer, a Python call in each direction costs what is gained."""

_NOTHING_ELSE: tuple[str, list[float | None], str] = ("none", [], "")
"""Of what these operators can do to a result on the way."""


class PackedConvolution(nn.Module):
    """A convolution (B, C, H, W) to (B, K, H', W') of which only the input has a gradient.

    Args:
        convolution: see `packed_convolution`; frozen, float32, on the CPU.
        shape, made_shape: of an input and its output, by which oneDNN chooses; others are as right.
    """

    def __init__(self, convolution: Any, shape: torch.Size, made_shape: torch.Size) -> None:
        super().__init__()
        c = convolution
        self.bias, self.kernel_size = c.bias, c.kernel_size
        self.stride, self.padding, self.dilation = c.stride, c.padding, c.dilation
        weight = c.weight.detach().contiguous(memory_format=torch.channels_last)
        how, ops = (self.stride, self.dilation, 1), torch.ops.mkldnn
        self.weight = ops._reorder_convolution_weight(weight, self.padding, *how, shape)
        self.transposed = ops._reorder_convolution_transpose_weight(
            weight, self.padding, self.left_over(shape), *how, made_shape
        )

    def left_over(self, shape: torch.Size) -> list[int]:
        """Rows and columns at the end of a padded input that the stride does not reach."""
        sides = zip(shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * padding - d * (kernel - 1) - 1) % stride for n, kernel, stride, padding, d in sides]

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Convolution.apply(x, self)  # type: ignore[no-untyped-call]
        return made


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedConvolution) -> Tensor:
        ctx.packed, ctx.shape = packed, x.shape
        p = packed
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, p.weight, p.bias, p.padding, p.stride, p.dilation, 1, *_NOTHING_ELSE
        )
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None]:
        p = ctx.packed
        # A mean's gradient is one number with strides of 0.
        arrived = arriving[0].contiguous(memory_format=torch.channels_last)
        gradient: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            arrived, p.transposed, None, p.padding, p.left_over(ctx.shape), p.stride, p.dilation, 1, *_NOTHING_ELSE
        )
        return gradient, None


class PackedLinear(nn.Module):
    """A linear layer (*, N) to (*, M) of which only the input has a gradient.

    Args:
        linear: frozen, float32, on the CPU.
        shape: of an input, by which oneDNN chooses; others are as right.
    """

    def __init__(self, linear: Any, shape: torch.Size) -> None:
        super().__init__()
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features
        weight, rows = linear.weight.detach(), shape[:-1].numel()
        pack = torch.ops.mkldnn._reorder_linear_weight
        self.weight, self.transposed = pack(weight.contiguous(), rows), pack(weight.T.contiguous(), rows)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = _Linear.apply(x, self)  # type: ignore[no-untyped-call]
        return made


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedLinear) -> Tensor:
        ctx.packed = packed
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed.weight, packed.bias, *_NOTHING_ELSE)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, None]:
        arrived = arriving[0].contiguous()
        gradient: Tensor = torch.ops.mkldnn._linear_pointwise(arrived, ctx.packed.transposed, None, *_NOTHING_ELSE)
        return gradient, None


def packed_convolution(layer: Any, shape: torch.Size, made_shape: torch.Size) -> nn.Module | None:
    """The convolution or `ConvReLU` packed, if that gains and it takes and gives channels_last order.

    A `substitutes.Make`.
    """
    if type(layer) is ConvReLU:
        packed = packed_convolution(layer.convolution, shape, made_shape)
        return None if packed is None else ConvReLU(packed)
    gains = (
        type(layer) is nn.Conv2d
        and layer.weight.numel() >= _FEWEST_WEIGHTS
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )
    return PackedConvolution(layer, shape, made_shape) if gains else None


def packed_linear(layer: Any, shape: torch.Size, _: torch.Size) -> PackedLinear | None:
    """The linear layer packed, if that gains (`substitutes.Make`)."""
    gains = type(layer) is nn.Linear and layer.weight.numel() >= _FEWEST_WEIGHTS and is_amd()
    return PackedLinear(layer, shape) if gains else None


@functools.cache
def is_amd() -> bool:
    """Whether the processor is one of AMD's, on Linux."""
    names = Path("/proc/cpuinfo")
    return names.exists() and "AuthenticAMD" in names.read_text()
