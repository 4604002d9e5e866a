"""Training strategies as table, summary and picture (docs/analyses.md, "Training strategies")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simhpc.analysis.strategies import ALL, KINDS, Group, Row, Settings, Strategies
from simhpc.report.figure import COLOURS, DPI
from simhpc.report.tables import number, write_csv

HEADER = (
    "kind",
    "group",
    "n_models",
    "n_pairs",
    "n_pairs_unknown",
    "mean_sat",
    "ci_low",
    "ci_high",
    "minus_architecture",
    "p_value",
    "p_smallest",
)

_MOST_GROUPS = 40
_MARKERS = ("o", "s", "^", "D")


def write_table(found: Strategies, path: Path) -> None:
    """One row per kind, followed by one per group of it."""
    rows = (
        [
            row.kind,
            row.group,
            str(row.n_models),
            str(row.n_pairs),
            str(row.n_unknown),
            *map(number, (row.mean_sat, row.ci_low, row.ci_high, row.minus_architecture, row.p_value, row.p_smallest)),
        ]
        for row in found.rows
    )
    write_csv(path, HEADER, rows)


def summary(
    found: Strategies, groups: Sequence[Group], names: Sequence[str], settings: Settings, *, is_declared: bool
) -> dict[str, Any]:
    """Each kind as a whole, and who is in which group, as plain data."""
    return {
        "settings": asdict(settings),
        "groups_are": "declared" if is_declared else "derived",
        "kinds": {row.kind: asdict(row) for row in found.rows if row.group == ALL},
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "models": [names[position] for position in np.flatnonzero(group.pairs.any(axis=0)).tolist()],
            }
            for group in groups
        ],
        "notes": found.notes,
    }


def draw(found: Strategies, groups: Sequence[Group], similarity: NDArray[np.float64], *, title: str) -> Figure:
    """Each kind as a row, its groups below it: every pair a dot, the mean and its interval.

    Args:
        similarity: (N, N), as it was analysed.
    """
    rows = [row for row in found.rows if row.n_pairs][:_MOST_GROUPS]
    figure = Figure(figsize=(10.0, 1.6 + 0.36 * len(rows)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        pairs = [g.pairs for g in groups if g.kind == row.kind and row.group in (ALL, g.name)]
        _draw_row(axes, place, row, similarity[np.triu(np.any(pairs, axis=0))])
    labels = [_label(row) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontweight("bold" if row.group == ALL else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.set_xlabel("SAT = ln(mean fooling rate in %): pairs, their mean and its interval over models", fontsize=9)
    figure.suptitle(f"{title}: how alike are models that differ in ...", fontsize=11)
    return figure


def _draw_row(axes: Axes, place: int, row: Row, values: NDArray[np.float64]) -> None:
    k = KINDS.index(row.kind)
    values = np.sort(values[np.isfinite(values)])
    # Spread over the row in a fixed pattern, so that equal values do not hide each other.
    shift = ((np.arange(len(values)) * 0.618) % 1.0 - 0.5) * 0.5
    axes.plot(values, place + shift, ".", color=COLOURS[k], markersize=4, alpha=0.35, rasterized=True)
    if np.isfinite(row.ci_low):
        axes.plot([row.ci_low, row.ci_high], [place, place], color="black", linewidth=1.5)
    size = 8 if row.group == ALL else 5
    axes.plot([row.mean_sat], [place], _MARKERS[k], color=COLOURS[k], markeredgecolor="black", markersize=size)


def _label(row: Row) -> str:
    counted = f"{row.n_models} models, {row.n_pairs} pair{'s' if row.n_pairs > 1 else ''}"
    if row.group != ALL:
        return f"{row.group} ({counted})"
    return f"{row.kind} ({counted})" + (f", p = {row.p_value:.2g}" if np.isfinite(row.p_value) else "")
