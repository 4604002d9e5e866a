"""`simhpc cancel [MODEL…]`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from simhpc.cli.console import errors, name_of, output
from simhpc.cli.runs import RunOption, find_run
from simhpc.cli.submit import stages_named
from simhpc.errors import SimhpcError
from simhpc.stages import ALL_STAGES


def cancel(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]…", help="Whose tasks to cancel; 'all' is the aggregation's.")
    ] = None,
    run_dir: RunOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Cancel every task of the run.")] = False,
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Only tasks of this stage.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was cancelled as JSON.")] = False,
) -> None:
    """Take tasks out of the queue and stop those that run. What they have finished is kept: a retry goes on from it.

    [bold]Examples[/]

      simhpc cancel vit resnet

      simhpc cancel --all --run runs/demo

      simhpc cancel --all --stage evaluate
    """
    from simhpc.cluster import control
    from simhpc.cluster.status import Monitor

    if bool(models) == everything:
        raise SimhpcError("name the models to cancel, or give --all: one of them (a run directory is named by --run)")
    run = find_run(run_dir)
    chosen = control.chosen_models(run, models) if models else None
    stages = stages_named(stage or "all", ALL_STAGES)
    found = Monitor(run).look()
    cancelled = control.cancel(found, models=chosen, stages=stages)
    if as_json:
        print(
            json.dumps(
                [{"stage": task.stage, "model": task.model, "jobs": task.live_jobs} for task in cancelled], indent=1
            )
        )
    else:
        for task in cancelled:
            jobs = ", ".join(task.live_jobs)
            output.print(
                f"cancelled  {task.stage:<10} {name_of(task.model)} (job {jobs})", markup=False, soft_wrap=True
            )
        if not cancelled and found.source != "nobody":
            output.print("nothing of that is queued or running")
    if any(task.is_live and not any(task.live_jobs) for task in found.tasks):
        errors.print("note: some tasks are just being submitted: cancel those in a moment", soft_wrap=True)
    for note in found.notes:
        errors.print(f"note: {note}", markup=False, soft_wrap=True)
    if not cancelled and found.source == "nobody":
        raise SimhpcError("Slurm could not be asked what is queued: nothing was cancelled")
