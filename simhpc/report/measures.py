"""Measures beside each other, as tables, summary and picture (docs/analyses.md, "Measures")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simhpc.analysis.measures import Comparison, Measure, Settings
from simhpc.report.figure import COLOURS, DPI, with_interval
from simhpc.report.tables import number, write_csv

_TITLES = {
    "sat": "SAT",
    "error_consistency": "error consistency",
    "disagreement": "disagreement",
    "js_divergence": "JS divergence",
    "gradient_cosine": "cosine of input gradients",
    "linear_cka": "linear CKA",
}


def write_table(measures: Sequence[Measure], names: Sequence[str], path: Path) -> None:
    """One row per unordered pair of different models and measure."""
    a, b = np.triu_indices(len(names), k=1)
    rows = (
        [
            names[i],
            names[j],
            measure.name,
            number(measure.value[i, j]),
            number(math.nan if measure.std_error is None else measure.std_error[i, j]),
        ]
        for i, j in zip(a.tolist(), b.tolist(), strict=True)
        for measure in measures
    )
    write_csv(path, ["a", "b", "measure", "value", "std_error"], rows)


def write_correlations(found: Comparison, path: Path) -> None:
    """One row per unordered pair of measures."""
    rows = (
        [each.one, each.other, str(each.n_pairs), number(each.rho), number(each.ci_low), number(each.ci_high)]
        for each in found.correlations
    )
    write_csv(path, ["measure_1", "measure_2", "n_pairs", "spearman", "ci_low", "ci_high"], rows)


def summary(measures: Sequence[Measure], found: Comparison, names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """What the tables do not say, as plain data."""
    return {
        "settings": asdict(settings),
        "measures": [
            {
                "name": measure.name,
                "unit": measure.unit,
                "alike_is": "large" if measure.is_similarity else "small",
                "n_images": measure.n_images,
                "passes_per_image": asdict(measure.cost),
                "note": measure.note,
                "mean": _mean(_pairs(measure.value)),
                "mean_std_error": math.nan if measure.std_error is None else _mean(_pairs(measure.std_error)),
                "reliability": measure.reliability,
            }
            for measure in measures
        ],
        "correlations": [asdict(each) for each in found.correlations],
        "differing_most": [{**asdict(each), "a": names[each.a], "b": names[each.b]} for each in found.differing],
        "notes": found.notes,
    }


def draw(measures: Sequence[Measure], found: Comparison, families: Sequence[str], *, title: str) -> Figure:
    """The rank correlations of all measures, and each measure against SAT, a point for each pair of models.

    Args:
        families: of the M models.
    """
    others = measures[1:]
    columns = 1 + min(3, len(others))
    rows = -(-len(others) // (columns - 1))
    figure = Figure(figsize=(3.6 * columns + 0.8, 3.6 * rows + 0.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns)
    _draw_correlations(figure.add_subplot(grid[:, 0]), measures, found)
    is_same = np.array(families)[:, None] == np.array(families)
    captions = {each.other: each for each in found.correlations if each.one == measures[0].name}
    kinds = (("two families", COLOURS[0], "o", ~is_same), ("one family", COLOURS[5], "^", is_same))
    for position, measure in enumerate(others):
        axes = figure.add_subplot(grid[position // (columns - 1), 1 + position % (columns - 1)])
        for _, colour, marker, which in kinds:
            chosen = np.triu(which, k=1)
            axes.scatter(
                measures[0].value[chosen],
                measure.value[chosen],
                s=9.0,
                color=colour,
                marker=marker,
                alpha=0.5,
                linewidths=0.0,
                rasterized=True,
            )
        each = captions[measure.name]
        rho = with_interval(each.rho, each.ci_low, each.ci_high)
        axes.set_title(f"ρ {rho}; {each.n_pairs} pairs", fontsize=9)
        axes.set_xlabel("SAT", fontsize=9)
        axes.set_ylabel(f"{_title(measure)}, {measure.unit}", fontsize=9)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    handles = [
        axes.scatter([], [], s=20.0, color=colour, marker=marker, label=name) for name, colour, marker, _ in kinds
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=9)
    figure.suptitle(f"{title}: what other measures of the same models say", fontsize=11)
    return figure


def _draw_correlations(axes: Axes, measures: Sequence[Measure], found: Comparison) -> None:
    q = len(measures)
    place = {measure.name: position for position, measure in enumerate(measures)}
    matrix = np.eye(q)
    for each in found.correlations:
        a, b = place[each.one], place[each.other]
        matrix[a, b] = matrix[b, a] = each.rho
    axes.set_facecolor("0.75")
    axes.imshow(np.ma.masked_invalid(matrix), cmap="PuOr", vmin=-1.0, vmax=1.0)
    for a in range(q):
        for b in range(q):
            known = math.isfinite(matrix[a, b])
            axes.text(
                b,
                a,
                f"{matrix[a, b]:.2f}" if known else "?",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if known and abs(matrix[a, b]) > 0.7 else "black",
            )
    names = [_title(measure) for measure in measures]
    axes.set_xticks(range(q), names, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(q), names, fontsize=9)
    axes.tick_params(length=0)
    axes.set_title("rank correlation over pairs", fontsize=9)


def _title(measure: Measure) -> str:
    return _TITLES.get(measure.name, measure.name.replace("_", " "))


def _pairs(matrix: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    values: np.ndarray[Any, np.dtype[np.float64]] = matrix[np.triu_indices(len(matrix), k=1)]
    return values


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
