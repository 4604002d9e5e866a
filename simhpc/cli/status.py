"""`simhpc status [RUN]`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simhpc.cli.console import duration, errors, output
from simhpc.cli.runs import find_run
from simhpc.stages.task import ALL

if TYPE_CHECKING:
    from simhpc.cluster.status import RunStatus, TaskStatus
    from simhpc.rundir import Run

_COLOURS = {
    "failed": "red",
    "cancelled": "magenta",
    "unknown": "yellow",
    "running": "cyan",
    "queued": "blue",
    "todo": "bright_black",
    "done": "green",
}
_LOOK_S = 2.0
_ROWS = 40
_MIN_REASON = 30


def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="A run directory.", show_default="this folder, or the only one in runs/"),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking until nothing is queued or runs.")] = False,
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Show every task, the done ones too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what became of every task of a run, worst first.

    A task is [bold]done[/] when its output is there and valid, whatever Slurm says; else Slurm's word counts, then
    the task's own progress. Works from any machine that sees the run directory. With --watch, Slurm is asked every
    10 seconds while things change and every minute while they do not; progress is read every 2 seconds.

    The exit code is 1 when a task has failed or was cancelled.

    [bold]Examples[/]

      simhpc status runs/demo

      simhpc status --watch

      simhpc status runs/demo --json | jq '.tasks[] | select(.state == "failed") | .model, .reason'
    """
    from simhpc.cluster.status import Monitor

    run = find_run(run_dir)
    if watch and not as_json:
        found = _watch(run, lambda _: True)
    else:
        found = Monitor(run).look()
        if as_json:
            print(json.dumps(_finite(found.as_json()), indent=1))
        else:
            output.print(_View(found, rows=None if show_all else _ROWS, show_done=show_all))
    if any(task.state in ("failed", "cancelled") for task in found.tasks):
        raise typer.Exit(1)


def wait_for(run: Run, stages: Sequence[str], models: Sequence[str] | None, *, quiet: bool) -> None:
    """Show a run until nothing of these stages and models is queued or runs; exit with 1 if not all of it is done."""

    def concerns(task: TaskStatus) -> bool:
        return task.stage in stages and (models is None or task.model in models or task.model == ALL)

    found = _watch(run, concerns, console=errors if quiet else output)
    wrong = [task for task in found.tasks if concerns(task) and task.state != "done"]
    for task in wrong:
        errors.print(f"{task.stage} {_name(task)}: {task.state}: {task.reason}", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


def _watch(run: Run, concerns: Callable[[TaskStatus], bool], console: Console = output) -> RunStatus:
    from simhpc.cluster.status import Monitor

    monitor = Monitor(run)
    found = monitor.look()
    try:
        if console.is_terminal:
            with Live(_View(found), console=console, screen=True, auto_refresh=True, refresh_per_second=2) as live:
                while _is_going_on(found, concerns):
                    time.sleep(_LOOK_S)
                    found = monitor.look()
                    live.update(_View(found))
        else:
            # For a log file: a line per stage whenever a count changes.
            said: list[str] = []
            while True:
                lines = [_line(summary) for summary in found.stages()]
                for line in lines:
                    if line not in said:
                        console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False, soft_wrap=True)
                said = lines
                if not _is_going_on(found, concerns):
                    break
                time.sleep(_LOOK_S)
                found = monitor.look()
    except KeyboardInterrupt:
        errors.print("no longer watching; the jobs go on: simhpc status, simhpc cancel", soft_wrap=True)
        raise typer.Exit(130) from None
    if console.is_terminal:
        console.print(_View(found, rows=_ROWS))
    return found


def _is_going_on(found: RunStatus, concerns: Callable[[TaskStatus], bool]) -> bool:
    return any(task.is_live or task.state in ("running", "queued", "unknown") for task in found.tasks if concerns(task))


class _View:
    """The summary, then as many tasks as there is room for, worst first; drawn anew for every size of the window."""

    def __init__(self, found: RunStatus, *, rows: int | None = 0, show_done: bool = False) -> None:
        self._found = found
        self._rows = rows
        self._show_done = show_done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from simhpc.cluster.status import STATES

        parts: list[Table | Text] = [_bars(self._found, options.max_width)]
        parts += [_one_line(f"note: {note}", style="yellow") for note in self._found.notes]
        order = {state: number for number, state in enumerate(STATES)}
        tasks = [task for task in self._found.tasks if self._show_done or task.state != "done"]
        tasks.sort(key=lambda task: order[task.state])
        room = len(tasks)
        if self._rows is not None:
            # 0: the whole window, less the summary, the table's head and the line of what is left out.
            room = self._rows or max(1, console.size.height - len(parts) - len(self._found.stages()) - 4)
        if tasks:
            parts.append(_table(tasks[:room], options.max_width))
        if left := tasks[room:]:
            counts = {state: sum(task.state == state for task in left) for state in STATES}
            shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            parts.append(_one_line(f"and {len(left)} more: {shown}"))
        yield Group(*parts)


def _one_line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _bars(found: RunStatus, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    size = max(6, min(40, width - 70))
    for summary in found.stages():
        bar = Text()
        used = 0
        shown = [state for state in reversed(_COLOURS) if summary.counts[state]]
        for number, state in enumerate(shown):
            end = size if number == len(shown) - 1 else None
            cells = max(1, math.floor(size * summary.counts[state] / summary.n_tasks)) if end is None else end - used
            bar.append("█" * max(0, min(cells, size - used)), style=_COLOURS[state])
            used += cells
        counts = _one_line(", ".join(f"{summary.counts[state]} {state}" for state in shown))
        eta = f"ETA {duration(summary.eta_s)}" if summary.counts["running"] or summary.counts["queued"] else ""
        table.add_row(summary.stage, bar, counts, eta)
    return table


def _table(tasks: Sequence[TaskStatus], width: int) -> Table:
    """One row per task; the columns that say least give way to the reason."""
    columns: dict[str, list[str]] = {
        "stage": [task.stage for task in tasks],
        "model": [_name(task) for task in tasks],
        "state": [task.state for task in tasks],
        "progress": [f"{task.done}/{task.total} {task.unit}s" if task.total else "" for task in tasks],
        "ETA": [duration(task.eta_s) if task.eta_s is not None else "" for task in tasks],
        "elapsed": [duration(task.elapsed_s) if task.elapsed_s is not None else "" for task in tasks],
        "rate": [_rate(task) for task in tasks],
        "node": [task.node for task in tasks],
        "job": [task.job for task in tasks],
        "restarts": [str(task.restarts) if task.restarts else "" for task in tasks],
        "exit": [str(task.exit_code) if task.exit_code else "" for task in tasks],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    longest = max((len(task.reason) for task in tasks), default=0)

    def left() -> int:
        return width - sum(widths.values()) - 2 * len(widths)

    for name in ("job", "rate", "node", "exit", "restarts", "elapsed", "ETA", "progress"):
        if left() < min(longest, _MIN_REASON):
            widths.pop(name, None)
    if longest and left() < 1:
        widths["model"] = max(8, widths["model"] + left() - _MIN_REASON)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name, needed in widths.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=needed)
    if longest:
        table.add_column("reason", no_wrap=True, overflow="ellipsis", width=max(1, min(longest, left())))
    for row, task in enumerate(tasks):
        cells: list[Text] = [Text(columns[name][row]) for name in widths]
        cells[list(widths).index("state")].style = _COLOURS[task.state]
        table.add_row(*cells, *([Text(task.reason)] if longest else []))
    return table


def _name(task: TaskStatus) -> str:
    return "all models" if task.model == ALL else task.model


def _rate(task: TaskStatus) -> str:
    if not task.rate_per_s:
        return ""
    return f"{task.rate_per_s:.1f}/s" if task.rate_per_s >= 1 else f"{1 / task.rate_per_s:.1f} s each"


def _line(summary: object) -> str:
    from simhpc.cluster.status import STATES, StageSummary

    assert isinstance(summary, StageSummary)
    counts = ", ".join(f"{summary.counts[state]} {state}" for state in reversed(STATES) if summary.counts[state])
    return f"{summary.stage:<10} {counts}"


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
