"""Where everything lies in the report's two drawings, the plane and the tree: numbers only, for the template.

Lengths are in CSS pixels. Text is taken to be as wide as in DejaVu Sans, the widest of the page's fonts.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont
from scipy.cluster import hierarchy

from simhpc.report.page.content import Tree

FONT_PX = 12
_MOST_LETTERS = 26

MARKS = {
    "o": "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0z",
    "s": "M-5.5,-5.5h11v11h-11z",
    "^": "M0,-7l6.5,12h-13z",
    "D": "M0,-7.5l7.5,7.5l-7.5,7.5l-7.5,-7.5z",
    "v": "M0,7l6.5,-12h-13z",
    "P": "M-2.2,-7h4.4v4.8h4.8v4.4h-4.8v4.8h-4.4v-4.8h-4.8v-4.4h4.8z",
    "X": "M-6.5,-3.5l3,-3l3.5,3.5l3.5,-3.5l3,3l-3.5,3.5l3.5,3.5l-3,3l-3.5,-3.5l-3.5,3.5l-3,-3l3.5,-3.5z",
    ".": "M-3.5,0a3.5,3.5 0 1,0 7,0a3.5,3.5 0 1,0 -7,0z",
}
"""Outlines around (0, 0) of the markers of `report.families`, by matplotlib's names."""


@dataclass(frozen=True)
class Point:
    """One model in the plane; its name is hidden where others are in the way.

    Attributes:
        anchor: SVG's `text-anchor`: what of the name is at (`label_x`, `label_y`).
    """

    x: float
    y: float
    label: str
    label_x: float
    label_y: float
    anchor: str
    is_named: bool


@dataclass(frozen=True)
class PlaneDrawing:
    width: float
    height: float
    points: list[Point]


@dataclass(frozen=True)
class Leaf:
    position: int
    """In the tree's own order of models."""
    y: float
    label: str


@dataclass(frozen=True)
class TreeDrawing:
    """`branches` are SVG paths; `ticks` are places and texts along the axis of SAT."""

    width: float
    height: float
    leaves_x: float
    branches: list[str]
    leaves: list[Leaf]
    ticks: list[tuple[float, str]]
    axis_y: float


def shortened(name: str) -> str:
    """A name that fits beside a drawing."""
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"


def width_px(text: str) -> float:
    """How wide a text is at most."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)  # those the font does not have
    return float(_font().getlength(text)) + 0.5 * FONT_PX * wide


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), FONT_PX)


def draw_plane(points: NDArray[np.float64], names: Sequence[str]) -> PlaneDrawing:
    """Points and names in a picture of 560 px, both axes on one scale.

    Names are placed one after the other on the first free side of their point (right, left, above, below); one for
    which none is free is hidden.

    Args:
        points: (N, 2).
        names: N names.
    """
    width, margin, least = 560.0, 44.0, 160.0
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.zeros(2))
    span = high - low
    scale = (width - 2 * margin) / span[0] if span[0] > 0 else 1.0
    height = min(560.0, max(least, span[1] * scale + 2 * margin))
    if span[1] > 0:
        scale = min(scale, (height - 2 * margin) / span[1])
    placed = (points - (low + high) / 2) * scale * (1, -1) + (width / 2, height / 2)
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in placed]
    drawn = []
    for own, ((x, y), name) in enumerate(zip(placed.tolist(), names, strict=True)):
        label = shortened(name)
        long = width_px(label)
        candidates = [("start", x + 10, y + 4), ("end", x - 10, y + 4), ("middle", x, y - 11), ("middle", x, y + 20)]
        boxes = {place: _box(place, long) for place in candidates}
        others = [box for k, box in enumerate(taken) if k != own]
        free = [place for place in candidates if _is_free(boxes[place], others, width, height)]
        inside = [place for place in candidates if _is_free(boxes[place], [], width, height)]
        anchor, label_x, label_y = chosen = (free or inside or candidates)[0]
        if free:
            taken.append(boxes[chosen])
        drawn.append(Point(_px(x), _px(y), label, _px(label_x), _px(label_y), anchor, bool(free)))
    return PlaneDrawing(width, _px(height), drawn)


def draw_tree(tree: Tree) -> TreeDrawing:
    """Branches to the right end at the models; the axis below is SAT, most alike at the right."""
    drawn = hierarchy.dendrogram(np.array(tree.linkage), no_plot=True)
    order: list[int] = np.array(drawn["leaves"]).tolist()
    n = len(tree.models)
    row, top, stem = (20.0, 8.0, 300.0) if n <= 30 else (16.0, 8.0, 340.0)
    labels = [shortened(tree.models[leaf]) for leaf in order]
    highest = max(float(tree.linkage[-1][2]), 1e-9)
    lowest_sat = tree.sat_at_height_0 - highest

    def x(height: float) -> float:
        return 16.0 + (stem - 16.0) * (1.0 - height / highest)

    branches = []
    for across, heights in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        y = [top + row / 2 + row * (value - 5.0) / 10.0 for value in across]
        branches.append(
            "M" + "L".join(f"{_px(x(height))},{_px(place)}" for height, place in zip(heights, y, strict=True))
        )
    bottom = top + row * n + 6.0
    return TreeDrawing(
        width=_px(stem + 34.0 + max(map(width_px, labels))),
        height=bottom + 40.0,
        leaves_x=stem,
        branches=branches,
        leaves=[Leaf(leaf, _px(top + row / 2 + row * k), labels[k]) for k, leaf in enumerate(order)],
        ticks=[(_px(x(tree.sat_at_height_0 - sat)), text) for sat, text in ticks(lowest_sat, tree.sat_at_height_0)],
        axis_y=bottom,
    )


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers in an interval and how they are written; at least two unless its ends are one."""
    span = high - low
    if span <= 0:
        return [(low, f"{low:.2f}")]
    size = 10.0 ** math.floor(math.log10(span / 3))
    step = next(size * factor for factor in (5, 2, 1) if span / (size * factor) >= 3 or factor == 1)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, f"{k * step:.{decimals}f}") for k in range(first, last + 1)]


def _box(place: tuple[str, float, float], long: float) -> tuple[float, float, float, float]:
    anchor, x, y = place
    left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * long
    return left - 1, y - FONT_PX + 1, left + long + 1, y + 3


def _is_free(
    box: tuple[float, float, float, float],
    taken: Sequence[tuple[float, float, float, float]],
    width: float,
    height: float,
) -> bool:
    left, top, right, bottom = box
    if left < 2 or top < 2 or right > width - 2 or bottom > height - 2:
        return False
    return all(right <= x0 or x1 <= left or bottom <= y0 or y1 <= top for x0, y0, x1, y1 in taken)


def _px(value: float) -> float:
    return round(float(value), 1)
