"""What mixes positions, whether the map shrinks on the way, and the traces that a search leaves."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from simhpc.zoo.components.attention import ChannelAttention
from simhpc.zoo.components.layers import is_depthwise, is_grouped
from simhpc.zoo.components.stem import Stem
from simhpc.zoo.components.trace import Call, Shape, Trace

# A class token more or less is no other resolution.
_SHRINKS_BY = 1.5
# So many blocks, each of another width, are no coincidence.
_MANY_BLOCKS = 8
_POOLING = ("max_pool2d", "avg_pool2d")


def is_hierarchical(found: Trace, blocks: list[Call], stem: Stem) -> bool:
    """Whether blocks behind the stem see fewer positions the deeper they are.

    Parallel streams, each of a constant size (CrossViT, TNT), are no hierarchy.
    """
    start = max((call.end for call in stem.convolutions), default=0)
    calls = [call for call in blocks or found.convolutions() if call.begin > start]
    sizes = [[size for shape in call.outputs if (size := positions(shape)) > 1] for call in calls]
    largest = [max(each) for each in sizes if each]
    smallest = [min(each) for each in sizes if each]
    return any(max(each) >= _SHRINKS_BY * min(each) for each in (largest, smallest) if each)


def positions(shape: Shape) -> int:
    """Places in a map (B, C, H, W) or (B, H, W, C), or tokens in (B, N, C); 0 for anything else."""
    if len(shape) == 4:
        return shape[2] * shape[3] if shape[2] == shape[3] or shape[1] != shape[2] else shape[1] * shape[2]
    return shape[1] if len(shape) == 3 else 0


def base_architecture(
    found: Trace, blocks: list[Call], stem: Stem, maps: list[Call], channels: list[ChannelAttention]
) -> str:
    """`CNN`, `Transformer`, `Hybrid`, `MLP-Mixer`, `RNN` or `NAS (CNN)`.

    Args:
        maps: self-attention layers that stand in for convolutions; they make no transformer.
        channels: channel-wise attention.
    """
    apart = [*maps, *(each.call for each in channels)]
    has_attention = any(
        (operation.name == "attention" or (operation.name == "product" and _is_between_activations(operation.args)))
        and any(block.begin < operation.at < block.end for block in blocks)
        and not any(call.begin < operation.at < call.end for call in apart)
        for operation in found.operations
    )
    starts = {call.begin for call in stem.convolutions}
    # What follows the last block is a head or a neck.
    end = max((block.end for block in blocks), default=found.calls[0].end)
    convolutions = [
        call
        for call in found.convolutions()
        if call.begin not in starts and call.begin < end and max(call.module.kernel_size) > 1
    ]
    has_convolutions = any(not _is_between_stages(found, call) for call in convolutions)
    if has_attention:
        return "Hybrid" if has_convolutions or _pools_in_place(found, blocks) else "Transformer"
    if any(isinstance(call.module, nn.RNNBase) for call in found.calls):
        return "RNN"
    if not has_convolutions and _mixes_tokens(found, stem):
        return "MLP-Mixer"
    gates = [each.call for each in channels]
    layers = [
        call.module
        for call in found.convolutions()
        if call.begin not in starts and not any(gate.begin < call.begin < gate.end for gate in gates)
    ]
    return "NAS (CNN)" if _has_varied_inverted_residuals(layers) or _is_of_regnets_space(layers) else "CNN"


def _is_between_activations(args: tuple[object, ...]) -> bool:
    shapes = [each for each in args if isinstance(each, tuple) and len(each) >= 3]
    # One row or column: a weighted mean, as the pooling of a class token is.
    return len(shapes) >= 2 and all(min(shape[-2:]) > 1 for shape in shapes)


def _is_between_stages(found: Trace, call: Call) -> bool:
    """Whether a convolution only makes the map smaller, by its stride or by a pooling beside it."""
    if max(call.module.stride) > 1:
        return True
    parent = next(found.around(call))
    beside = [each for each in found.inside(parent) if isinstance(each.module, nn.Conv2d)]
    is_pooled = any(operation.name in _POOLING for operation in found.operations_of(parent))
    return beside == [call] and is_pooled and positions(parent.outputs[0]) < positions(parent.inputs[0])


def _pools_in_place(found: Trace, blocks: list[Call]) -> bool:
    """Whether blocks mix neighbours by a pooling that keeps the size of the map, as PoolFormer's do."""
    return any(
        operation.name in _POOLING
        and operation.output == operation.args[0]
        and any(block.begin < operation.at < block.end for block in blocks)
        for operation in found.operations
    )


def _mixes_tokens(found: Trace, stem: Stem) -> bool:
    if not stem.convolutions:
        return False
    last = stem.convolutions[-1]
    tokens = prod(last.outputs[0][2:])
    return tokens != last.outputs[0][1] and any(
        isinstance(call.module, nn.Linear) and call.module.in_features == tokens for call in found.calls
    )


def _has_varied_inverted_residuals(layers: list[Any]) -> bool:
    """Inverted residuals that differ in what only a search chose: kernel, fused or not, or a width for every block.

    Hand-made ones (MobileNetV2) are all alike but for their width, which several blocks share.
    """
    kernels: set[tuple[int, ...]] = set()
    widths: list[int] = []
    has_fused = False
    for at, after in enumerate(layers):
        run = _depthwise_before(layers, at) or layers[max(0, at - 1) : at]
        if not run or not _is_pointwise(after) or after.out_channels >= (inner := _width(run)):
            continue
        if is_depthwise(run[0]):
            expanded_from = _expanded_from(layers[: at - len(run)], inner)
            if 0 < expanded_from < inner:
                kernels |= {layer.kernel_size for layer in run}
                widths.append(after.out_channels)
        else:
            has_fused |= run[0].groups == 1 and max(run[0].kernel_size) > 1 and run[0].in_channels < inner
    has_width_by_block = len(widths) >= _MANY_BLOCKS and len(set(widths)) == len(widths)
    return bool(widths) and (len(kernels) > 1 or has_fused or has_width_by_block)


def _depthwise_before(layers: list[Any], at: int) -> list[Any]:
    """The depthwise convolutions directly before a layer: several where each has a part of the channels (MixNet)."""
    start = at
    while start and is_depthwise(layers[start - 1]) and max(layers[start - 1].kernel_size) > 1:
        start -= 1
    return layers[start:at]


def _expanded_from(layers: list[Any], width: int) -> int:
    """Channels that the last pointwise layers, which together have `width` outputs, read; 0 if none have."""
    outputs = inputs = 0
    for layer in reversed(layers):
        if not _is_pointwise(layer) or outputs >= width:
            break
        outputs += layer.out_channels
        inputs += layer.in_channels
    return inputs if outputs == width else 0


def _width(run: list[Any]) -> int:
    return sum(layer.out_channels for layer in run)


def _is_of_regnets_space(layers: list[Any]) -> bool:
    """One group width throughout, and stage widths that do not grow by whole factors: quantised linear widths."""
    grouped = [layer for layer in layers if is_grouped(layer) and max(layer.kernel_size) > 1]
    if len({each.in_channels // each.groups for each in grouped}) != 1:
        return False
    widths = sorted({each.out_channels for each in grouped})
    return len(widths) > 1 and any(wide % narrow for narrow, wide in pairwise(widths))


def _is_pointwise(module: Any) -> bool:
    return bool(module.kernel_size == (1, 1) and module.groups == 1)
