"""What a benchmark finds: numbers by library, and checks that the libraries did the same work."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "simhpc"
"""Our own name among the libraries."""


@dataclass(frozen=True)
class Spread:
    """Of a number over repetitions."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class Measure:
    """One thing measured of one model (or file, or study) in several libraries.

    Attributes:
        name: e.g. `attack_throughput`.
        unit: of the values.
        model: what it was measured on.
        values: by library, one per repetition; those of one repetition were measured directly after each other.
    """

    name: str
    unit: str
    model: str
    values: dict[str, list[float]]

    def spread(self, library: str) -> Spread:
        """Of one library's values."""
        return spread(self.values[library])

    def ratio(self, peer: str) -> Spread:
        """Of ours / peer, computed within each repetition, so that what slows all down for a while cancels."""
        ours, theirs = self.values[OURS], self.values[peer]
        return spread([our / their for our, their in zip(ours, theirs, strict=True)])

    @property
    def peers(self) -> list[str]:
        """Libraries that ours can be compared with; none where we were not measured."""
        return [name for name in self.values if name != OURS] if OURS in self.values else []


@dataclass(frozen=True)
class Check:
    """Something that has to hold for the comparison to mean anything."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Part:
    """All that one part of the benchmarks has found.

    Attributes:
        facts: what else is worth knowing: settings, FLOPs per image.
    """

    measures: list[Measure] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(statistics.median(values), min(values), max(values))
