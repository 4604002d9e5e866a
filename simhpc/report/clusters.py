"""Clusters of models as tables, summary and picture (docs/analyses.md, "Clusters")."""

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
from scipy.cluster import hierarchy

from simhpc.analysis.clusters import Clusters, Settings, Word
from simhpc.report.families import colour_names, legend_handles, styles
from simhpc.report.figure import DPI
from simhpc.report.tables import number, write_csv

_MOST_NAMES = 200


def write_table(found: Clusters, names: Sequence[str], path: Path) -> None:
    """One row per model that could be used, in the order of the picture."""
    rows = ([names[found.kept[p]], str(found.labels[p]), number(found.stability[p])] for p in order(found))
    write_csv(path, ["model", "cluster", "stability"], rows)


def write_coassignment(found: Clusters, names: Sequence[str], path: Path) -> None:
    """Square: the share of k-means runs in which two models were together, in the order of the picture."""
    placed = order(found)
    shown = [names[found.kept[p]] for p in placed]
    rows = ([names[found.kept[p]], *map(number, found.coassignment[p, placed])] for p in placed)
    write_csv(path, ["model", *shown], rows)


def write_components(words: Sequence[Word], path: Path) -> None:
    """One row per cluster and component value, those that set the cluster apart first."""
    rows = (
        [
            str(word.cluster),
            word.component,
            word.value,
            number(word.tf_idf),
            number(word.share),
            number(word.share_elsewhere),
            str(word.n_clusters),
        ]
        for word in words
    )
    header = ["cluster", "component", "value", "tf_idf", "share_in_cluster", "share_elsewhere", "n_clusters_with_value"]
    write_csv(path, header, rows)


def summary(found: Clusters, names: Sequence[str], settings: Settings, words: Sequence[Word]) -> dict[str, Any]:
    """What the tables do not say, and the clusters as lists, as plain data."""
    kept = [names[position] for position in found.kept]
    return {
        "settings": asdict(settings),
        "n_clusters": int(found.labels.max()),
        "chosen_by": "nothing" if not found.choices else "given" if settings.k is not None else "silhouette",
        "p_value": found.p_value,
        "k_by_silhouette": found.k_by_silhouette,
        "k_by_eigengap": found.k_by_eigengap,
        "choices": [asdict(choice) for choice in found.choices],
        "mean_stability": float(found.stability.mean()),
        "clusters": [
            {
                "cluster": label,
                "models": [name for name, own in zip(kept, found.labels, strict=True) if own == label],
                "mean_stability": float(found.stability[found.labels == label].mean()),
                "set_apart_by": [
                    f"{word.component}={word.value}" for word in words if word.cluster == label and word.tf_idf > 0
                ][:5],
            }
            for label in range(1, int(found.labels.max()) + 1)
        ],
        "models_left_out": [names[position] for position in found.left_out],
        "n_pairs_below_0": found.n_clipped,
        "tree": {"models": kept, "linkage": found.tree.tolist(), "sat_at_height_0": found.height_at_zero},
        "notes": found.notes,
    }


def order(found: Clusters) -> NDArray[np.int64]:
    """Positions by cluster, within each as the tree has them."""
    place = np.empty(len(found.kept), dtype=np.int64)
    place[hierarchy.leaves_list(found.tree)] = np.arange(len(place))
    return np.lexsort((place, found.labels))


def draw(
    found: Clusters, similarity: NDArray[np.float64], names: Sequence[str], families: Sequence[str], *, title: str
) -> Figure:
    """The matrix in the order of the clusters, which are framed; beside it the tree. Names in their families' colours.

    Args:
        similarity: (M, M), of all models, as it was clustered.
        names: M names.
        families: M families, as `report.families` gives them.
    """
    placed = order(found)
    n = len(placed)
    side_in = min(24.0, max(5.0, 1.8 + (0.42 if n <= 20 else 0.19) * n))
    figure = Figure(figsize=(1.5 * side_in + 2.0, side_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 0.4))
    font_size = float(np.clip(520.0 / n, 4.0, 9.0))
    of = styles(families)
    _draw_matrix(figure, left, found, similarity, names, font_size)
    _draw_tree(right, found, names, families, font_size)
    step = _step(n)
    shown = [families[found.kept[p]] for p in placed][::step]
    for texts in (left.get_xticklabels(), left.get_yticklabels()):
        colour_names(texts, shown, of)
    if len(of) > 1:
        figure.legend(handles=legend_handles(of), loc="outside lower center", ncols=min(8, len(of)), fontsize=9)
    k = int(found.labels.max())
    figure.suptitle(f"{title}: {k} cluster{'s' if k > 1 else ''}, mean stability {found.stability.mean():.2f}")
    return figure


def _draw_matrix(
    figure: Figure,
    axes: Axes,
    found: Clusters,
    similarity: NDArray[np.float64],
    names: Sequence[str],
    font_size: float,
) -> None:
    placed = order(found)
    n = len(placed)
    values = similarity[np.ix_(found.kept[placed], found.kept[placed])]
    between = values[~np.eye(n, dtype=bool)]
    low, high = float(between.min()), float(between.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    axes.set_facecolor("0.75")
    edges = np.arange(n + 1) - 0.5
    # As pixels in the SVG too: a thousand models have a million cells.
    picture = axes.pcolormesh(
        edges, edges, np.ma.masked_invalid(values), cmap="cividis", vmin=low, vmax=high, rasterized=True
    )
    axes.set_aspect("equal")
    axes.invert_yaxis()
    labels = found.labels[placed]
    starts = np.flatnonzero(np.diff(labels, prepend=0))
    for start, end in zip(starts, [*starts[1:], n], strict=True):
        # White inside black is seen on every colour of the scale.
        for colour, width in (("black", 2.5), ("white", 1.0)):
            axes.plot(
                np.array([start, end, end, start, start]) - 0.5,
                np.array([start, start, end, end, start]) - 0.5,
                color=colour,
                linewidth=width,
                clip_on=False,
            )
    step = _step(n)
    shown = [f"{names[found.kept[p]]}  {found.labels[p]}" for p in placed][::step]
    axes.set_xticks(range(0, n, step), shown, rotation=90, fontsize=font_size)
    axes.set_yticks(range(0, n, step), shown, fontsize=font_size)
    axes.tick_params(length=0)
    axes.set_title("by cluster (the number behind each name)", fontsize=9)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, extend="both", pad=0.02)
    bar.set_label("SAT = ln(mean fooling rate in %)", fontsize=9)


def _draw_tree(axes: Axes, found: Clusters, names: Sequence[str], families: Sequence[str], font_size: float) -> None:
    drawn = hierarchy.dendrogram(found.tree, no_plot=True)
    for across, heights in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        # Heights are distances; readers know similarities.
        axes.plot(found.height_at_zero - np.array(heights), (np.array(across) - 5.0) / 10.0, color="0.3", linewidth=1.0)
    leaves = np.array(drawn["leaves"])
    step, of = _step(len(leaves)), styles(families)
    own = [families[found.kept[p]] for p in leaves]
    for family, style in of.items():
        rows = [row for row, each in enumerate(own) if each == family]
        axes.scatter(
            np.full(len(rows), found.height_at_zero), rows, marker=style.marker, color=style.colour, s=2 * font_size
        )
    shown = [f"{found.labels[p]}  {names[found.kept[p]]}" for p in leaves][::step]
    axes.yaxis.tick_right()
    axes.set_yticks(range(0, len(leaves), step), shown, fontsize=font_size)
    colour_names(axes.get_yticklabels(), own[::step], of)
    axes.set_ylim(len(leaves) - 0.5, -0.5)
    highest = float(found.tree[-1, 2]) or 1.0
    axes.set_xlim(found.height_at_zero - 1.04 * highest, found.height_at_zero + 0.02 * highest)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("mean SAT at which branches join (average linkage)", fontsize=9)
    axes.set_title("tree", fontsize=9)


def _step(n: int) -> int:
    """One in so many of n models is named."""
    return max(1, -(-n // _MOST_NAMES))
