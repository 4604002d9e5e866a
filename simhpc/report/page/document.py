"""The report as one HTML file: template, style sheet and script of this folder, filled with `Content`.

Jinja escapes every text of the data (study titles, class names and cells of CSV files are anybody's); the script takes
its numbers and names from a JSON block and sets text only. The page's Content-Security-Policy lets nothing be loaded,
and no other script or style be used than these two, by their hashes.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from simhpc import __version__
from simhpc.analysis.clusters import complete, distances
from simhpc.analysis.mds import plane
from simhpc.analysis.similarity import fooling_rates
from simhpc.report.families import styles
from simhpc.report.figure import COLOURS
from simhpc.report.page.content import Content
from simhpc.report.page.drawings import MARKS, draw_plane, draw_tree
from simhpc.report.page.summary import UNKNOWN
from simhpc.store.similarity import SimilarityMatrix

MOST_BYTES = 9_000_000
"""Of a page with files in it. The largest are left out until it is no larger; what is not a file may be."""


def render(content: Content) -> str:
    """The page, with as many files in it as fit, the smallest first. The same content gives the same text."""
    room = MOST_BYTES - len(_fill(content, {}).encode())
    hrefs: dict[str, str] = {}
    for file in sorted(content.all_files(), key=lambda file: (file.n_bytes, file.name)):
        room -= 4 * file.n_bytes // 3 + 100
        if room < 0:
            break
        hrefs[file.name] = file.uri()
    return _fill(content, hrefs)


def _fill(content: Content, hrefs: dict[str, str]) -> str:
    """The template's text; files that have no `data:` URI are named only."""
    style, script = (_part(name) for name in ("page.css", "page.js"))
    sat = content.matrix.sat
    kept = complete(sat)
    known = sat[np.ix_(kept, kept)]
    placed = plane(distances(known)) if len(kept) > 1 else None
    if placed is not None and not np.isfinite(placed.share):
        placed = None  # two models, or all equally alike: all distances are 0
    looks = styles([model.family for model in content.models if model.family])
    clusters = content.grouping.cluster_of if content.grouping else {}
    return _template().render(
        content=content,
        hrefs=hrefs,
        version=__version__,
        policy=(
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        data=embedded_json(_data(content)),
        rows=_rows(content),
        kept=kept.tolist(),
        plane=draw_plane(placed.points, [content.matrix.models[p] for p in kept]) if placed else None,
        plane_share=placed.share if placed else np.nan,
        is_of_a_run=content.examples is not None,
        tree=draw_tree(content.grouping.tree) if content.grouping else None,
        position={key: position for position, key in enumerate(content.matrix.models)},
        cluster_of=clusters,
        cluster_sizes={k: sum(own == k for own in clusters.values()) for k in sorted(set(clusters.values()))},
        n_colours=len(COLOURS),
        mark_of={family: MARKS[look.marker] for family, look in looks.items()},
        plain_mark=MARKS["o"],
        analyses={analysis.name: analysis for analysis in content.analyses},
    )


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    return environment.from_string(_part("page.html.jinja"))


def embedded_json(data: dict[str, Any]) -> str:
    """JSON that no text in it can end: what could be markup is written as an escape."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def percent(fraction: float) -> str:
    """`98.5 %`; `unknown` for NaN."""
    # A fraction of a thousand images lies between two such numbers as often as not: 98.25 is to stay that.
    return f"{fixed(round(100.0 * fraction, 9), 1)} %" if np.isfinite(fraction) else UNKNOWN


def fixed(value: float, decimals: int) -> str:
    """A number as the script's `toFixed` writes it, halves away from 0: one number is to look alike everywhere."""
    return str(Decimal(float(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))


def colour_range(sat: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale: the known pairs of different models, as in the heatmap."""
    known = np.isfinite(sat)
    between = sat[known & ~np.eye(len(sat), dtype=bool)]
    finite = between if len(between) else sat[known]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _data(content: Content) -> dict[str, Any]:
    matrix = content.matrix
    upper = np.triu_indices(len(matrix.models))
    low, high = colour_range(matrix.sat)
    clusters = content.grouping.cluster_of if content.grouping else {}
    stability = content.grouping.stability if content.grouping else {}
    return {
        "models": [
            {
                "key": row.key,
                "timm": row.timm_name,
                "family": row.family,
                "accuracy": percent(matrix.clean_accuracy[position]),
                "cluster": clusters.get(row.key),
                "stability": _number(stability.get(row.key, np.nan)),
            }
            for position, row in enumerate(content.models)
        ],
        "sat": _numbers(matrix.sat[upper]),
        "ciLow": _numbers(matrix.ci_low[upper]),
        "ciHigh": _numbers(matrix.ci_high[upper]),
        "nCommon": matrix.n_common[upper].tolist(),
        "nFooled": matrix.n_fooled.ravel().tolist(),
        "confidence": matrix.confidence,
        "orders": content.orders,
        "scale": {"low": low, "high": high, "colours": [to_hex(c) for c in mpl.colormaps["cividis"](np.arange(256))]},
    }


def _rows(content: Content) -> list[dict[str, Any]]:
    """What the table of models shows, one row per model."""
    matrix: SimilarityMatrix = content.matrix
    rates = fooling_rates(matrix.n_fooled, matrix.n_common)
    others = np.where(np.eye(len(matrix.models), dtype=bool), np.nan, matrix.sat)
    found = []
    for position, row in enumerate(content.models):
        known = others[position][np.isfinite(others[position])]
        nearest = int(np.nanargmax(others[position])) if len(known) else None
        found.append(
            {
                "model": row,
                "accuracy": percent(matrix.clean_accuracy[position]),
                "self_fooling": percent(rates[position, position]),
                "mean_sat": fixed(known.mean(), 2) if len(known) else UNKNOWN,
                "nearest": UNKNOWN
                if nearest is None
                else f"{matrix.models[nearest]} ({fixed(others[position][nearest], 2)})",
            }
        )
    return found


def _number(value: float) -> float | None:
    """All its digits: what is rounded twice is rounded wrongly."""
    return float(value) if np.isfinite(value) else None


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
