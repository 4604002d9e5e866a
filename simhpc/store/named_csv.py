"""Square matrices and tables as CSV with names: what `simhpc analyze` takes from elsewhere."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import AnalysisError, nearest

_UNKNOWN = ("", "nan", "na", "-")
_NEGLIGIBLE = 1e-9
"""Difference between the two halves of a matrix that rounding explains."""
_MOST_NAMED = 10


@dataclass(frozen=True)
class NamedMatrix:
    """A symmetric matrix.

    Attributes:
        names: N names, in the order of the file's rows.
        values: float64 (N, N), symmetric, NaN unknown.
        notes: what had to be done to make it symmetric, one line each.
    """

    names: list[str]
    values: NDArray[np.float64]
    notes: list[str]


@dataclass(frozen=True)
class NamedTable:
    """Values of models.

    Attributes:
        columns: names of C columns, without that of the models'.
        rows: C values for each name.
    """

    columns: list[str]
    rows: dict[str, list[str]]

    def lacks(self, names: Sequence[str]) -> str:
        """Those of the models that have no row, with the nearest that there are; empty if all have one."""
        return _listed([name for name in names if name not in self.rows], self.rows)


def read_matrix(path: Path) -> NamedMatrix:
    """Read a square CSV: names in the first row and first column, in any order; numbers, or `nan` or nothing.

    Two halves that differ are averaged, and a cell that is known in one half only is taken from there; a note says so.

    Raises:
        AnalysisError: it is not such a file; names the row and column where there is one.
    """
    header, rows = _read(path)
    row_names, column_names = [row[0] for row in rows], header[1:]
    for axis, names in (("row", row_names), ("column", column_names)):
        _check_unique(path, axis, names)
    for axis, wanted, there in (("row", column_names, row_names), ("column", row_names, column_names)):
        if missing := [name for name in wanted if name not in set(there)]:
            raise AnalysisError(
                f"{path} has {len(row_names)} rows and {len(column_names)} columns that do not have the same names: "
                f"there is no {axis} {_listed(missing, there)}"
            )
    values = np.array([[_number(path, row[0], name, cell) for name, cell in _cells(row, header)] for row in rows])
    position = {name: column for column, name in enumerate(column_names)}
    values = values[:, [position[name] for name in row_names]]
    return _symmetric(row_names, values)


def read_table(path: Path) -> NamedTable:
    """Read a CSV with one row per model, its name first, and one column per component.

    Raises:
        AnalysisError: it is not such a file.
    """
    header, rows = _read(path)
    if len(header) < 2:
        raise AnalysisError(f"{path} has one column only: names come first, then one column per component")
    _check_unique(path, "row", [row[0] for row in rows])
    _check_unique(path, "column", header[1:])
    for row in rows:
        for column, cell in _cells(row, header):
            if not cell:
                raise AnalysisError(f"{path}: row {row[0]!r}, column {column!r} is empty")
    return NamedTable(header[1:], {row[0]: row[1:] for row in rows})


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows, stripped of spaces; all rows as long as the header, no name empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except FileNotFoundError:
        raise AnalysisError(f"{path} does not exist") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnalysisError(f"{path} is not a CSV file in UTF-8: {error}") from None
    lines = [(number, row) for number, row in enumerate(raw, 1) if any(row)]
    if len(lines) < 2:
        raise AnalysisError(f"{path} is empty" if not lines else f"{path} has a header and no rows")
    (_, header), *numbered = lines
    if len(header) == 1 and (separator := next((each for each in ";\t|" if each in header[0]), None)):
        raise AnalysisError(f"{path} has one column only: its cells are separated by {separator!r}, not by commas")
    for number, row in numbered:
        if len(row) != len(header):
            raise AnalysisError(f"{path}: line {number} has {len(row)} cells, the header has {len(header)}")
        if not row[0]:
            raise AnalysisError(f"{path}: line {number} has no name in its first cell")
    if not all(header[1:]):
        raise AnalysisError(f"{path}: column {header.index('', 1) + 1} has no name in the header")
    return header, [row for _, row in numbered]


def _cells(row: list[str], header: list[str]) -> list[tuple[str, str]]:
    return list(zip(header[1:], row[1:], strict=True))


def _check_unique(path: Path, axis: str, names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise AnalysisError(f"{path} has more than one {axis} named {', '.join(map(repr, twice[:_MOST_NAMED]))}")


def _number(path: Path, row: str, column: str, cell: str) -> float:
    if cell.lower() in _UNKNOWN:
        return float("nan")
    try:
        value = float(cell)
    except ValueError:
        value = float("inf")
    if np.isinf(value):
        raise AnalysisError(f"{path}: row {row!r}, column {column!r} is {cell!r}, which is not a number")
    return value


def _symmetric(names: list[str], values: NDArray[np.float64]) -> NamedMatrix:
    notes = []
    one_sided = np.isnan(values) & ~np.isnan(values.T)
    if n := np.count_nonzero(one_sided):
        notes.append(f"{n} pair(s) known in one half of the matrix only were taken from there")
    values = np.where(one_sided, values.T, values)
    difference = np.nan_to_num(np.abs(values - values.T))
    if difference.max() > _NEGLIGIBLE:
        a, b = np.unravel_index(np.argmax(difference), difference.shape)
        notes.append(
            f"the matrix is not symmetric: {np.count_nonzero(np.triu(difference) > _NEGLIGIBLE)} pair(s) differ, "
            f"{names[a]} / {names[b]} the most, by {difference[a, b]:.4g}; the mean of both was taken"
        )
    return NamedMatrix(names, np.where(difference > 0, (values + values.T) / 2.0, values), notes)


def _listed(missing: Sequence[str], known: Iterable[str]) -> str:
    """Names with their nearest ones, the first ten."""
    lines = [f"{name!r}{nearest(name, known)}" for name in missing[:_MOST_NAMED]]
    more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
    return ", ".join(lines) + more
