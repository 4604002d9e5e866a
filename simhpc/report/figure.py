"""A matplotlib figure as SVG and PNG. The same figure gives the same bytes: no date, no version, no random names."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from simhpc.store.atomic import replacing

DPI = 150

# Okabe & Ito's palette, told apart with any colour vision; black and yellow are left out (text, too light for lines).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def with_interval(value: float, low: float, high: float) -> str:
    """A number and its interval for a caption; says which of them is unknown."""
    if not math.isfinite(value):
        return "unknown"
    return (
        f"{value:.2f} [{low:.2f}, {high:.2f}]"
        if math.isfinite(low) and math.isfinite(high)
        else f"{value:.2f}, no interval"
    )


def write_svg_and_png(figure: Figure, svg: Path, png: Path) -> None:
    """Write both files; text in the SVG is drawn, so that it looks alike everywhere."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., :3]).save(buffer, format="png", dpi=(DPI, DPI))
    with replacing(png) as temporary:
        temporary.write_bytes(buffer.getvalue())
    drawing = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "simhpc"}):
        figure.savefig(drawing, format="svg", metadata={"Date": None, "Creator": None})
    with replacing(svg) as temporary:
        temporary.write_bytes(drawing.getvalue())
