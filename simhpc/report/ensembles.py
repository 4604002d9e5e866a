"""Ensembles as table, summary and picture (docs/analyses.md, "Ensembles")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simhpc.analysis.ensembles import Ensembles, OfSize, Settings, Trend
from simhpc.report.figure import COLOURS, DPI, with_interval
from simhpc.report.tables import number, write_csv

HEADER = (
    "members",
    "size",
    "accuracy",
    "mean_member_accuracy",
    "best_member_accuracy",
    "error_reduction",
    "all_wrong_share",
    "mean_sat",
    "n_clusters",
)
_KINDS = (
    ("all from different clusters", COLOURS[0], "o"),
    ("in between, or unknown", "0.6", "s"),
    ("all from one cluster", COLOURS[5], "^"),
)
_MOST_SIZES = 6


def write_table(found: Ensembles, names: Sequence[str], path: Path) -> None:
    """One row per ensemble, by size; members with spaces between."""
    rows = (
        [
            " ".join(names[member] for member in made.members[row]),
            str(made.size),
            *(number(getattr(made, column)[row]) for column in HEADER[2:-1]),
            "nan" if math.isnan(made.n_clusters[row]) else str(int(made.n_clusters[row])),
        ]
        for made in found.of_size
        for row in range(len(made.members))
    )
    write_csv(path, HEADER, rows)


def summary(found: Ensembles, settings: Settings) -> dict[str, Any]:
    """What the table does not say, as plain data."""
    return {
        "settings": asdict(settings),
        "sizes": [
            {
                "size": made.size,
                "n_ensembles": len(made.members),
                "n_possible": made.n_possible,
                "is_sample": len(made.members) < made.n_possible,
                "mean_error_reduction": _mean(made.error_reduction),
                "mean_all_wrong_share": _mean(made.all_wrong_share),
                "answers_not_sure": made.n_unsure,
                "share_better_than_best_member": float((made.accuracy > made.best_member_accuracy).mean()),
            }
            for made in found.of_size
        ],
        "trends": [asdict(trend) for trend in found.trends],
        "clusters": [asdict(contrast) for contrast in found.contrasts],
        "notes": found.notes,
    }


def draw(found: Ensembles, *, title: str) -> Figure:
    """Error reduction and share of images that all members get wrong against mean SAT, a column for each size."""
    shown = found.of_size[:_MOST_SIZES]
    figure = Figure(figsize=(1.2 + 3.1 * len(shown), 6.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(shown), squeeze=False, sharex="col", sharey="row")
    trends = {(trend.size, trend.outcome): trend for trend in found.trends if trend.predictor == "mean_sat"}
    for column, made in enumerate(shown):
        for row, outcome in enumerate(("error_reduction", "all_wrong_share")):
            axes = grid[row, column]
            values = 100.0 * getattr(made, outcome)
            for (_, colour, marker), which in zip(_KINDS, _kinds(made), strict=True):
                axes.scatter(
                    made.mean_sat[which],
                    values[which],
                    s=10.0,
                    color=colour,
                    marker=marker,
                    alpha=0.6,
                    linewidths=0.0,
                    rasterized=True,  # a thousand markers are a large drawing
                )
            axes.set_title(_caption(trends[made.size, outcome]), fontsize=8)
            axes.grid(color="0.9")
            axes.set_axisbelow(True)
        how_many = len(made.members)
        of_all = "" if how_many == made.n_possible else f" of {made.n_possible}"
        grid[1, column].set_xlabel(f"mean SAT inside\n{made.size} members, {how_many}{of_all} ensembles", fontsize=9)
    grid[0, 0].set_ylabel("error reduction\n(% of the members' mean error)", fontsize=9)
    grid[1, 0].set_ylabel("all members wrong\n(% of the images)", fontsize=9)
    handles = [
        grid[0, 0].scatter([], [], s=20.0, color=colour, marker=marker, label=name) for name, colour, marker in _KINDS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.suptitle(f"{title}: what ensembles gain", fontsize=11)
    return figure


def _kinds(made: OfSize) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], ...]:
    different, same = made.n_clusters == made.size, made.n_clusters == 1
    return different, ~different & ~same, same


def _caption(trend: Trend) -> str:
    if math.isnan(trend.rho):
        return f"rank correlation unknown (n = {trend.n})"
    text = f"ρ {with_interval(trend.rho, trend.ci_low, trend.ci_high)}"
    if math.isnan(trend.partial):
        return text
    return f"{text}\ngiven accuracy {with_interval(trend.partial, trend.partial_ci_low, trend.partial_ci_high)}"


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan
