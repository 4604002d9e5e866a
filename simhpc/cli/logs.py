"""`simhpc logs MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from simhpc.cli.console import errors
from simhpc.cli.runs import RunOption, find_run
from simhpc.cli.submit import stages_named
from simhpc.errors import SimhpcError
from simhpc.stages import ALL_STAGES
from simhpc.stages.task import Task


def logs(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the study, or 'all' for the aggregation.")],
    run_dir: RunOption = None,
    stage: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Which stage's log.", show_default="the last that has one"),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as it is written, until the task is over.")
    ] = False,
    stderr: Annotated[bool, typer.Option("--stderr", "-e", help="The error output: warnings, tracebacks.")] = False,
    attempt: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Only the Nth start of the task.", show_default="all of its last job"),
    ] = None,
) -> None:
    """Print what a task's jobs wrote. Earlier attempts are kept: retries have files of their own.

    [bold]Examples[/]

      simhpc logs vit

      simhpc logs vit --stage attacks --stderr

      simhpc logs vit -f

      simhpc logs vit --attempt 1
    """
    from simhpc.cluster import control
    from simhpc.cluster import logs as tasklogs
    from simhpc.cluster.status import Monitor

    run = find_run(run_dir)
    monitor = Monitor(run)
    (key,) = control.chosen_models(run, [model])
    stages = stages_named(stage or "all", ALL_STAGES)
    monitor.look()
    found = [(name, attempts) for name in stages if (attempts := monitor.attempts(Task(name, key)))]
    if not found:
        where = f"the {stages[0]} task of {model}" if stage is not None else f"no task of {model}"
        has = "has not been" if stage is not None else "has been"
        raise SimhpcError(f"{where} {has} submitted from {run.dir.root}: there is no log")
    kind, other = ("err", "out") if stderr else ("out", "err")
    # Of what was submitted at once, the stage that has got furthest.
    started = [entry for entry in found if any(attempt.log(run, kind).exists() for attempt in entry[1])]
    name, attempts = (started or found)[-1]
    if follow:
        path = attempts[-1].log(run, kind)
        errors.print(f"following {path}", markup=False, soft_wrap=True)

        def is_over() -> bool:
            return not monitor.look().task(name, key).is_live

        try:
            for text in tasklogs.follow(path, is_over):
                print(text, end="", flush=True)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        if not path.exists():
            errors.print(f"the job is over and left no {path.name}{_hint(stderr)}", markup=False, soft_wrap=True)
        return
    sections = tasklogs.sections(run, attempts, kind)
    if attempt is not None:
        chosen = [section for section in sections if section.number == attempt]
        if not chosen:
            raise SimhpcError(f"{name} {model} has {len(sections)} attempt(s) with a log, none is number {attempt}")
    else:
        last = attempts[-1]
        chosen = [section for section in sections if section.job == last.job]
        if not chosen and last.log(run, other).exists():
            raise SimhpcError(f"job {last.job} has written nothing here{_hint(stderr)}")
        if not chosen and not sections:
            raise SimhpcError(f"job {last.job} has written nothing: `simhpc status` tells whether it has started")
        if not chosen:
            errors.print(f"job {last.job} has written nothing yet; before it:", markup=False, soft_wrap=True)
            chosen = [section for section in sections if section.job == sections[-1].job]
    for section in chosen:
        print(section.text, end="")
    errors.print(f"{chosen[-1].path}, {len(sections)} attempt(s) in all", markup=False, soft_wrap=True)


def _hint(stderr: bool) -> str:
    return "; try it without --stderr" if stderr else "; try --stderr"
