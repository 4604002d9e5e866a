"""The 13 components of an architecture, read from what runs in it. docs/components.md says how, and how well."""

from __future__ import annotations

from simhpc.zoo.components.named import Architecture, find, find_entry, read
from simhpc.zoo.components.read import COLUMNS, Components, read_components
from simhpc.zoo.components.table import labelled

__all__ = [
    "COLUMNS",
    "Architecture",
    "Components",
    "find",
    "find_entry",
    "labelled",
    "read",
    "read_components",
]
