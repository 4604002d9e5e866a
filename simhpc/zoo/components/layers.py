"""Normalisation, activation, final pooling, and the groups of convolutions."""

from __future__ import annotations

from torch import nn

from simhpc.zoo.components.trace import Operation, Shape, Trace
from simhpc.zoo.timm_import import timm

_NORMS: dict[str, tuple[type, ...]] = {
    "LN": (nn.LayerNorm,),
    "GN": (nn.GroupNorm,),
    "BN": (nn.modules.batchnorm._BatchNorm, timm.layers.FrozenBatchNormAct2d, timm.layers.inplace_abn.InplaceAbn),
    "IN": (nn.modules.instancenorm._InstanceNorm,),
}
# Layers without a common base class, by how their class names begin.
_NORMS_BY_CLASS = {"RmsNorm": "RMSNorm", "RMSNorm": "RMSNorm", "SimpleNorm": "SimpleNorm", "EvoNorm": "EvoNorm"}
_NORMS_BY_CLASS |= {"FilterResponseNorm": "FRN", "GlobalResponseNorm": "GRN", "Affine": "Affine transform"}
_NORMS_BY_CLASS |= {"LayerNorm": "LN"}
_ACTIVATIONS = {
    "gelu": "GeLU",
    "relu": "ReLU",
    "silu": "SiLU",
    "relu6": "ReLU6",
    "leaky_relu": "Leaky ReLU",
    "hardswish": "HardSwish",
    "elu": "ELU",
    "selu": "SELU",
    "prelu": "PReLU",
    "mish": "Mish",
}
# Modules that compute their activation from simpler operations.
_ACTIVATIONS_BY_CLASS = {"QuickGELU": "GeLU", "StarReLU": "StarReLU", "HardMish": "HardMish", "HardSwish": "HardSwish"}
_ACTIVATIONS_BY_CLASS |= {"HardSwishMe": "HardSwish", "HardMishMe": "HardMish", "SwishMe": "SiLU", "MishMe": "Mish"}


def normalization(found: Trace) -> str:
    """`BN`, or several joined by ` + `; `Norm-free` where nothing is normalised."""
    seen = {_norm(call.module) for call in found.calls} - {""}
    order = [*_NORMS, *dict.fromkeys(_NORMS_BY_CLASS.values())]
    return " + ".join(name for name in dict.fromkeys(order) if name in seen) or "Norm-free"


def activation(found: Trace) -> str:
    """`ReLU`, or several joined by ` + `; `-` without any. Gates (sigmoids) are not activations."""
    composed = [call for call in found.calls if type(call.module).__name__ in _ACTIVATIONS_BY_CLASS]
    seen = {_ACTIVATIONS_BY_CLASS[type(call.module).__name__] for call in composed}
    # Hard sigmoids are made of ReLU6.
    apart = composed + [call for call in found.calls if "igmoid" in type(call.module).__name__]
    seen |= {
        _ACTIVATIONS[operation.name]
        for operation in found.operations
        if operation.name in _ACTIVATIONS and not any(call.begin < operation.at < call.end for call in apart)
    }
    order = [*_ACTIVATIONS.values(), *_ACTIVATIONS_BY_CLASS.values()]
    return " + ".join(name for name in dict.fromkeys(order) if name in seen) or "-"


def final_pooling(found: Trace) -> str:
    """How positions end up as one vector: `GAP`, `GMP`, `CLS token`, `Attention`, or `-` if nothing pools them."""
    kinds = [(operation, kind) for operation in found.operations if (kind := _pooling(operation))]
    attends = [call.end for call in found.calls if "AttentionPool" in type(call.module).__name__]
    if attends and (not kinds or kinds[-1][0].at < max(attends)):
        return "Attention"
    if not kinds:
        return "-"
    last, kind = kinds[-1]
    # Average and maximum together are taken in one module.
    beside = {other for each, other in kinds if each.within == last.within}
    return "GAP + GMP" if beside == {"GAP", "GMP"} else kind


def is_depthwise(convolution: nn.Conv2d) -> bool:
    """Whether each channel is convolved by itself."""
    return convolution.groups == convolution.in_channels > 1


def is_grouped(convolution: nn.Conv2d) -> bool:
    """Whether channels are convolved in groups of more than one."""
    return 1 < convolution.groups < convolution.in_channels


def _norm(module: nn.Module) -> str:
    for name, classes in _NORMS.items():
        if isinstance(module, classes):
            return name
    name = type(module).__name__
    return next((norm for start, norm in _NORMS_BY_CLASS.items() if name.startswith(start)), "")


def _pooling(operation: Operation) -> str:
    given = operation.args[0] if operation.args else None
    if not isinstance(given, tuple) or operation.output is None:
        return ""
    if operation.name in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        return ("GAP" if "avg" in operation.name else "GMP") if set(operation.output[2:]) == {1} else ""
    if operation.name in ("mean", "amax"):
        return ("GAP" if operation.name == "mean" else "GMP") if is_over_positions(operation) else ""
    return "CLS token" if operation.name == "select" and _is_of_leading_tokens(operation) else ""


def is_over_positions(operation: Operation) -> bool:
    """Whether a mean or maximum is taken over all positions of a map, or over all tokens."""
    given: Shape = operation.args[0]
    over = operation.args[1] if len(operation.args) > 1 else operation.keywords.get("dim")
    dims = sorted(dim % len(given) for dim in ((over,) if isinstance(over, int) else over or ()))
    if len(given) == 4:
        return dims in ([2, 3], [1, 2])
    # A norm that takes the mean of a token's channels keeps their dimension.
    return len(given) == 3 and dims in ([1], [2]) and operation.output is not None and len(operation.output) == 2


def _is_of_leading_tokens(operation: Operation) -> bool:
    """Whether (B, N, C) is cut to its first token, or to its first two where one was for distillation."""
    if len(operation.args[0]) != 3 or operation.args[0][1] <= 2:
        return False
    index = operation.args[1] if operation.args[1:] != (1, 0) else (slice(None), 0)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return False
    chosen = index[1]
    return chosen in (0, 1) if isinstance(chosen, int) else chosen in (slice(None, 1), slice(None, 2))
