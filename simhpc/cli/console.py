"""The two consoles, and how times and numbers are written on them."""

from __future__ import annotations

from rich.console import Console

from simhpc.stages.task import ALL

output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def name_of(model: str) -> str:
    """A task's model as people call it."""
    return "all models" if model == ALL else model


def duration(seconds: float | None) -> str:
    """`8.2 s`, `3 min 20 s` or `5 h 07 min`; `?` when unknown."""
    if seconds is None:
        return "?"
    if seconds < 59.95:  # what would be written as 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def percent(fraction: float) -> str:
    """`98.5 %`, or `-` for NaN."""
    return "-" if fraction != fraction else f"{100 * fraction:.1f} %"
