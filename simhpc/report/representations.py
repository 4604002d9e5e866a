"""Gradient cosine and CKA as tables, summary and picture (docs/analyses.md, "Representations")."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simhpc.analysis.representations import Measure, Noise
from simhpc.report.figure import COLOURS, DPI
from simhpc.report.tables import number, write_csv

NAMES = {"gradient_cosine": "cosine of input gradients", "linear_cka": "linear CKA", "sat": "SAT"}
_BINS = 60


@dataclass(frozen=True)
class ModelRow:
    """What is told of one model.

    Attributes:
        features_from, n_features: where in the network the features are, and how many.
        noise_cosines: float32 (n,), of the gradients at two noisy copies of each image.
        n_zero: images without a gradient.
        forward_passes, gradient_passes: images computed to store all this.
        stored_bytes: size of the file.
        elapsed_s: of the task, its start included; NaN unknown.
    """

    model: str
    features_from: str
    n_features: int
    noise_cosines: NDArray[np.float32]
    n_zero: int
    forward_passes: int
    gradient_passes: int
    stored_bytes: int
    elapsed_s: float


def write_models(rows: Sequence[ModelRow], path: Path) -> None:
    """One row per model."""
    header = [
        "model",
        "features_from",
        "n_features",
        "noise_cosine_mean",
        "noise_cosine_std_error",
        "noise_cosine_q05",
        "noise_cosine_q95",
        "images_without_gradient",
        "forward_passes",
        "gradient_passes",
        "stored_bytes",
        "elapsed_s",
    ]
    table = []
    for row in rows:
        known = row.noise_cosines[np.isfinite(row.noise_cosines)].astype(np.float64)
        error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
        low, high = np.quantile(known, (0.05, 0.95)) if len(known) else (np.nan, np.nan)
        mean = known.mean() if len(known) else np.nan
        counts = (row.n_zero, row.forward_passes, row.gradient_passes, row.stored_bytes)
        under_noise = map(number, (mean, error, low, high))
        cells = [row.model, row.features_from, str(row.n_features), *under_noise, *map(str, counts)]
        table.append([*cells, number(row.elapsed_s)])
    write_csv(path, header, table)


def write_pairs(
    names: Sequence[str], cosines: NDArray[np.float32], gradient_cosine: Measure, cka: Measure, path: Path
) -> None:
    """One row per unordered pair of different models.

    Args:
        cosines: (n, M, M), of single images.
    """
    header = ["a", "b", "gradient_cosine", "gradient_cosine_std_error", "gradient_cosine_image_std"]
    header += ["gradient_cosine_image_q05", "gradient_cosine_image_q95", "linear_cka", "linear_cka_std_error"]
    table = []
    for a, b in itertools.combinations(range(len(names)), 2):
        single = cosines[:, a, b].astype(np.float64)
        single = single[np.isfinite(single)]
        std = single.std(ddof=1) if len(single) > 1 else np.nan
        low, high = np.quantile(single, (0.05, 0.95)) if len(single) else (np.nan, np.nan)
        values = (gradient_cosine.values[a, b], gradient_cosine.std_errors[a, b], std, low, high)
        table.append([names[a], names[b], *map(number, (*values, cka.values[a, b], cka.std_errors[a, b]))])
    write_csv(path, header, table)


def summary(noises: Mapping[str, Noise], rows: Sequence[ModelRow], cosines: NDArray[np.float32]) -> dict[str, Any]:
    """How noisy each measure is, and the distribution of single images' cosines, as plain data."""
    m = cosines.shape[1]
    single = cosines[:, *np.triu_indices(m, 1)].ravel()
    own = np.concatenate([row.noise_cosines for row in rows])
    return {
        "noise": {name: asdict(found) for name, found in noises.items()},
        "single_image_cosines": _quantiles(single),
        "noise_cosines": _quantiles(own),
        "images_without_gradient": sum(row.n_zero for row in rows),
        "stored_bytes": sum(row.stored_bytes for row in rows),
        "elapsed_s": float(np.sum([row.elapsed_s for row in rows])),
    }


def _quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    known = values[np.isfinite(values)].astype(np.float64)
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    found = np.quantile(known, shares) if len(known) else np.full(len(shares), np.nan)
    return {f"q{100 * share:02.0f}": float(value) for share, value in zip(shares, found, strict=True)}


def draw(
    measures: Mapping[str, Measure],
    noises: Mapping[str, Noise],
    sat: Measure,
    cosines: NDArray[np.float32],
    rows: Sequence[ModelRow],
    *,
    title: str,
) -> Figure:
    """Each measure against SAT with standard errors, and between them the cosines of single images.

    Args:
        measures: `gradient_cosine` and `linear_cka`.
        noises: of these and of `sat`.
        cosines: (n, M, M).
    """
    figure = Figure(figsize=(13.0, 4.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    _draw_against(left, "gradient_cosine", measures, noises, sat, COLOURS[0])
    _draw_single(middle, cosines, rows)
    _draw_against(right, "linear_cka", measures, noises, sat, COLOURS[2])
    found = noises["sat"]
    figure.suptitle(
        f"{title}: measures inside networks beside SAT ({found.n_images} images, reliability {found.reliability:.3f})"
    )
    return figure


def _draw_against(
    axes: Axes,
    name: str,
    measures: Mapping[str, Measure],
    noises: Mapping[str, Noise],
    sat: Measure,
    colour: str,
) -> None:
    measure, upper = measures[name], np.triu_indices(len(sat.values), 1)
    axes.errorbar(
        sat.values[upper],
        measure.values[upper],
        xerr=np.nan_to_num(sat.std_errors[upper]),
        yerr=np.nan_to_num(measure.std_errors[upper]),
        fmt="o",
        markersize=3.0,
        linewidth=0.6,
        color=colour,
        ecolor="0.7",
        rasterized=len(upper[0]) > 5000,
    )
    axes.set_xlabel("SAT = ln(mean fooling rate in %)", fontsize=9)
    axes.set_ylabel(NAMES[name], fontsize=9)
    found = noises[name]
    axes.set_title(
        f"{NAMES[name]}, {found.n_images} images\nreliability {found.reliability:.3f}; bars: 1 standard error",
        fontsize=9,
    )


def _draw_single(axes: Axes, cosines: NDArray[np.float32], rows: Sequence[ModelRow]) -> None:
    """Of single images: all pairs of models, and models with themselves under noise."""
    upper = np.triu_indices(cosines.shape[1], 1)
    own = np.concatenate([row.noise_cosines for row in rows])
    bins = np.linspace(-1.0, 1.0, _BINS + 1).tolist()
    for values, label, colour in (
        (cosines[:, *upper].ravel(), "two models, one image", COLOURS[0]),
        (own, "one model, two noisy copies of an image", COLOURS[5]),
    ):
        known = values[np.isfinite(values)]
        if len(known):
            weights = np.full(len(known), 100.0 / len(known))
            axes.hist(known, bins=bins, weights=weights, histtype="step", linewidth=1.5, color=colour, label=label)
    axes.set_xlabel("cosine of input gradients at one image", fontsize=9)
    axes.set_ylabel("share (%)", fontsize=9)
    axes.set_xlim(-1.0, 1.0)
    axes.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    axes.legend(fontsize=8, loc="upper left")
    axes.set_title("single images", fontsize=9)
