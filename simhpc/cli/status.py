"""`simhpc status [RUN]`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live

from simhpc.cli.console import errors, name_of, output
from simhpc.cli.runs import RunOption, find_run
from simhpc.cli.view import View, line, show
from simhpc.errors import SimhpcError
from simhpc.stages import ALL_STAGES
from simhpc.stages.task import ALL

if TYPE_CHECKING:
    from simhpc.cluster.status import Monitor, RunStatus, TaskStatus
    from simhpc.rundir import Run

_LOOK_S = 2.0


def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run directory.", show_default="this folder, or the only one in runs/"),
    ] = None,
    same: RunOption = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking until nothing is queued or runs.")] = False,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Show every task, the done ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what became of every task of a run, worst first.

    A task is [bold]done[/] when its output is there and valid and no job of it waits, whatever Slurm says; else
    Slurm's word counts, then the task's own progress. Works from any machine that sees the run directory. With
    --watch, Slurm is asked every 10 seconds while things change and every minute while they do not; progress is
    read every 2 seconds.

    The exit code is 1 when a task has failed or was cancelled.

    [bold]Examples[/]

      simhpc status runs/demo

      simhpc status --watch

      simhpc status runs/demo --json | jq '.tasks[] | select(.state == "failed") | .model, .reason'
    """
    from simhpc.cluster.status import Monitor

    if watch and as_json:
        raise SimhpcError("--watch is for people, --json for scripts: give one of them")
    if run_dir is not None and same is not None:
        raise SimhpcError(f"{run_dir} and --run {same}: name one run directory")
    run = find_run(run_dir or same)
    if watch:
        found = _watch(run, ALL_STAGES, lambda _: True)
    else:
        found = Monitor(run).look()
        if as_json:
            print(json.dumps(_finite(found.as_json())))
        else:
            show(output, found, is_all=show_all)
    if any(task.state in ("failed", "cancelled") for task in found.tasks):
        raise typer.Exit(1)


def wait_for(run: Run, stages: Sequence[str], models: Sequence[str] | None, *, quiet: bool) -> None:
    """Show a run until nothing of these stages and models is queued or runs; exit with 1 if not all of it is done."""

    def concerns(task: TaskStatus) -> bool:
        return task.stage in stages and (models is None or task.model in models or task.model == ALL)

    found = _watch(run, stages, concerns, console=errors if quiet else output)
    wrong = [task for task in found.tasks if concerns(task) and task.state != "done"]
    for task in wrong:
        errors.print(f"{task.stage} {name_of(task.model)}: {task.state}: {task.reason}", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def _watch(
    run: Run, stages: Sequence[str], concerns: Callable[[TaskStatus], bool], console: Console = output
) -> RunStatus:
    """Show a run until nothing that concerns us goes on.

    Args:
        stages: whose counts a file is told of.
    """
    from simhpc.cluster.status import Monitor

    looks = _looks(Monitor(run))
    found = next(looks)
    try:
        if console.is_terminal:
            with Live(View(found), console=console, screen=True, auto_refresh=True, refresh_per_second=2) as live:
                while _is_going_on(found, concerns):
                    found = next(looks)
                    live.update(View(found))
        else:
            # For a log file: a line per stage whenever a count changes.
            said: list[str] = []
            while True:
                lines = [line(summary) for summary in found.stages() if summary.stage in stages]
                for text in lines:
                    if text not in said:
                        console.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)
                said = lines
                if not _is_going_on(found, concerns):
                    break
                found = next(looks)
    except KeyboardInterrupt:
        if console.is_terminal:
            show(console, found)
        errors.print("no longer watching; the jobs go on: simhpc status, simhpc cancel", soft_wrap=True)
        raise typer.Exit(130) from None
    if console.is_terminal:
        show(console, found)
    return found


def _looks(monitor: Monitor) -> Iterator[RunStatus]:
    """What a run is like now and again: every 2 s, or less often where thousands of files take long to look at."""
    while True:
        started_s = time.monotonic()
        found = monitor.look()
        took_s = time.monotonic() - started_s
        yield found
        time.sleep(max(_LOOK_S, 4 * took_s))


def _is_going_on(found: RunStatus, concerns: Callable[[TaskStatus], bool]) -> bool:
    return any(task.is_live or task.state in ("running", "queued", "unknown") for task in found.tasks if concerns(task))


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    match value:
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case float() if not math.isfinite(value):
            return None
    return value
