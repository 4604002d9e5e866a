"""The similarity matrix as a picture, in an order that puts alike models side by side."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from simhpc.analysis.similarity import similarity_order
from simhpc.report.families import colour_names, legend_handles, styles
from simhpc.store.atomic import replacing
from simhpc.store.similarity import SimilarityMatrix

_MOST_WITH_NUMBERS = 20
_MOST_NAMES = 300
"""So many fit on the largest picture in the smallest type."""
_DPI = 150


def write(matrix: SimilarityMatrix, path: Path, *, title: str, families: Sequence[str] | None = None) -> str:
    """Write a PNG: colour is SAT, grey is unknown; numbers in the cells up to 20 models, every name up to 300.

    Names have the colours of their families (M, as `report.families` gives them) where these are known.

    The colour scale spans the pairs of different models, so that the diagonal, which is nearly always the
    largest, does not flatten them; cells beyond the scale take its end colour.

    Returns:
        The SHA-256 of what was written.
    """
    figure = draw(matrix, title=title, families=families)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]  # once; savefig would draw it twice
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    # No software version or date in the file: the same matrix gives the same bytes.
    Image.fromarray(pixels[..., :3]).save(buffer, format="png", dpi=(_DPI, _DPI))
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def draw(matrix: SimilarityMatrix, *, title: str, families: Sequence[str] | None = None) -> Figure:
    """The heatmap as a matplotlib figure (Agg canvas)."""
    m = len(matrix.models)
    order = similarity_order(matrix.sat)
    values = matrix.sat[np.ix_(order, order)]
    names = [matrix.models[position] for position in order]
    side_in = min(24.0, max(5.0, 1.8 + 0.42 * m))
    figure = Figure(figsize=(side_in + 1.0, side_in), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    between = values[~np.eye(m, dtype=bool) & np.isfinite(values)]
    finite = between if len(between) else values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    axes.set_facecolor("0.75")
    edges = np.arange(m + 1) - 0.5
    # A mesh is coloured per cell; imshow resamples 64-bit numbers for every pixel of the picture.
    picture = axes.pcolormesh(edges, edges, np.ma.masked_invalid(values), cmap="cividis", vmin=low, vmax=high)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    font_size = float(np.clip(260.0 / max(m, 1), 4.0, 9.0))
    step = max(1, -(-m // _MOST_NAMES))
    axes.set_xticks(range(0, m, step), names[::step], rotation=90, fontsize=font_size)
    axes.set_yticks(range(0, m, step), names[::step], fontsize=font_size)
    if step > 1:
        axes.set_xlabel(f"one in {step} of the {m} models is named", fontsize=9)
    if families is not None:
        of, shown = styles(families), [families[position] for position in order][::step]
        for texts in (axes.get_xticklabels(), axes.get_yticklabels()):
            colour_names(texts, shown, of)
        if len(of) > 1:
            figure.legend(handles=legend_handles(of), loc="outside lower center", ncols=min(4, len(of)), fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(f"{title}: similarity by attack transferability", fontsize=10)
    if m <= _MOST_WITH_NUMBERS:
        middle = (low + high) / 2.0
        for (row, column), value in np.ndenumerate(values):
            text = f"{value:.2f}" if np.isfinite(value) else "?"
            colour = "black" if not np.isfinite(value) or value > middle else "white"
            axes.text(column, row, text, ha="center", va="center", fontsize=font_size - 2.0, color=colour)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, extend="both")
    bar.set_label("SAT = ln(mean fooling rate in %)", fontsize=9)
    return figure
