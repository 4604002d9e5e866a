"""Where the pixels enter: the convolutions and the pooling before the first block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from simhpc.zoo.components.trace import WEIGHTED, Call, Trace
from simhpc.zoo.timm_import import timm

# A part with so many blocks is no stem: its own first part is looked at.
_BLOCKS_OF_A_BODY = 4
_POOLING = ("max_pool2d", "avg_pool2d")
_PLAIN = (nn.Conv2d, timm.layers.ConvNormAct)


@dataclass(frozen=True)
class Stem:
    """The convolutions before the first block.

    Attributes:
        branches: chains of convolutions, one for each that reads the image: two in CrossViT, none in a network whose
            first layer is no convolution.
        is_pooled: whether a pooling follows before anything else is computed.
    """

    branches: tuple[tuple[Call, ...], ...]
    is_pooled: bool

    @property
    def convolutions(self) -> list[Call]:
        return [call for branch in self.branches for call in branch]

    def written(self) -> str:
        """`3s2/3/3`: kernel and stride of each convolution; from the second on, a stride of 1 goes without saying."""
        chains = ["/".join(_written(call, is_first=not at) for at, call in enumerate(each)) for each in self.branches]
        return " + ".join(chains) or "-"


def read_stem(found: Trace, blocks: list[Call]) -> Stem:
    """Find the stem: the first part with a convolution, and the single convolutions that follow it directly."""
    parts = _parts(found, blocks)
    images = found.calls[0].inputs[0][1]
    branches: list[tuple[Call, ...]] = []
    for part in parts:
        chain = _chain(found, part)
        if branches and chain and chain[0].module.in_channels == branches[-1][-1].module.out_channels:
            branches[-1] += chain
        elif chain and (not branches or chain[0].module.in_channels == images):
            branches.append(chain)
    return Stem(tuple(branches), _is_pooled(found, blocks, branches))


def _parts(found: Trace, blocks: list[Call]) -> list[Call]:
    owner = found.calls[0]
    images = owner.inputs[0][1]
    while True:
        called = found.called_by(owner)
        at = next((at for at, call in enumerate(called) if _chain(found, call)), None)
        if at is None:
            return []
        first = called[at]
        if sum(first.begin <= block.begin and block.end <= first.end for block in blocks) < _BLOCKS_OF_A_BODY:
            break
        owner = first
    parts = [first]
    for call in called[at + 1 :]:
        chain = _chain(found, call)
        is_parallel = type(call.module) is type(first.module) and chain[:1] and chain[0].module.in_channels == images
        if isinstance(call.module, _PLAIN) or is_parallel:
            parts.append(call)
        elif _has_pooled(found, call.begin, call.end) or any(
            isinstance(each.module, WEIGHTED) for each in found.inside(call)
        ):
            break
    return parts


def _chain(found: Trace, part: Call) -> tuple[Call, ...]:
    """The convolutions of a part that follow each other, up to a pooling; of parallel ones the largest, as RepVGG's."""
    chain: list[Call] = []
    for call in (part, *found.inside(part)):
        if chain and _has_pooled(found, chain[0].begin, call.begin):
            break
        # On a single position works a gate, not a stem.
        if not isinstance(call.module, nn.Conv2d) or call.inputs[0][2:] == (1, 1):
            continue
        if chain and _is_parallel(call, chain[-1]):
            chain[-1] = max(chain[-1], call, key=lambda each: each.module.kernel_size)
        elif not chain or chain[-1].module.out_channels == call.module.in_channels:
            chain.append(call)
    return tuple(chain)


def _is_parallel(call: Call, other: Call) -> bool:
    return call.inputs == other.inputs != other.outputs == call.outputs


def _has_pooled(found: Trace, begin: int, end: int) -> bool:
    return any(operation.name in _POOLING and begin < operation.at < end for operation in found.operations)


def _is_pooled(found: Trace, blocks: list[Call], branches: list[tuple[Call, ...]]) -> bool:
    if not branches:
        return False
    last = branches[-1][-1].end
    after = min((call.begin for call in found.weighted() if call.begin > last), default=last)
    return any(
        operation.name in _POOLING
        and branches[0][0].begin < operation.at < after
        # PoolFormer's blocks begin with a pooling of their own.
        and not any(block.begin < operation.at < block.end and block.begin > last for block in blocks)
        for operation in found.operations
    )


def _written(call: Call, *, is_first: bool) -> str:
    kernel, stride = (_one(sides) for sides in (call.module.kernel_size, call.module.stride))
    return kernel if stride == "1" and not is_first else f"{kernel}s{stride}"


def _one(sides: tuple[int, ...]) -> str:
    return str(sides[0]) if len(set(sides)) == 1 else "x".join(map(str, sides))
