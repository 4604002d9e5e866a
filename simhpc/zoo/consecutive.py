"""Which layer is given what which other one has made: seen by running the model, not read from its code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_hooked(module: nn.Module) -> bool:
    """Whether something else is done where it is used, which would be lost if another took its place."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


@torch.no_grad()
def consecutive(
    model: nn.Module, inputs: Tensor, is_first: Callable[[Any], bool], is_second: Callable[[Any], bool]
) -> dict[Any, Any]:
    """Second layers, each with the first one whose output it is given; where both run once, and no other follows.

    What this cannot see, an output that is used elsewhere as well, has to be found by comparing results (`zoo.fast`).

    Args:
        model: in eval mode.
        inputs: what it takes, of its dtype.
        is_first, is_second: of a module; a first one is no second one.
    """
    runs: Counter[nn.Module] = Counter()
    # The tensors stay alive, so that no two of them have one identity.
    made: dict[int, tuple[nn.Module, Tensor, int]] = {}
    found: dict[nn.Module, nn.Module] = {}

    def after_first(first: nn.Module, _: Any, output: Tensor) -> None:
        runs[first] += 1
        made[id(output)] = (first, output, output._version)

    def before_second(second: nn.Module, arguments: tuple[Any, ...]) -> None:
        runs[second] += 1
        first, _, version = made.get(id(arguments[0]), (None, None, 0))
        # Something may have been added to it in place.
        if first is not None and arguments[0]._version == version:
            found[second] = first

    hooks = []
    for module in model.modules():
        if is_first(module):
            hooks.append(module.register_forward_hook(after_first))
        elif is_second(module):
            hooks.append(module.register_forward_pre_hook(before_second))
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    followers = Counter(found.values())
    return {second: first for second, first in found.items() if runs[second] == runs[first] == followers[first] == 1}
