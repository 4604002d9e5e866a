"""Batch norms of a frozen model as what they are: affine maps, folded into the layer before them where there is one.

In eval mode a batch norm scales and shifts each channel, and a convolution or linear layer before it is linear: one set
of weights does both. Which layer precedes which is seen by running the model, not read from its code, so that it works
for any architecture; what that cannot see (an output used twice) has to be found by comparing the results (`zoo.fast`).

No batch norm is left to torch where it can be helped: on the CPU, torch (2.13) computes wrong input gradients for a
batch of one image if the gradient arrives transposed, as it does in LeViT (tests/zoo/test_folding.py shows it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simhpc.zoo.consecutive import consecutive, is_hooked
from simhpc.zoo.timm_import import timm

# Exact types: a subclass may do something to its weights first, as weight standardisation does.
_LINEAR = (nn.Conv2d, nn.Conv1d, nn.Linear, timm.layers.Conv2dSame)
_NORM = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    timm.layers.BatchNormAct2d,
)


class Affine(nn.Module):
    """scale * x + shift of each channel: x (B, C, ...), of any dtype, which the result has too.

    Args:
        scale, shift: (C,).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape)).to(x.dtype)


def fold_batch_norms(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Fold every batch norm whose input is, in a run on `inputs`, the output of a layer; make the others affine maps.

    Args:
        model: in eval mode, frozen; changed in place.
        inputs: what it takes, of its dtype.

    Returns:
        how many were folded, and how many became affine maps.
    """
    return _replace_norms(model, consecutive(model, inputs, _is_linear, _is_fixed_norm))


def affine_batch_norms(model: nn.Module) -> int:
    """Make every batch norm an affine map, in place; how many there were. Right where folding is not."""
    return _replace_norms(model, {})[1]


def _replace_norms(model: nn.Module, pairs: dict[Any, Any]) -> tuple[int, int]:
    """Fold each norm of `pairs` into its layer, make the others affine maps; how many of each there were."""
    norms = {name: module for name, module in model.named_modules() if _is_fixed_norm(module)}
    for name, norm in norms.items():
        scale, shift = _affine(norm)
        steps: list[nn.Module] = []
        if norm in pairs:
            _fold(pairs[norm], scale, shift)
        else:
            steps.append(Affine(scale, shift))
        if isinstance(norm, timm.layers.BatchNormAct2d):
            steps += [norm.drop, norm.act]
        model.set_submodule(name, steps[0] if len(steps) == 1 else nn.Sequential(*steps))
    return len(pairs), len(norms) - len(pairs)


def _is_linear(module: Any) -> bool:
    return type(module) in _LINEAR and not is_hooked(module)


def _is_fixed_norm(module: Any) -> bool:
    is_fixed = type(module) in _NORM and module.running_mean is not None and not module.training
    return is_fixed and not is_hooked(module)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale gamma / sqrt(var + eps) and shift beta - mean * scale of each channel."""
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def _fold(layer: Any, scale: Tensor, shift: Tensor) -> None:
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias * scale + shift
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
