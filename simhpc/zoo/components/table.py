"""The authors' labels of the 69 models of their study."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from simhpc.zoo.components.read import COLUMNS, Components


@dataclass(frozen=True)
class Labelled:
    """One model of the paper.

    Attributes:
        timm: the architecture and weights that it is in timm today, as `name.tag`.
        components: as the authors' table has them, contradictions included.
    """

    timm: str
    components: Components


@cache
def labelled() -> dict[str, Labelled]:
    """The 69 models under their names in the paper."""
    text = (files("simhpc.zoo") / "tables" / "components69.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {row["model"]: Labelled(row["timm"], Components(*(row[column] for column in COLUMNS))) for row in rows}
