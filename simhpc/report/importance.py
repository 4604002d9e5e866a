"""Component importance as table, summary and picture (docs/analyses.md, "Importance")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simhpc.analysis.importance import Importance, Settings
from simhpc.report.figure import COLOURS, DPI
from simhpc.report.tables import number, write_csv

HEADER = (
    "component",
    "importance_mean",
    "importance_std",
    "importance_held_out_mean",
    "importance_held_out_std",
    "n_values",
    "n_pairs_same",
    "n_pairs_different",
    "sat_same_mean",
    "sat_different_mean",
    "sat_same_minus_different",
    "sat_same_minus_different_ci_low",
    "sat_same_minus_different_ci_high",
)


def write_table(found: Importance, columns: Sequence[str], path: Path) -> None:
    """One row per component, the most important (in sample, as the paper ranks them) first."""
    numbers = (
        found.in_sample_mean,
        found.in_sample_std,
        found.held_out_mean,
        found.held_out_std,
        found.n_values,
        found.n_same,
        found.n_different,
        found.same_mean,
        found.different_mean,
        found.difference,
        found.ci_low,
        found.ci_high,
    )
    write_csv(path, HEADER, ([columns[c], *(_cell(each[c]) for each in numbers)] for c in ranking(found)))


def summary(found: Importance, columns: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What the table does not say, as plain data."""
    return {
        "settings": asdict(settings),
        "r2_in_sample": found.r2_in_sample,
        "r2_held_out": found.r2_held_out,
        "r2_both_held_out": found.r2_both_held_out,
        "n_pairs": found.n_pairs,
        "n_pairs_unknown": found.n_unknown,
        "folds": found.folds,
        "ranking": [columns[c] for c in ranking(found) if found.in_sample_mean[c] > 0],
        "notes": found.notes,
    }


def ranking(found: Importance) -> list[int]:
    """Components by falling importance; of equal ones the first comes first."""
    return [int(c) for c in np.argsort(-found.in_sample_mean, kind="stable")]


def draw(found: Importance, columns: Sequence[str], *, title: str, confidence: float) -> Figure:
    """Bars of importance in sample and held out; beside them same minus different with its interval."""
    order = ranking(found)
    c = len(order)
    figure = Figure(figsize=(11.0, 1.8 + 0.42 * c), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = np.arange(c)
    for mean, std, r2, shift, colour, name in (
        (found.in_sample_mean, found.in_sample_std, found.r2_in_sample, -0.2, COLOURS[0], "in sample"),
        (found.held_out_mean, found.held_out_std, found.r2_held_out, 0.2, COLOURS[1], "models held out"),
    ):
        known = np.isfinite(mean[order])
        left.barh(
            (rows + shift)[known],
            mean[order][known],
            height=0.38,
            xerr=std[order][known],
            color=colour,
            ecolor="black",
            error_kw={"linewidth": 1.0, "capsize": 2.0},
            label=f"{name} (R² {r2:.2f})" if np.isfinite(r2) else f"{name} (unknown)",
        )
    left.set_yticks(rows, [columns[k] for k in order], fontsize=9)
    left.invert_yaxis()
    left.axvline(0.0, color="black", linewidth=0.8)
    left.set_xlabel("fall of R² when the component is permuted\n(bar: mean, line: ± std over repeats)", fontsize=9)
    left.legend(fontsize=9, loc="lower right")
    has_interval = np.isfinite(found.ci_low[order])
    right.hlines(
        rows[has_interval], found.ci_low[order][has_interval], found.ci_high[order][has_interval], color=COLOURS[2]
    )
    right.plot(found.difference[order], rows, "o", color=COLOURS[2], markersize=5)
    right.axvline(0.0, color="black", linewidth=0.8)
    right.set_xlabel(
        f"mean SAT of pairs that share the value, minus of those that do not\n({100 * confidence:g} % interval over "
        "models)",
        fontsize=9,
    )
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(f"{title}: what makes models alike ({found.n_pairs} pairs)", fontsize=11)
    return figure


def _cell(value: Any) -> str:
    return str(int(value)) if isinstance(value, np.integer) else number(value)
