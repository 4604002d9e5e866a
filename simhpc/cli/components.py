"""`simhpc components MODEL…`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from simhpc.cli.console import errors, output, tell
from simhpc.errors import ModelError, SimhpcError
from simhpc.study import load_study
from simhpc.zoo.registry import stand_in

if TYPE_CHECKING:
    from simhpc.zoo.components import Architecture


def components(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Names in timm (with a tag or without) or in the paper, or study files (.toml)."
        ),
    ],
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a table as CSV, with the column names of the paper's.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Read the 13 components of architectures: stem, norm, attention and so on. Needs no weights and no labels.

    A model that cannot be read does not stop the others; the exit code is then 1.

    [bold]Examples[/]

      simhpc components resnet50 swin_tiny_patch4_window7_224

      simhpc components efficientnet_b2.ra_in1k --json

      simhpc components jobs/demo.toml --csv > components.csv
    """
    from simhpc.zoo.components import COLUMNS, read

    if as_csv and as_json:
        raise SimhpcError("--csv and --json exclude each other")
    rows: dict[str, dict[str, str]] = {}
    failures = 0
    architectures = _architectures(models)
    tell(stand_in(architecture.name, architecture.timm) for architecture in architectures)
    for architecture in architectures:
        try:
            rows[architecture.name] = read(architecture).row()
        except ModelError as error:
            failures += 1
            errors.print(f"problem: {error}", markup=False, soft_wrap=True)
    if as_csv:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["Model name", *COLUMNS])
        writer.writerows([name, *row.values()] for name, row in rows.items())
        print(text.getvalue(), end="")
    elif as_json:
        print(json.dumps([{"Model name": name, **row} for name, row in rows.items()], indent=1))
    else:
        for name, row in rows.items():
            _show(name, row)
    if failures:
        raise typer.Exit(1)


def _architectures(models: list[str]) -> list[Architecture]:
    """All that was named, each name once; nothing is read if one is unknown."""
    from simhpc.zoo.components import find, find_entry

    found: dict[str, Architecture] = {}
    for model in models:
        if model.endswith(".toml"):
            entries = [find_entry(entry) for entry in load_study(Path(model)).models]
        else:
            entries = [find(model)]
        found |= {entry.name: entry for entry in entries}
    return list(found.values())


def _show(name: str, row: dict[str, str]) -> None:
    table = Table(name, "", box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column, value in row.items():
        table.add_row(f"  {column}", value)
    output.print(table)
