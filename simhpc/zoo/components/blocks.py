"""The blocks that a network is stacked from."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from simhpc.zoo.components.trace import WEIGHTED, Call, Trace


def blocks(found: Trace) -> list[Call]:
    """The outermost modules of which there are several alike, each with two weighted layers or more.

    Whole stages where those are of one class (Swin), residual blocks where stages are plain sequences (ResNet). Empty
    where nothing is repeated (VGG).
    """
    alike: dict[object, list[Call]] = defaultdict(list)
    for call in found.calls:
        if call.name and _weighted_layers(call.module) >= 2:
            alike[_kind(call.module)].append(call)
    repeated = [call for calls in alike.values() if len({call.name for call in calls}) >= 2 for call in calls]
    repeated.sort(key=lambda call: call.begin)
    outermost: list[Call] = []
    for call in repeated:
        if not outermost or call.begin > outermost[-1].end:
            outermost.append(call)
    return outermost


def _weighted_layers(module: nn.Module) -> int:
    return sum(isinstance(each, WEIGHTED) for each in module.modules())


def _kind(module: nn.Module) -> object:
    if isinstance(module, nn.Sequential):
        # A plain sequence is like another if it is a sequence of the same.
        return ("sequence", *(type(child) for child in module))
    return type(module)
