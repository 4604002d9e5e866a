"""The two consoles, how times and numbers are written on them, and how a command ends that did without something."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import typer
from rich.console import Console

from simhpc.stages.task import ALL

output = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def tell(notes: Iterable[str]) -> None:
    """Print those notes that say something, where they are seen and no pipe takes them."""
    for note in filter(None, notes):
        errors.print(f"note: {note}", markup=False, soft_wrap=True)


def end_with(problems: Sequence[str]) -> None:
    """Say what was missing or damaged and done without; then the exit code is 1.

    Raises:
        typer.Exit: there was any.
    """
    for problem in problems:
        errors.print(f"problem: {problem}", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


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


def scaled(number: float, unit: str) -> str:
    """A count with a decimal prefix: `7.63 MFLOP`, `2.1 T`."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(number) < 999.5 or prefix == "E":
            break
        number /= 1000
    return f"{_three_digits(number)} {prefix}{unit}".rstrip()


def size(n_bytes: float) -> str:
    """Bytes with a binary prefix: `3.42 GiB`."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if abs(n_bytes) < 999.5 or unit == "TiB":
            break
        n_bytes /= 1024
    return f"{_three_digits(n_bytes)} {unit}"


def _three_digits(number: float) -> str:
    """`0`, `7.63`, `76.3` or `763`."""
    if number == int(number) and abs(number) < 10:
        return str(int(number))
    return f"{number:.{max(0, 2 - len(str(int(abs(number)))) + 1)}f}"
