"""Families of models and how each is drawn: one colour and one marker per family, the same in every figure.

A family is the model's base architecture (CNN, Transformer, ...) where a table of components says it, else the first
word of timm's name. Colours are Okabe & Ito's; a marker goes with each, so that no reader depends on colour alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D

from simhpc.errors import closest
from simhpc.report.figure import COLOURS

UNKNOWN = "unknown"
COLUMN = "Base architecture"
_OTHER_NAMES = ("base", "family", "architecture", "base model", "architecture family")
"""What tables from elsewhere call it."""
_DARKER = 0.65
"""So that thin letters are read on white."""


@dataclass(frozen=True)
class Style:
    """How a family is drawn.

    Attributes:
        colour: of areas and markers, `#rrggbb`.
        text: the same for letters, darker.
        marker: matplotlib's name of a filled marker.
    """

    colour: str
    text: str
    marker: str


def families(
    names: Sequence[str],
    columns: Sequence[str],
    components: Mapping[str, Sequence[str]],
    timm_names: Mapping[str, str] | None = None,
) -> list[str]:
    """The family of each of N models.

    Args:
        names: N names.
        columns, components: the table of components, as in `offline.inputs.Inputs`; may be empty.
        timm_names: timm's name, with or without a tag, of models that are called otherwise.

    Returns:
        N families. With a table that has a column of them: what stands there, `unknown` for a model without a row.
        Else what timm's name begins with (`family_of_timm_name`).
    """
    if (column := column_of_families(columns)) is not None:
        return [components[name][column] if name in components else UNKNOWN for name in names]
    return [family_of_timm_name((timm_names or {}).get(name, name)) for name in names]


def column_of_families(columns: Sequence[str]) -> int | None:
    """Position of the column `Base architecture`, or of what comes nearest to it; None if nothing does."""
    folded = [column.strip().casefold() for column in columns]
    for name in (COLUMN.casefold(), *_OTHER_NAMES):
        if name in folded:
            return folded.index(name)
    near = closest(COLUMN.casefold(), folded, most=1)
    return folded.index(near[0]) if near else None


def family_of_timm_name(name: str) -> str:
    """The letters that a timm name begins with: `resnet` of `resnet50.a1_in1k`, `vit` of `vit_tiny_patch16_224`."""
    # `test_`, `tf_` and `legacy_` say where an architecture comes from, and not which it is.
    found = re.match(r"(?:(?:test|tf|legacy)_)?([^\W\d_]+)", name)
    return found[1].lower() if found else UNKNOWN


_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Not as many as colours, so that 42 families are different pairs."""
_FIXED = {
    family: (COLOURS[colour], marker)
    for family, colour, marker in (
        ("CNN", 0, "o"),
        ("Transformer", 5, "s"),
        ("Hybrid", 2, "^"),
        ("MLP-Mixer", 3, "D"),
        ("NAS (CNN)", 4, "v"),
        ("NAS (TFM)", 1, "P"),
    )
}
"""Of the values that simhpc itself reads: the same in every study, whichever of them it has."""


def styles(families: Sequence[str]) -> dict[str, Style]:
    """How each family is drawn, by name in alphabetical order, `unknown` last.

    Those of `Base architecture` always look alike; others by their place in the alphabet, so give all of a study's
    families, not only those in one figure.
    """
    present = sorted(set(families) - {UNKNOWN}, key=lambda name: (name.casefold(), name))
    looks = {family: _FIXED[family] for family in present if family in _FIXED}
    pairs = [(COLOURS[k % len(COLOURS)], _MARKERS[k % len(_MARKERS)]) for k in range(len(COLOURS) * len(_MARKERS))]
    free = itertools.cycle([pair for pair in pairs if pair not in looks.values()])
    looks |= {family: next(free) for family in present if family not in _FIXED}
    found = {family: _style(*looks[family]) for family in present}
    return found | ({UNKNOWN: _style("#888888", ".")} if UNKNOWN in families else {})


def colour_names(texts: Sequence[Any], families: Sequence[str], of: Mapping[str, Style]) -> None:
    """Give matplotlib texts, such as tick labels, the colours of their models' families."""
    for text, family in zip(texts, families, strict=True):
        text.set_color(of[family].text)


def legend_handles(of: Mapping[str, Style]) -> list[Line2D]:
    """For `legend(handles=...)`, one marker per family."""
    return [
        Line2D([], [], linestyle="none", marker=style.marker, color=style.colour, label=family)
        for family, style in of.items()
    ]


def _style(colour: str, marker: str) -> Style:
    red, green, blue = to_rgb(colour)
    return Style(colour, to_hex((_DARKER * red, _DARKER * green, _DARKER * blue)), marker)
