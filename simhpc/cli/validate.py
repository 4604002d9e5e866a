"""`simhpc validate STUDY`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simhpc.cli.console import output
from simhpc.study import load_study
from simhpc.zoo.registry import substitution


def validate(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the fully resolved study as JSON.")] = False,
) -> None:
    """Check a study: its keys, models, tags, checkpoints and images. Writes nothing.

    [bold]Examples[/]

      simhpc validate jobs/demo.toml

      simhpc validate jobs/demo.toml --json | jq .models
    """
    from simhpc.stages.prepare import check

    resolved = check(load_study(study))
    if as_json:
        print(json.dumps(resolved.model_dump(mode="json"), indent=1))
        return
    students = f"; {len(resolved.students)} students to distil" if resolved.students else ""
    output.print(
        f"{study} is a valid study: {len(resolved.models)} models, {resolved.images.n} images of "
        f"{resolved.images.source}, {resolved.attack.name} with eps {resolved.attack.eps_255}/255"
        f" and {resolved.attack.steps} steps{students}",
        markup=False,
        soft_wrap=True,
    )
    for model in resolved.models:
        if note := substitution(model):
            output.print(f"note: {note}", markup=False, soft_wrap=True)
