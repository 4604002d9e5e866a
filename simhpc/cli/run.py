"""`simhpc run STUDY`."""

from __future__ import annotations

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table

from simhpc.cli.console import duration, errors, name_of, output, percent, tell
from simhpc.errors import SimhpcError, nearest
from simhpc.rundir import Run, study_and_root
from simhpc.stages import ALL_STAGES, stages_of
from simhpc.stages.progress import Progress
from simhpc.store import similarity
from simhpc.store.similarity import SimilarityMatrix
from simhpc.zoo.registry import substitution


def run(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run directory.", show_default="runs/<name of the study>"),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Only these stages, comma-separated.",
            show_default="train,attack,evaluate,aggregate, and distill if the study has students",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Tasks at once.", show_default="one per GPU, or cores / threads_per_task"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON at the end.")] = False,
) -> None:
    """Run a study on this machine: train, attack, evaluate, aggregate.

    The same command again goes on where the last one stopped; models added to the study cost only their own
    training, attack, row and column. The exit code is 1 when a task failed.

    [bold]Examples[/]

      simhpc run jobs/demo.toml

      simhpc run jobs/demo.toml --out /scratch/demo --workers 4

      simhpc run jobs/demo.toml --stages evaluate,aggregate

      simhpc run jobs/demo.toml --stages representations     (optional: what two more measures need)
    """
    from simhpc.cluster.local import check_root, default_workers, run_stages
    from simhpc.stages.prepare import prepare, version_changes

    asked_for = None if stages is None else _stages(stages)
    study, root = study_and_root(study_file, out)
    wanted = list(stages_of(study)) if asked_for is None else asked_for
    check_root(root)
    display = _Display(quiet=as_json)
    display.say(f"checking {study_file}")
    run = prepare(study, root)
    tell(map(substitution, run.study.models))
    for change in version_changes(run):
        errors.print(f"warning: {root} was begun with other versions: {change}", markup=False, soft_wrap=True)
    started_s = time.monotonic()
    events = run_stages(run, wanted, workers or default_workers(run))
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    try:
        with display.live():
            for event in events:
                display.show(event)
    except KeyboardInterrupt:
        # A second Ctrl-C would only leave tasks behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        errors.print(
            "interrupted, the running tasks are stopped; the same command again goes on from here", soft_wrap=True
        )
        raise typer.Exit(130) from None
    finally:
        events.close()
    matrix = similarity.load(run.dir.similarity) if "aggregate" in wanted and run.dir.similarity.exists() else None
    display.end(run, matrix, time.monotonic() - started_s, as_json=as_json)
    if display.failed or (matrix is not None and matrix.problems):
        raise typer.Exit(1)


def _interrupt(*_: object) -> None:
    """End like Ctrl-C when the terminal closes or a batch system stops us: without leaving tasks behind."""
    raise KeyboardInterrupt


def _stages(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in ALL_STAGES:
            there_are = f"there are {', '.join(ALL_STAGES)}"
            raise SimhpcError(f"--stages: no stage {name!r}{nearest(name, ALL_STAGES)}; {there_are}")
    if not names:
        raise SimhpcError(f"--stages: name at least one of {', '.join(ALL_STAGES)}")
    return [name for name in ALL_STAGES if name in names]


class _Display:
    """One line per finished task, and on a terminal a live table of those that run."""

    def __init__(self, *, quiet: bool) -> None:
        # With --json the standard output is for the summary alone.
        self._console = errors if quiet else output
        self._live: Live | None = None
        self._todo = self._ended = 0
        self._stage_started_s = 0.0
        self.failed: list[dict[str, Any]] = []
        self._executed: list[dict[str, Any]] = []

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def live(self) -> Any:
        """A context in which running tasks are shown; does nothing when the output is not a terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        self._live = Live(console=self._console, transient=True, refresh_per_second=4)
        return self._live

    def show(self, event: Any) -> None:
        from simhpc.cluster.local import Finished, Running, Skipped, StageStarted

        match event:
            case StageStarted(stage, n_tasks, n_done):
                self._todo, self._ended, self._stage_started_s = n_tasks - n_done, 0, time.monotonic()
                self.say(f"{stage:<10} {n_tasks} task(s), {n_done} done already")
            case Running():
                if self._live is not None:
                    self._live.update(self._table(event))
            case Finished(task, elapsed_s, error, summary, log):
                self._ended += 1
                entry = {"stage": task.stage, "model": task.model, "elapsed_s": round(elapsed_s, 2)}
                name = name_of(task.model)
                if error is None:
                    self._executed.append({**entry, **summary})
                    self.say(f"{task.stage:<10} {name:<20} {duration(elapsed_s):>12}  {_describe(summary)}")
                else:
                    self.failed.append({**entry, "error": error, "log": str(log)})
                    self.say(f"{task.stage:<10} {name:<20} FAILED: {error}\n{'':10} log: {log}")
                if summary.get("missing"):
                    self.say(f"  note: no adversarial sets yet of {summary['missing']}")
            case Skipped(task, reason):
                self._ended += 1
                self.failed.append({"stage": task.stage, "model": task.model, "error": f"skipped: {reason}"})
                self.say(f"{task.stage:<10} {task.model:<20} skipped: {reason}")

    def end(self, run: Run, matrix: SimilarityMatrix | None, elapsed_s: float, *, as_json: bool) -> None:
        """Say what was done, what failed, what is incomplete and where the results lie."""
        problems = matrix.problems if matrix is not None else []
        if as_json:
            summary = {
                "run": str(run.dir.root),
                "executed": self._executed,
                "failed": self.failed,
                "problems": problems,
                "notes": matrix.notes if matrix is not None else [],
            }
            # JSON has no NaN: a number that is not known is null.
            print(json.dumps(_without_nan(summary), indent=1, allow_nan=False))
        self.say(
            f"{len(self._executed)} task(s) executed in {duration(elapsed_s)}, {len(self.failed)} failed or skipped"
        )
        for failure in self.failed:
            where = f" (log: {failure['log']})" if "log" in failure else ""
            self.say(f"  {failure['stage']} {failure['model']}: {failure['error']}{where}")
        if matrix is not None:
            for problem in problems:
                self.say(f"problem: {problem}")
            for note in matrix.notes:
                self.say(f"note: {note}")
            self.say(f"matrix   {run.dir.similarity_csv}\npairs    {run.dir.pairs_csv}")
            self.say(f"models   {run.dir.models_csv}\nheatmap  {run.dir.heatmap}")

    def _table(self, event: Any) -> Table:
        table = Table.grid(padding=(0, 2))
        for task, progress in event.readings.items():
            if progress is None or progress.total == 0:
                table.add_row(task.stage, task.model, "starting")
            else:
                done = f"{progress.done}/{progress.total} {progress.unit}s"
                eta = "finishing" if progress.done == progress.total else f"ETA {duration(progress.eta_s)}"
                table.add_row(task.stage, task.model, done, _rate(progress), eta)
        left = event.n_waiting + len(event.readings)
        # Until the first task has ended there is nothing to extrapolate from.
        per_task_s = (time.monotonic() - self._stage_started_s) / self._ended if self._ended else None
        eta = duration(None if per_task_s is None else per_task_s * left)
        table.add_row(event.stage, f"{self._ended}/{self._todo} tasks", f"{event.n_waiting} waiting", "", f"ETA {eta}")
        return table


def _rate(progress: Progress) -> str:
    if progress.rate_per_s >= 1:
        return f"{progress.rate_per_s:.1f} {progress.unit}s/s"
    return f"{1 / progress.rate_per_s:.1f} s/{progress.unit}" if progress.rate_per_s > 0 else ""


def _without_nan(value: Any) -> Any:
    match value:
        case dict():
            return {name: _without_nan(item) for name, item in value.items()}
        case list():
            return [_without_nan(item) for item in value]
        case float() if value != value:
            return None
    return value


def _describe(summary: dict[str, Any]) -> str:
    shown = []
    for name, value in summary.items():
        if name in ("accuracy", "self_fooling"):
            shown.append(f"{name.replace('_', '-')} {percent(value)}")
        elif name in ("images", "sources", "shown", "pairs", "gradients", "features"):
            shown.append(f"{name} {value}")
    return ", ".join(shown)
