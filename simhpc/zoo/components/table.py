"""The authors' labels of the 69 models of their study."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

from simhpc.zoo.components.read import COLUMNS, Components


@cache
def labelled() -> dict[str, Components]:
    """The 69 models under their names in the paper, as the authors' table has them, contradictions included."""
    text = (files("simhpc.zoo") / "tables" / "components69.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["model"]: Components(*(row[column] for column in COLUMNS)) for row in rows}
