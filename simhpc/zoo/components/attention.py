"""Attention beside that of transformers: over maps in place of a convolution, and over channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from simhpc.zoo.components.layers import is_over_positions
from simhpc.zoo.components.trace import WEIGHTED, Call, Trace
from simhpc.zoo.timm_import import timm

_MAPS = {
    "Lambda": timm.layers.lambda_layer.LambdaLayer,
    "Halo": timm.layers.halo_attn.HaloAttn,
    "BoT": timm.layers.bottleneck_attn.BottleneckAttn,
    "NL": timm.layers.non_local_attn.NonLocalAttn,
    "BAT": timm.layers.non_local_attn.BatNonLocalAttn,
}
# Those that are more than a squeeze to one value per channel and a gate.
_CHANNELS = {
    "GCA": timm.layers.global_context.GlobalContext,
    "GE": timm.layers.gather_excite.GatherExcite,
    "CBAM": (timm.layers.cbam.CbamModule, timm.layers.cbam.LightCbamModule),
    "SK": timm.layers.selective_kernel.SelectiveKernel,
    "Split": timm.layers.split_attn.SplitAttn,
}
_GATES = ("sigmoid", "hardsigmoid", "relu6")


@dataclass(frozen=True)
class ChannelAttention:
    """One module that weights channels by what the whole map holds."""

    kind: str
    call: Call


def map_attention(found: Trace) -> list[tuple[str, Call]]:
    """Self-attention layers that take the place of a convolution, with their kind."""
    return [(kind, call) for kind, known in _MAPS.items() for call in found.calls if isinstance(call.module, known)]


def channel_attention(found: Trace) -> list[ChannelAttention]:
    """Modules that gate the channels of a map, each once, innermost."""
    named = [
        ChannelAttention(kind, call)
        for kind, known in _CHANNELS.items()
        for call in found.calls
        if isinstance(call.module, known)
    ]
    gates = [
        ChannelAttention(kind, call)
        for call in found.calls
        if (kind := _gate(found, call))
        and not any(each.call.begin <= call.begin and call.end <= each.call.end for each in named)
    ]
    starts = [each.call for each in gates]
    inner = [each for each in gates if not any(each.call.begin < other.begin < each.call.end for other in starts)]
    return sorted(named + inner, key=lambda each: each.call.begin)


def place(found: Trace, attention: ChannelAttention) -> str:
    """Where in its block it stands: `Middle` between weighted layers, `End` after the last, `Start` before the first.

    Shortcuts, which read what the block is given, do not count.
    """
    call = attention.call
    # It may hold the convolution that it weights: a split attention does.
    has_own = any(_is_spatial(each) for each in found.inside(call))
    for block in found.around(call):
        layers = [
            each
            for each in found.inside(block)
            if isinstance(each.module, WEIGHTED) and not call.begin < each.begin < call.end
        ]
        if not layers:
            continue
        before = has_own or any(each.end < call.begin for each in layers)
        after = any(each.begin > call.end and not _is_beside(found, each, block) for each in layers)
        return "Middle" if before and after else "End" if before else "Start"
    return "End"


def _is_spatial(call: Call) -> bool:
    return isinstance(call.module, nn.Conv2d) and max(call.module.kernel_size) > 1


def _is_beside(found: Trace, call: Call, block: Call) -> bool:
    """Whether a layer is in a branch that reads what its block was given."""
    branch = next(
        (each for each in [call, *found.around(call)] if each.caller == block.name and each.begin > block.begin), call
    )
    return branch.is_given_callers_input


def _gate(found: Trace, call: Call) -> str:
    """The kind of a module that squeezes a map to one value per channel and gates the map with it; empty if none."""
    if not call.inputs or len(call.inputs[0]) != 4 or call.outputs != call.inputs[:1] or call.inputs[0][2:] == (1, 1):
        return ""
    inside = list(found.inside(call))
    if any(_is_spatial(each) for each in inside):
        return ""
    operations = list(found.operations_of(call))
    is_squeezed = any(
        operation.args
        and isinstance(operation.args[0], tuple)
        and len(operation.args[0]) == 4
        and (
            (operation.name == "mean" and is_over_positions(operation))
            or (operation.name == "adaptive_avg_pool2d" and operation.output is not None)
        )
        for operation in operations
    )
    is_gated = any(operation.name in _GATES for operation in operations)
    is_gated |= any("igmoid" in type(each.module).__name__ for each in inside)
    if not (is_squeezed and is_gated):
        return ""
    if any(isinstance(each.module, nn.Conv1d) for each in inside):
        return "ECA"
    return {0: "", 1: "ESE"}.get(sum(isinstance(each.module, WEIGHTED) for each in inside), "SE")
