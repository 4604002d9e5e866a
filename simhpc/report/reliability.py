"""How sure a matrix is, as tables, summary and picture (docs/analyses.md, "How sure is it")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simhpc.analysis.reliability import Agreement, Neighbours, Settings, SplitHalf, Width
from simhpc.report.families import colour_names, legend_handles, styles
from simhpc.report.figure import COLOURS, DPI
from simhpc.report.tables import number, write_csv

Matrix = NDArray[np.float64]

HEADER = (
    "model",
    "nearest",
    "nearest_share",
    "runner_up",
    "sat_nearest",
    "sat_runner_up",
    "images_needed",
    "neighbours_rank_correlation",
    "cluster",
    "cluster_jaccard",
)
_MOST_NAMES = 100


@dataclass(frozen=True)
class Against:
    """Another run, beside this one.

    Attributes:
        differences: of the studies, one line each.
    """

    run: str
    differences: list[str]
    agreement: Agreement


@dataclass(frozen=True)
class Reliability:
    """All that was found of M models.

    Attributes:
        cluster: number of each model's cluster; None: in none.
        jaccard: (M,), of `cluster_jaccard`, NaN without a cluster.
        rand: (R,), of the same.
    """

    n_images: int
    widths: list[Width]
    split_half: dict[str, SplitHalf]
    neighbours: Neighbours
    cluster: list[int | None]
    jaccard: Matrix
    rand: Matrix
    against: list[Against]


def write_table(found: Reliability, similarity: Matrix, names: Sequence[str], path: Path) -> None:
    """One row per model, in the study's order."""
    near = found.neighbours

    def rows() -> Any:
        for position, name in enumerate(names):
            one, two = int(near.nearest[position]), int(near.runner_up[position])
            cluster = found.cluster[position]
            yield [
                name,
                names[one] if one >= 0 else "nan",
                number(near.share[position]),
                names[two] if two >= 0 else "nan",
                *(number(similarity[position, other] if other >= 0 else np.nan) for other in (one, two)),
                number(near.images_needed[position]),
                number(near.rank_correlation[position]),
                "nan" if cluster is None else str(cluster),
                number(found.jaccard[position]),
            ]

    write_csv(path, HEADER, rows())


def write_widths(found: Reliability, path: Path) -> None:
    """One row per number of images."""
    rows = (
        [
            str(width.n_images),
            "yes" if width.is_extrapolated else "no",
            str(width.n_pairs),
            *map(number, (width.median, width.p10, width.p90)),
        ]
        for width in found.widths
    )
    header = ["n_images", "is_extrapolated", "n_pairs", "ci_width_median", "ci_width_p10", "ci_width_p90"]
    write_csv(path, header, rows)


def write_against(found: Reliability, path: Path) -> None:
    """One row per other run."""
    header = ["run", "n_models", "n_pairs", "spearman", "ci_low", "ci_high", "pearson", "same_nearest_share"]
    rows = []
    for other in found.against:
        a = other.agreement
        numbers = map(number, (a.spearman, a.spearman_low, a.spearman_high, a.pearson, a.same_nearest))
        rows.append([other.run, str(a.n_models), str(a.n_pairs), *numbers, "; ".join(other.differences)])
    write_csv(path, [*header, "differences"], rows)


def summary(found: Reliability, names: Sequence[str], settings: Settings) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "settings": asdict(settings),
        "n_images": found.n_images,
        "widths": [asdict(width) for width in found.widths],
        "split_half": {name: asdict(each) for name, each in found.split_half.items()},
        "nearest_is_sure": [names[k] for k in np.flatnonzero(found.neighbours.share >= 0.95).tolist()],
        "nearest_is_not_sure": [names[k] for k in np.flatnonzero(found.neighbours.share < 0.95).tolist()],
        "mean_nearest_share": _mean(found.neighbours.share),
        "mean_neighbours_rank_correlation": _mean(found.neighbours.rank_correlation),
        "mean_cluster_jaccard": _mean(found.jaccard),
        "mean_cluster_rand": _mean(found.rand),
        "against": [asdict(other) for other in found.against],
    }


def draw(
    found: Reliability,
    halves: tuple[NDArray[np.float32], NDArray[np.float32]],
    names: Sequence[str],
    families: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Interval width by number of images, one half of the images against the other, and how sure neighbours are.

    Args:
        halves: as of `analysis.reliability.halves`; the first split is drawn.
        families: of the M models, as `report.families` gives them.
    """
    known = np.flatnonzero(np.isfinite(found.neighbours.share))
    step = max(1, -(-len(known) // _MOST_NAMES))
    height_in = float(np.clip(1.6 + 0.17 * len(known), 4.5, 16.0))
    figure = Figure(figsize=(15.0, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.1))
    _draw_widths(left, found.widths)
    _draw_halves(middle, halves, found.split_half)
    order = known[np.argsort(-found.neighbours.share[known], kind="stable")]
    of = styles(families)
    for family, style in of.items():
        rows = [row for row, position in enumerate(order) if families[position] == family]
        shares = found.neighbours.share[order[rows]]
        right.plot(shares, rows, style.marker, color=style.colour, markersize=5, linestyle="none")
    right.axvline(0.95, color="black", linewidth=0.8, linestyle="--")
    shown = order[::step]
    labels = [f"{names[k]}: {names[found.neighbours.nearest[k]]}" for k in shown]
    right.set_yticks(range(0, len(order), step), labels, fontsize=7)
    colour_names(right.get_yticklabels(), [families[k] for k in shown], of)
    right.set_ylim(len(order) - 0.5, -0.5)
    right.set_xlim(-0.02, 1.02)
    right.tick_params(axis="y", length=0)
    right.set_xlabel("share of resamples of the images in which\nit stays the nearest (line: 95 %)", fontsize=9)
    right.set_title("each model: its nearest", fontsize=9)
    if len(of) > 1:
        figure.legend(handles=legend_handles(of), loc="outside lower center", ncols=min(8, len(of)), fontsize=9)
    for axes in (left, middle, right):
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    figure.suptitle(f"{title}: how sure it is with {found.n_images} images", fontsize=11)
    return figure


def _draw_widths(axes: Axes, widths: Sequence[Width]) -> None:
    sizes = np.array([width.n_images for width in widths])
    median, low, high = (np.array([getattr(width, name) for width in widths]) for name in ("median", "p10", "p90"))
    axes.fill_between(sizes, low, high, color=COLOURS[0], alpha=0.2, label="10th to 90th percentile of pairs")
    is_there = np.array([not width.is_extrapolated for width in widths])
    last = np.flatnonzero(is_there)[-1]
    axes.plot(sizes[is_there], median[is_there], "o-", color=COLOURS[0], label="median pair")
    axes.plot(sizes[last:], median[last:], "o--", color=COLOURS[1], markerfacecolor="white", label="extrapolated")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=90, fontsize=8)
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("images", fontsize=9)
    axes.set_ylabel("width of SAT's confidence interval", fontsize=9)
    axes.legend(fontsize=8)
    axes.set_title("more images", fontsize=9)


def _draw_halves(
    axes: Axes, halves: tuple[NDArray[np.float32], NDArray[np.float32]], split_half: dict[str, SplitHalf]
) -> None:
    one, two = halves[0][0], halves[1][0]
    axes.plot(one, two, ".", color=COLOURS[2], markersize=4, alpha=0.5, rasterized=True)
    both = np.concatenate([one, two])
    ends = [float(np.nanmin(both)), float(np.nanmax(both))]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_xlabel("SAT of a random half of the images", fontsize=9)
    axes.set_ylabel("SAT of the other half", fontsize=9)
    words = [f"{name} {each.mean:.3f}, of the whole {each.whole:.3f}" for name, each in split_half.items()]
    axes.set_title("\n".join(words), fontsize=9)


def _mean(values: Matrix) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else np.nan
