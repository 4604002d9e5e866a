"""`simhpc suggest-teacher RUN STUDENT`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from simhpc.cli.console import output, percent
from simhpc.rundir import open_run


def suggest_teacher(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory with a matrix.")],
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="Key of the model that is to be taught.")],
    distillation: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose students count, if there are several.", show_default="the first"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Rank the models of a finished study as teachers of one of them, and say how weak the evidence is. Offline.

    Where students were distilled, theirs is the accuracy that counts; of the other models a rule is learned from
    these, if there is one that predicts teachers that it was not learned from.

    [bold]Examples[/]

      simhpc suggest-teacher runs/distill-demo vit

      simhpc suggest-teacher runs/distill25 deit_tiny_patch16_224 --json | jq '.candidates[0]'
    """
    from simhpc.offline.suggest_teacher import suggest_teacher as suggest

    found = suggest(open_run(run_dir), student, distillation)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    output.print(_table(found))
    if found["undistilled_accuracy"] is not None:
        text = f"{student} undistilled: {percent(found['undistilled_accuracy'])}"
        output.print(text, markup=False, soft_wrap=True)
    for line in found["words"]:
        output.print(line, markup=False, soft_wrap=True)


def _table(found: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("", "teacher", "SAT", "accuracy", "student's accuracy", "from"):
        table.add_column(name, justify="left" if name in ("teacher", "from") else "right", no_wrap=True)
    for place, each in enumerate(found["candidates"], 1):
        known = each["expected_accuracy"] is not None
        students = f"{each['n_students']} student(s)" if each["n_students"] else "the rule" if known else ""
        table.add_row(
            str(place),
            each["teacher"],
            "unknown" if each["sat"] is None else f"{each['sat']:.2f}",
            "unknown" if each["accuracy"] is None else percent(each["accuracy"]),
            percent(each["expected_accuracy"]) if known else "unknown",
            students,
        )
    return table
