"""Layers that compute the same in another way, each compared with the one whose place it is to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from simhpc.zoo.consecutive import is_hooked
from simhpc.zoo.fused import ConvReLU
from simhpc.zoo.stems import Stem

_TOLERANCE = 1e-4
"""Of the relative error of a layer in single precision; what adds in another order differs by 1e-6."""

Make = Callable[[Any, torch.Size, torch.Size], nn.Module | None]
"""A layer and the shapes of its input and its output to the one that is to take its place, if there is a gain."""


@torch.no_grad()
def substitutes(model: nn.Module, inputs: Tensor, make: Make) -> dict[str, nn.Module]:
    """What is to take the place of convolutions, with what is fused with them, and linear layers, by all their names.

    Args:
        model: float32, in eval mode, frozen, on the CPU.
        inputs: what it takes.

    Raises:
        RuntimeError: one computes something else.
        Exception: whatever `make` raises.
    """
    found: dict[nn.Module, nn.Module | None] = {}
    shapes: dict[nn.Module, torch.Size] = {}

    def look(layer: nn.Module, arguments: tuple[Tensor, ...], made: Tensor) -> None:
        shape = arguments[0].shape
        if layer not in found:
            found[layer], shapes[layer] = make(layer, shape, made.shape), shape
        elif shape != shapes[layer]:
            found[layer] = None  # it is made for one size
        other = found[layer]
        if other is not None and not (error := _relative_error(other, layer, arguments)) <= _TOLERANCE:
            at_fault = layer.convolution if isinstance(layer, ConvReLU) else layer
            raise RuntimeError(f"{at_fault} is not the same, relative error {error:.1g}")

    watch(model, inputs, look)
    named = model.named_modules(remove_duplicate=False)
    return {name: other for name, layer in named if (other := found.get(layer)) is not None}


def watch(model: nn.Module, inputs: Tensor, look: Callable[[Any, tuple[Tensor, ...], Tensor], None]) -> None:
    """Run the model, and look at each use of a layer that can be replaced, with what goes in and what comes out."""
    held = {module.convolution for module in model.modules() if isinstance(module, (Stem, ConvReLU))}

    def see(layer: nn.Module, arguments: tuple[Any, ...], made: Tensor) -> None:
        if arguments:  # none where its input was named
            look(layer, arguments, made)

    kinds = (nn.Conv2d, nn.Linear, ConvReLU)
    layers = [m for m in model.modules() if type(m) in kinds and m not in held and not is_hooked(m)]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


@torch.enable_grad()
def _relative_error(other: nn.Module, layer: nn.Module, arguments: tuple[Tensor, ...]) -> float:
    """Of what comes out and of the gradients of its squares' sum, the largest one; NaN where any is."""
    answers = []
    for each in (other, layer):
        variables = [x.detach().requires_grad_(True) for x in arguments]
        made: Tensor = each.forward(*variables)  # a call would come here again
        answers.append((made, *torch.autograd.grad(made.square().sum(), variables)))
    errors = [
        (found - expected).norm() / expected.norm().clamp_(min=1e-30) for found, expected in zip(*answers, strict=True)
    ]
    return float(torch.stack(errors).detach().amax())
