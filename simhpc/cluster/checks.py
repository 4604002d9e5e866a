"""What `simhpc doctor` tells: one check, and the stages that are checked together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from simhpc.cluster.profile import StageResources
from simhpc.stages import STAGES

OK, WARNING, FAILED = "ok", "warning", "FAILED"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the check; stages that are alike are checked together.
        level: `OK`, `WARNING` (it works, but) or `FAILED`.
        found: what was seen.
        advice: what to do next; empty when all is well.
    """

    name: str
    level: str
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Kind:
    """Stages with the same resources."""

    stages: tuple[str, ...]
    resources: StageResources

    @property
    def name(self) -> str:
        return "all stages" if len(self.stages) == len(STAGES) else ", ".join(self.stages)


def one_line(said: object) -> str:
    """One line of what a program said."""
    lines: Iterable[str] = (line.strip() for line in str(said).splitlines())
    return "; ".join(line for line in lines if line)
