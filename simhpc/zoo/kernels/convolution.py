"""A frozen convolution by a kernel in C, with the bias, residual sum and ReLU that follow it.

Torch adds a residual and takes the ReLU in passes of their own over all pixels, both ways, for which a CPU has too
little bandwidth; here that is done before a result leaves the registers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simhpc.zoo.fused import ConvReLU
from simhpc.zoo.kernels.library import CHANNELS, Around
from simhpc.zoo.kernels.pointwise import Pointwise, pointwise_gains
from simhpc.zoo.kernels.winograd import Winograd, at_work_bytes, kept_bytes, winograd_gains
from simhpc.zoo.substitutes import watch


class Kernel(Protocol):
    """One way through a layer: a convolution with stride 1 that keeps the size of an image."""

    channels: int
    out_channels: int

    def __call__(self, x: Tensor, made: Tensor, around: Around) -> None:
        """From float32 (B, C, H, W) into (B, K, H, W), both in channels_last order on the CPU and not empty."""


class KernelConvolution(nn.Module):
    """A convolution (B, C, H, W) to (B, K, H, W), or `ConvReLU`, of which only what goes in has gradients.

    Args:
        convolution: of which `kernel_of` knows a kernel; frozen, float32, on the CPU.
        kernel: that.

    Raises:
        OSError: there is no compiler, or what it makes cannot be used.
    """

    def __init__(self, convolution: Any, kernel: type[Pointwise] | type[Winograd], *, is_relu: bool) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        self.bias = None if bias is None else bias.detach().contiguous()
        self.is_relu = is_relu
        self.there: Kernel = kernel(weight)
        # The input gradient of such a convolution is one itself, of filters that are turned around.
        self.back: Kernel = kernel(weight.transpose(0, 1).flip(2, 3))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        made: Tensor = _Convolution.apply(x, residual, self)  # type: ignore[no-untyped-call]
        return made


def kernel_convolution(layer: Any, shape: torch.Size, _: torch.Size) -> KernelConvolution | None:
    """The convolution or `ConvReLU` by a kernel, if that gains (`substitutes.Make`)."""
    is_relu = type(layer) is ConvReLU
    convolution = layer.convolution if is_relu else layer
    kernel = kernel_of(convolution, shape)
    return None if kernel is None else KernelConvolution(convolution, kernel, is_relu=is_relu)


def kernel_of(layer: Any, shape: torch.Size) -> type[Pointwise] | type[Winograd] | None:
    """The kernel by which it is faster, if it is a convolution, of an input of this shape in channels_last order."""
    if (
        type(layer) is not nn.Conv2d
        or len(shape) != 4
        or (layer.stride, layer.dilation, layer.groups) != ((1, 1), (1, 1), 1)
        or layer.padding_mode != "zeros"
        or layer.in_channels % CHANNELS
        or layer.out_channels % CHANNELS
    ):
        return None
    match layer.kernel_size, layer.padding:
        case (1, 1), (0, 0) if pointwise_gains(layer, shape):
            return Pointwise
        case (3, 3), (1, 1) if winograd_gains(layer, shape):
            return Winograd
    return None


def memory_bytes(model: nn.Module, inputs: Tensor) -> int:
    """What such convolutions of a model take beside their weights, inputs and results.

    Args:
        model: float32, as `fast.as_attacked` makes it; may be on the meta device.
        inputs: what it takes.
    """
    kept: dict[nn.Module, int] = {}
    at_work = [0]

    def look(layer: Any, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        if kernel_of(layer, arguments[0].shape) is Winograd:
            sides = (layer.in_channels, layer.out_channels)
            kept[layer] = 2 * kept_bytes(*sides)
            at_work.append(at_work_bytes(*sides))

    watch(model, inputs, look)
    return sum(kept.values()) + max(at_work)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, layer: KernelConvolution) -> Tensor:
        made = _run(layer.there, x, Around(bias=layer.bias, residual=residual, is_relu=layer.is_relu))
        ctx.layer, ctx.has_residual = layer, residual is not None
        if layer.is_relu:
            ctx.save_for_backward(made)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gate,) = ctx.saved_tensors or (None,)
        gated = None
        if ctx.has_residual and gate is not None:
            gated = torch.empty_like(gate, memory_format=torch.channels_last)
        gradient = _run(ctx.layer.back, arriving[0], Around(gate=gate, gated=gated))
        residual = arriving[0] if gated is None else gated
        return gradient, residual if ctx.has_residual else None, None


def _run(kernel: Kernel, x: Tensor, around: Around) -> Tensor:
    batch, _, height, width = x.shape
    there, here = (batch, kernel.channels, height, width), (batch, kernel.out_channels, height, width)
    x, gate, residual = _laid_out(x, there), _laid_out(around.gate, there), _laid_out(around.residual, here)
    # Whatever torch's defaults are: C writes there.
    made = torch.empty(here, dtype=torch.float32, device="cpu", memory_format=torch.channels_last)
    if made.numel():
        kernel(x, made, replace(around, gate=gate, residual=residual))
    return made


@overload
def _laid_out(tensor: Tensor, shape: tuple[int, ...]) -> Tensor: ...


@overload
def _laid_out(tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor | None: ...


def _laid_out(tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """As C reads it, which cannot see what it is given."""
    if tensor is None:
        return None
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.shape != shape:
        raise RuntimeError(f"float32 {shape} on the CPU is wanted, not {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.contiguous(memory_format=torch.channels_last)
