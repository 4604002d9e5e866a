"""`summary.json`: all that the benchmarks have found, one entry per part; each part is replaced when it runs again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.measures import OURS, Check, Measure, Part, Spread

Summary = dict[str, Any]

DIFFERENCES = ("self_fooling",)
"""Measures in percent that are compared by subtraction."""


def read(path: Path) -> Summary:
    """The summary, or an empty one."""
    found: Summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}, "ratios": {}}
    return found


def write(path: Path, summary: Summary) -> None:
    """Write the summary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def with_part(summary: Summary, name: str, part: Part, machine: dict[str, Any], elapsed_s: float) -> Summary:
    """The summary with one part put in, and `ratios` made anew: by measure, model and peer, of ours / peer."""
    entry = {
        "machine": machine,
        "elapsed_s": round(elapsed_s, 1),
        "facts": part.facts,
        "checks": [asdict(check) for check in part.checks],
        "measures": [asdict(measure) for measure in part.measures],
    }
    parts = {**summary["parts"], name: entry}
    return {"parts": parts, "ratios": _ratios([measure for _, measure in measures({"parts": parts})])}


def measures(summary: Summary) -> Iterator[tuple[str, Measure]]:
    """All measures with the name of their part."""
    for name, part in summary["parts"].items():
        for measure in part["measures"]:
            yield name, Measure(**measure)


def failed(summary: Summary, parts: list[str]) -> list[Check]:
    """The checks of these parts that did not hold."""
    checks = [Check(**check) for name in parts for check in summary["parts"][name]["checks"]]
    return [check for check in checks if not check.passed]


def rows(summary: Summary) -> list[tuple[str, ...]]:
    """One row per measure, model and library: part, measure, model, library, value with spread, ours / theirs."""
    return [
        (
            part,
            f"{measure.name} ({measure.unit})",
            measure.model,
            library,
            _with_spread(measure.spread(library)),
            _compared(measure, library),
        )
        for part, measure in measures(summary)
        for library in measure.values
    ]


HEADINGS = ("part", "measure", "model", "library", "median (min to max)", "simhpc / library")


def _compared(measure: Measure, library: str) -> str:
    if library not in measure.peers:
        return ""
    if measure.name in DIFFERENCES:
        difference = measure.spread(OURS).median - measure.spread(library).median
        return f"{difference:+.2f} points"
    return _with_spread(measure.ratio(library))


def _with_spread(found: Spread) -> str:
    if found.min == found.max:
        return _digits(found.median)
    return f"{_digits(found.median)} ({_digits(found.min)} to {_digits(found.max)})"


def _digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratios(found: list[Measure]) -> dict[str, Any]:
    ratios: dict[str, Any] = {}
    for measure in found:
        for peer in measure.peers:
            if measure.name not in DIFFERENCES:
                ratios.setdefault(measure.name, {}).setdefault(measure.model, {})[peer] = vars(measure.ratio(peer))
    return ratios
