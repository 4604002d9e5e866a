"""Which images an average of several models' probabilities gets right, without holding all classes in memory.

Nearly all of a thousand classes can win no average. Let t be the smallest of all models' largest probabilities of an
image. In a sum of s models the class that one of them finds likeliest has at least t; a class that no model gives
t / s or more has less, and cannot win. What is left are a few classes of most images, and these are kept. Where they
are many, the likeliest are kept, and of each model the largest probability among the others: a winner that has more
than these together is the winner of all.

A float16 number in [0, 1] is a multiple of 2^-24. Counted in these, sums are exact in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import AnalysisError

Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]
Units = NDArray[np.int32]

_MOST_CLASSES = 64
"""Of an image that are kept: those of which some model is surest."""
_UNITS = 1 << 24
_LARGEST = 127
"""Members whose probabilities, in units, an int32 can sum."""


@dataclass(frozen=True)
class Group:
    """Images of which the same number C of classes is kept.

    Attributes:
        images: int64 (n,), their positions.
        label_at: int64 (n,), where the true class stands among those kept; -1: it is none of them.
        probabilities: int32 (M, C, n) in units of 2^-24, in the classes' order: of equal ones the first wins.
        left_out: int32 (M, n), the largest probability of a class that is not kept; 0 where such a class cannot win.
    """

    images: Positions
    label_at: Positions
    probabilities: Units
    left_out: Units


@dataclass(frozen=True)
class Outputs:
    """Clean outputs of M models on N images.

    Attributes:
        right: bool (M, N), what each model alone gets right.
        groups: every image is in one.
        largest: ensembles may have so many members.
    """

    right: Flags
    groups: tuple[Group, ...]
    largest: int

    def judge(self, members: Sequence[int]) -> tuple[Flags, int]:
        """Whether the unweighted average of the members' probabilities is largest for the true class.

        Returns:
            bool (N,), and of how many images that is not sure, because a class that was not kept might win.
        """
        assert 1 <= len(members) <= self.largest
        found = np.zeros(self.right.shape[1], dtype=bool)
        unsure = 0
        for group in self.groups:
            total, others = group.probabilities[members[0]], group.left_out[members[0]]
            for member in members[1:]:
                total, others = total + group.probabilities[member], others + group.left_out[member]
            largest = total.max(axis=0)
            is_largest = total == largest
            right = is_largest[group.label_at, np.arange(len(largest))] & (group.label_at >= 0)
            # Rare, and to look for the first of all images would take longer than all the rest.
            tied = np.flatnonzero(np.count_nonzero(is_largest, axis=0) > 1)
            right[tied] = is_largest[:, tied].argmax(axis=0) == group.label_at[tied]
            found[group.images] = right
            unsure += int(np.count_nonzero(largest <= others))
        return found, unsure

    def is_right(self, members: Sequence[int]) -> Flags:
        """The first part of `judge`."""
        return self.judge(members)[0]

    def of(self, images: Positions) -> Outputs:
        """The same of some images only, in the order in which they are given."""
        place = np.full(self.right.shape[1], -1, dtype=np.int64)
        place[images] = np.arange(len(images))
        kept = []
        for group in self.groups:
            inside = place[group.images] >= 0
            if inside.any():
                kept.append(
                    Group(
                        place[group.images[inside]],
                        group.label_at[inside],
                        group.probabilities[:, :, inside],
                        group.left_out[:, inside],
                    )
                )
        return Outputs(self.right[:, images], tuple(kept), self.largest)


def collect(blocks: Iterable[NDArray[np.float16]], right: Flags, labels: NDArray[np.int32], largest: int) -> Outputs:
    """Keep of each image the classes that can win an average of at most `largest` models.

    Args:
        blocks: float16 (M, B, K) probabilities of successive images, in [0, 1].
        right: bool (M, N).
        labels: int32 (N,), true classes.

    Raises:
        AnalysisError: ensembles of more than 127 members.
    """
    if largest > _LARGEST:
        raise AnalysisError(f"ensembles can have {_LARGEST} members at most, not {largest}")
    parts: dict[int, list[Group]] = {}
    start = 0
    for block in blocks:
        n, k = block.shape[1:]
        positions = np.arange(start, start + n)
        start += n
        # Non-negative float16 numbers are ordered like their bits, which are compared ten times as fast.
        bits = block.view(np.uint16)
        surest = bits.max(axis=0).view(np.float16).astype(np.float32)
        least = bits.max(axis=2).min(axis=0).view(np.float16).astype(np.float32)
        n_can_win = np.count_nonzero(surest >= (least / largest)[:, None], axis=1)
        # A power of two, so that few arrays hold all images.
        widths = np.minimum(min(k, _MOST_CLASSES), 2 ** np.ceil(np.log2(np.maximum(n_can_win, 2))).astype(np.int64))
        for width in np.unique(widths).tolist():
            inside = np.flatnonzero(widths == width)
            kept = np.sort(np.argpartition(-surest[inside], width - 1, axis=1)[:, :width], axis=1)
            is_label = kept == labels[positions[inside], None]
            of_images = bits[:, inside]
            probabilities = np.take_along_axis(of_images, kept[None], axis=2)
            np.put_along_axis(of_images, kept[None], np.uint16(0), axis=2)
            left_out = np.where(n_can_win[inside] > width, of_images.max(axis=2), np.uint16(0))
            parts.setdefault(width, []).append(
                Group(
                    positions[inside],
                    np.where(is_label.any(axis=1), is_label.argmax(axis=1), -1),
                    _in_units(probabilities.transpose(0, 2, 1)),
                    _in_units(left_out),
                )
            )
    groups = tuple(
        Group(
            np.concatenate([part.images for part in of_width]),
            np.concatenate([part.label_at for part in of_width]),
            np.concatenate([part.probabilities for part in of_width], axis=2),
            np.concatenate([part.left_out for part in of_width], axis=1),
        )
        for _, of_width in sorted(parts.items())
    )
    return Outputs(right, groups, largest)


def _in_units(bits: NDArray[np.uint16]) -> Units:
    return (np.ascontiguousarray(bits).view(np.float16).astype(np.float32) * _UNITS).astype(np.int32)


def note_of_unsure(unsure: int, judged: int) -> list[str]:
    """What to say where a class that was not kept might have won: no line, or one."""
    if not unsure:
        return []
    return [
        f"in {unsure} of {judged} answers of ensembles ({100.0 * unsure / judged:.2g} %) a class might win that was "
        f"not looked at: {_MOST_CLASSES} are, where models are unsure"
    ]
