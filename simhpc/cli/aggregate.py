"""`simhpc aggregate RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simhpc.cli.console import end_with, output
from simhpc.rundir import open_run


def aggregate(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Make the similarity matrix, its tables and its heatmap from a run's predictions. Offline, without a GPU.

    Missing or invalid inputs are listed and leave cells unknown ([bold]nan[/]); the exit code is then 1.

    [bold]Examples[/]

      simhpc aggregate runs/demo

      simhpc aggregate runs/demo --json
    """
    from simhpc.stages import aggregate as stage
    from simhpc.stages.task import ALL, Task

    run = open_run(run_dir)
    summary = stage.execute(run, Task(stage.STAGE, ALL), lambda *_: None)
    written = (
        run.dir.similarity,
        run.dir.similarity_csv,
        run.dir.pairs_csv,
        run.dir.models_csv,
        run.dir.heatmap,
    )
    if as_json:
        print(json.dumps({**summary, "files": [str(path) for path in written]}, indent=1))
    else:
        for path in written:
            output.print(str(path), markup=False, soft_wrap=True)
        output.print(f"{summary['pairs']} of {summary['all_pairs']} pairs known")
        for note in summary["notes"]:
            output.print(f"note: {note}", markup=False, soft_wrap=True)
    end_with(summary["problems"])
