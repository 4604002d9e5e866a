"""Bias, ReLU and residual sum together with the convolution that they follow, so that one kernel can do all of it.

Torch adds the bias that a batch norm leaves behind on CUDA, the ReLU and the sum of a residual block in passes of their
own over all activations, which in bfloat16 take as long as the convolutions. cuDNN does the three before a result
leaves the chip, `zoo.kernels` before it leaves a CPU's registers. Which ReLU follows which convolution is seen by
running the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from simhpc.zoo.consecutive import consecutive, is_hooked
from simhpc.zoo.stems import Stem
from simhpc.zoo.timm_import import timm

_TOLERANCE = 0.02
"""Of relative errors of one convolution. In bfloat16 a result is rounded once here and twice in parts: 0.003."""


class ConvReLU(nn.Module):
    """relu(convolution(x) + residual), of which x and residual have gradients: (B, C, H, W) to (B, K, H', W').

    Args:
        convolution: with a bias, frozen.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if not x.is_cuda:
            made: Tensor = self.convolution(x)
            return functional.relu_(made if residual is None else made.add_(residual))
        dtype = self.convolution.weight.dtype  # autocast does not see what follows
        residual = None if residual is None else residual.to(dtype)
        fused: Tensor = _ConvReLUFunction.apply(x.to(dtype), residual, self.convolution)  # type: ignore[no-untyped-call]
        return fused


class _ConvReLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, convolution: Any) -> Tensor:
        c = convolution
        how = c.stride, c.padding, c.dilation, c.groups
        if residual is None:
            made: Tensor = torch.cudnn_convolution_relu(x, c.weight, c.bias, *how)
        else:
            made = torch.cudnn_convolution_add_relu(x, c.weight, residual, 1.0, c.bias, *how)
        ctx.save_for_backward(x, made)
        ctx.convolution, ctx.has_residual = c, residual is not None
        return made

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, made = ctx.saved_tensors
        c = ctx.convolution
        passed = torch.ops.aten.threshold_backward(arriving[0], made, 0)
        gradient: Tensor = torch.ops.aten.convolution_backward(
            passed, x, c.weight, None, c.stride, c.padding, c.dilation, False, [0, 0], c.groups, [True, False, False]
        )[0]
        return gradient, passed if ctx.has_residual else None, None


class ResidualBlock(nn.Module):
    """A block of timm's ResNets whose last convolution also adds the shortcut.

    Args:
        block: see `_is_residual`; folded.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        b = block
        if _is_basic(block):
            body, last = [b.conv1, b.bn1, b.drop_block, b.act1, b.aa], b.conv2
        else:
            body, last = [b.conv1, b.bn1, b.act1, b.conv2, b.bn2, b.drop_block, b.act2, b.aa], b.conv3
        self.body, self.tail = nn.Sequential(*body), ConvReLU(last)
        self.downsample = nn.Identity() if b.downsample is None else b.downsample

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.tail(self.body(x), self.downsample(x))
        return made


def fuse(model: nn.Module, inputs: Tensor) -> int:
    """Do so wherever it can be done, in place; in how many convolutions that was.

    Args:
        model: in eval mode, frozen, its batch norms folded.
        inputs: what it takes, of its dtype.
    """
    blocks = {name: module for name, module in model.named_modules() if _is_residual(module)}
    for name, block in blocks.items():
        model.set_submodule(name, ResidualBlock(block))
    # Convolutions that are a part of something already.
    taken = {module.convolution for module in model.modules() if isinstance(module, (ConvReLU, Stem))}
    pairs = consecutive(model, inputs, lambda module: _has_bias(module) and module not in taken, _is_relu)
    names = {module: name for name, module in model.named_modules()}
    for relu, convolution in pairs.items():
        model.set_submodule(names[convolution], ConvReLU(convolution))
        model.set_submodule(names[relu], nn.Identity())
    return sum(isinstance(module, ConvReLU) for module in model.modules())


def check_kernels(model: nn.Module, inputs: Tensor) -> None:
    """Compare every `ConvReLU` with its parts, each by itself, on the device and in the precision that it runs in.

    Over a whole model, rounding in bfloat16 may grow to anything.

    Raises:
        RuntimeError: a kernel does not exist, or computes something else.
    """

    def compare(module: Any, arguments: tuple[Any, ...], _: Tensor) -> None:
        off = [_relative_error(found, expected) for found, expected in _fused_and_in_parts(module, arguments)]
        if not all(error <= _TOLERANCE for error in off):
            raise RuntimeError(f"{module.convolution} with ReLU is not the same, relative errors {off}")
        # Torch does not ask cuDNN for deterministic kernels here.
        if not torch.equal(module.forward(*arguments), module.forward(*arguments)):
            raise RuntimeError(f"{module.convolution} with ReLU is not the same each time")

    hooks = [module.register_forward_hook(compare) for module in model.modules() if isinstance(module, ConvReLU)]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


@torch.enable_grad()
def _fused_and_in_parts(module: Any, arguments: tuple[Any, ...]) -> list[tuple[Tensor, Tensor]]:
    """What comes out, and the gradients of what goes in, both ways."""
    given = [each.detach().to(module.convolution.weight.dtype) for each in arguments if each is not None]
    one, other = ([each.clone().requires_grad_(True) for each in given] for _ in range(2))
    made, added = module.forward(*one), sum(other[1:], module.convolution(other[0]))
    gradients = torch.autograd.grad(made, one, torch.ones_like(made))
    # Through the same ReLU: what is within rounding of 0 may pass the one and not the other.
    in_parts = torch.autograd.grad(added, other, (made > 0).to(added.dtype))
    return [(made, functional.relu(added)), *zip(gradients, in_parts, strict=True)]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm().clamp_(min=1e-30))


def _has_bias(module: Any) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.bias is not None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and not is_hooked(module)
    )


def _is_relu(module: Any) -> bool:
    return type(module) is nn.ReLU and not is_hooked(module)


def _is_residual(block: Any) -> bool:
    """Whether this is a block of timm's ResNets that ends in a folded convolution, a sum and a ReLU."""
    if type(block) not in (timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck):
        return False
    numbered = 2 if _is_basic(block) else 3
    last, norm, act = (getattr(block, f"{part}{numbered}") for part in ("conv", "bn", "act"))
    is_folded = isinstance(norm, nn.Sequential) and len(norm) == 0
    is_plain = block.se is None and not any(map(is_hooked, (block, norm)))
    return is_plain and is_folded and _is_relu(act) and _has_bias(last)


def _is_basic(block: Any) -> bool:
    return type(block) is timm.models.resnet.BasicBlock
