"""Distillation as tables, summary and picture (docs/analyses.md, "Distillation")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from simhpc.analysis.distillation import Result, Settings, Teachers, Vector
from simhpc.report.families import Style, legend_handles, styles
from simhpc.report.figure import DPI
from simhpc.report.tables import number, write_csv

HEADER = (
    "distillation",
    "student",
    "teacher",
    "base_architecture",
    "same_base_architecture",
    "sat",
    "teacher_accuracy",
    "n_students",
    "distilled_accuracy_mean",
    "distilled_accuracy_std",
    "distilled_minus_undistilled",
)
CORRELATIONS_HEADER = (
    "distillation",
    "teachers",
    "property",
    "given",
    "method",
    "n_teachers",
    "correlation",
    "ci_low",
    "ci_high",
)
_LABELLED = 40


@dataclass(frozen=True)
class Distilled:
    """One distillation of the study, and what was found of it.

    Attributes:
        name, student: of the distillation, and the model that was distilled.
        keys, bases: of its teachers, in the order of `teachers`; base architectures may be empty.
    """

    name: str
    student: str
    keys: list[str]
    bases: list[str]
    teachers: Teachers
    result: Result


def write_table(found: Sequence[Distilled], path: Path) -> None:
    """One row per teacher of each distillation."""
    write_csv(path, HEADER, (row for each in found for row in _rows(each)))


def write_correlations(found: Sequence[Distilled], path: Path) -> None:
    """One row per correlation of each distillation."""
    rows = (
        [
            each.name,
            of.group,
            of.property,
            of.given or "",
            of.method,
            str(of.n),
            *map(number, (of.r, of.ci_low, of.ci_high)),
        ]
        for each in found
        for of in each.result.correlations
    )
    write_csv(path, CORRELATIONS_HEADER, rows)


def summary(found: Sequence[Distilled], settings: Settings) -> dict[str, Any]:
    """What was found, as plain data."""
    return {
        "settings": asdict(settings),
        "distillations": [
            {
                "name": each.name,
                "student": each.student,
                "n_teachers": len(each.keys),
                "n_students": int(np.isfinite(each.teachers.distilled).sum()),
                "undistilled_accuracy_mean": _mean(each.teachers.undistilled),
                "undistilled_accuracy_std": _std(each.teachers.undistilled),
                "std_between_teachers": each.result.std_between_teachers,
                "std_between_repeats": each.result.std_between_repeats,
                "gains": [asdict(gain) for gain in each.result.gains],
                "correlations": [asdict(correlation) for correlation in each.result.correlations],
                "notes": each.result.notes,
            }
            for each in found
        ],
    }


def draw(found: Sequence[Distilled], families: Sequence[str], *, title: str) -> Figure:
    """For each distillation distilled accuracy over similarity, and over the teacher's accuracy.

    Args:
        families: of all models of the study, for the colours. Teachers of the student's base architecture are filled.
    """
    looks = styles([*families, *(base for each in found for base in each.bases)])
    figure = Figure(figsize=(11.0, 0.6 + 4.4 * len(found)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for row, each in zip(figure.subplots(len(found), 2, squeeze=False, sharey="row"), found, strict=True):
        _panel(row[0], each, each.teachers.similarity, "similarity", "SAT of teacher and undistilled student", looks)
        _panel(row[1], each, 100 * each.teachers.accuracy, "teacher_accuracy", "accuracy of the teacher (%)", looks)
        row[0].set_ylabel(f"{each.name}: accuracy of the distilled student (%)", fontsize=9)
        shown = {base: looks[base] for base in looks if base in each.bases}
        row[1].legend(handles=legend_handles(shown), fontsize=8, loc="best")
    figure.suptitle(f"{title}: what a good teacher has", fontsize=11)
    return figure


def _panel(axes: Axes, each: Distilled, x: Vector, name: str, label: str, looks: Mapping[str, Style]) -> None:
    y, undistilled = 100 * each.teachers.means, 100 * each.teachers.undistilled
    if np.isfinite(undistilled).any():
        mean, std = _mean(undistilled), _std(undistilled)
        axes.axhline(mean, color="0.4", linewidth=1.0, linestyle="--", label="undistilled")
        if np.isfinite(std):
            axes.axhspan(mean - std, mean + std, color="0.9", zorder=0)
    spread = np.array([100 * _std(row) for row in each.teachers.distilled])
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    for position in known:
        look = looks[each.bases[position]]
        axes.errorbar(
            x[position],
            y[position],
            np.nan_to_num(spread[position]),
            fmt=look.marker,
            color=look.colour,
            markerfacecolor=look.colour if each.teachers.same_base[position] == 1 else "white",
            markersize=6,
            elinewidth=1.0,
            zorder=3,
        )
    for position in known if len(known) <= _LABELLED else ():
        axes.annotate(
            each.keys[position],
            (x[position], y[position]),
            xytext=(5, 3),
            textcoords="offset points",
            fontsize=7,
            color="0.25",
        )
    plain = next(
        of
        for of in each.result.correlations
        if (of.group, of.property, of.given, of.method) == ("all", name, None, "pearson")
    )
    interval = f" [{plain.ci_low:.2f}, {plain.ci_high:.2f}]" if np.isfinite(plain.ci_low) else ", no interval"
    text = f"r = {plain.r:.2f}{interval}" if np.isfinite(plain.r) else "no correlation known"
    axes.set_title(f"{text}, {plain.n} teachers", fontsize=9)
    axes.set_xlabel(label, fontsize=9)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.margins(x=0.15, y=0.15)


def _rows(each: Distilled) -> list[list[str]]:
    undistilled, means = _mean(each.teachers.undistilled), each.teachers.means
    same = {1.0: "yes", 0.0: "no"}
    return [
        [
            each.name,
            each.student,
            key,
            each.bases[t],
            same.get(float(each.teachers.same_base[t]), "nan"),
            number(each.teachers.similarity[t]),
            number(each.teachers.accuracy[t]),
            str(int(np.isfinite(each.teachers.distilled[t]).sum())),
            number(means[t]),
            number(_std(each.teachers.distilled[t])),
            number(means[t] - undistilled),
        ]
        for t, key in enumerate(each.keys)
    ]


def _mean(values: Vector) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _std(values: Vector) -> float:
    """Standard deviation of what is known, with n - 1; NaN of fewer than two."""
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")
