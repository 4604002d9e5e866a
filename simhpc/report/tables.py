"""The similarity matrix as CSV, for spreadsheets and other programs. Unknown numbers are written `nan`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from simhpc.analysis.similarity import fooling_rates
from simhpc.store.atomic import write_text
from simhpc.store.similarity import SimilarityMatrix


def write_similarity(matrix: SimilarityMatrix, path: Path) -> None:
    """Square: the SAT matrix with model keys on both axes."""
    rows = ([key, *map(_number, row)] for key, row in zip(matrix.models, matrix.sat, strict=True))
    _write(path, ["model", *matrix.models], rows)


def write_pairs(matrix: SimilarityMatrix, path: Path) -> None:
    """Long: one row per unordered pair, each model with itself included; rates are fractions of n_common."""
    m = len(matrix.models)
    rates = fooling_rates(matrix.n_fooled, matrix.n_common)
    _write(
        path,
        ["a", "b", "n_common", "rate_ab", "rate_ba", "sat", "ci_low", "ci_high"],
        (
            [
                matrix.models[a],
                matrix.models[b],
                _count(matrix.n_common[a, b]),
                *map(
                    _number,
                    (rates[a, b], rates[b, a], matrix.sat[a, b], matrix.ci_low[a, b], matrix.ci_high[a, b]),
                ),
            ]
            for a in range(m)
            for b in range(a, m)
        ),
    )


def write_models(matrix: SimilarityMatrix, path: Path) -> None:
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
                _number(matrix.clean_accuracy[row]),
                _number(rates[row, row]),
                _number(others.mean() if len(others) else np.nan),
            ]
        )
    _write(path, ["model", "timm", "clean_accuracy", "self_fooling", "mean_sat"], rows)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _number(value: float) -> str:
    return repr(float(value))


def _count(value: int) -> str:
    return "nan" if value < 0 else str(int(value))
