"""The similarity matrix as CSV, for spreadsheets and other programs. Unknown numbers are written `nan`.

How CSV and JSON are written is here for all tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simhpc.analysis.similarity import fooling_rates
from simhpc.store.atomic import write_text
from simhpc.store.similarity import SimilarityMatrix


def write_similarity(matrix: SimilarityMatrix, path: Path) -> str:
    """Square: the SAT matrix with model keys on both axes."""
    rows = ([key, *map(number, row)] for key, row in zip(matrix.models, matrix.sat, strict=True))
    return write_csv(path, ["model", *matrix.models], rows)


def write_pairs(matrix: SimilarityMatrix, path: Path) -> str:
    """Long: one row per unordered pair, each model with itself included; rates are fractions of n_common."""
    m = len(matrix.models)
    rates = fooling_rates(matrix.n_fooled, matrix.n_common)
    return write_csv(
        path,
        ["a", "b", "n_common", "rate_ab", "rate_ba", "sat", "ci_low", "ci_high"],
        (
            [
                matrix.models[a],
                matrix.models[b],
                _count(matrix.n_common[a, b]),
                *map(
                    number,
                    (rates[a, b], rates[b, a], matrix.sat[a, b], matrix.ci_low[a, b], matrix.ci_high[a, b]),
                ),
            ]
            for a in range(m)
            for b in range(a, m)
        ),
    )


def write_models(matrix: SimilarityMatrix, path: Path) -> str:
    """One row per model: accuracy and self-fooling are fractions, mean_sat is over the other models."""
    rates = fooling_rates(matrix.n_fooled, matrix.n_common)
    off_diagonal = np.where(np.eye(len(matrix.models), dtype=bool), np.nan, matrix.sat)
    rows = []
    for row, key in enumerate(matrix.models):
        others = off_diagonal[row][np.isfinite(off_diagonal[row])]
        rows.append(
            [
                key,
                matrix.timm_names[row],
                number(matrix.clean_accuracy[row]),
                number(rates[row, row]),
                number(others.mean() if len(others) else np.nan),
            ]
        )
    return write_csv(path, ["model", "timm", "clean_accuracy", "self_fooling", "mean_sat"], rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; cells as they are to stand there. Returns the SHA-256 of what was written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
    return hashlib.sha256(text.getvalue().encode()).hexdigest()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write plain data; NaN becomes `null`, which JSON has."""
    write_text(path, json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(data: Any) -> Any:
    """The same with None for NaN."""
    if isinstance(data, dict):
        return {key: plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def number(value: float) -> str:
    """All digits of a number; NaN is `nan`."""
    return repr(float(value))


def _count(value: int) -> str:
    return "nan" if value < 0 else str(int(value))
