"""How a run looks on a terminal, and in a file: a bar per stage, then the tasks, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, OverflowMethod, RenderResult
from rich.table import Table
from rich.text import Text

from simhpc.cli.console import duration, name_of

if TYPE_CHECKING:
    from simhpc.cluster.status import RunStatus, StageSummary, TaskStatus

_LOOKS = {
    "failed": ("×", "red"),
    "cancelled": ("-", "magenta"),
    "unknown": ("?", "yellow"),
    "running": ("▓", "cyan"),
    "queued": ("▒", "blue"),
    "todo": ("·", "bright_black"),
    "done": ("█", "green"),
}
"""Of each state, worst first: what its part of a bar is drawn with, so that it shows without colours too."""
ROWS = 40
"""Tasks shown at most, unless all are asked for."""
_MIN_REASON = 30
_BESIDE_BAR = 70


def show(console: Console, found: RunStatus, *, is_all: bool = False) -> None:
    """Print a run once. In a file, nothing is cut."""
    view = View(found, rows=None if is_all else ROWS, show_done=is_all)
    if console.is_terminal:
        console.print(view)
    else:
        Console(file=console.file, width=_needed_width(found), highlight=False).print(view)


def line(summary: StageSummary) -> str:
    """A stage in one line of text."""
    counts = ", ".join(f"{summary.counts[state]} {state}" for state in reversed(_LOOKS) if summary.counts[state])
    return f"{summary.stage:<10} {counts}"


def _needed_width(found: RunStatus) -> int:
    longest = max((len(task.reason) + len(task.model) for task in found.tasks), default=0)
    return 200 + max(longest, *(len(note) for note in found.notes), 0)


class View:
    """The summary, then as many tasks as there is room for, worst first; drawn anew for every size of the window."""

    def __init__(self, found: RunStatus, *, rows: int | None = 0, show_done: bool = False) -> None:
        self._found = found
        self._rows = rows
        self._show_done = show_done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        is_whole_window = self._rows == 0
        parts: list[Table | Text] = [_bars(self._found, options.max_width)]
        # In a window of a given height each note has one line; else all of it is shown.
        cut: OverflowMethod = "ellipsis" if is_whole_window else "fold"
        parts += [Text(f"note: {note}", "yellow", overflow=cut, no_wrap=is_whole_window) for note in self._found.notes]
        order = {state: number for number, state in enumerate(_LOOKS)}
        tasks = [task for task in self._found.begun() if self._show_done or task.state != "done"]
        tasks.sort(key=lambda task: order[task.state])
        room = len(tasks)
        if self._rows is not None:
            # 0: the whole window, less the summary, the table's head and the line of what is left out.
            room = self._rows or max(1, console.size.height - len(parts) - len(self._found.stages()) - 4)
        if tasks:
            parts.append(_table(tasks[:room], options.max_width, is_folded=not is_whole_window))
        if left := tasks[room:]:
            counts = {state: sum(task.state == state for task in left) for state in _LOOKS}
            shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            parts.append(_one_line(f"and {len(left)} more: {shown}"))
        yield Group(*parts)


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _bars(found: RunStatus, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    size = max(6, min(40, width - _BESIDE_BAR))
    for summary in found.stages():
        bar = Text()
        used = 0
        shown = [state for state in reversed(_LOOKS) if summary.counts[state]]
        for number, state in enumerate(shown):
            is_last = number == len(shown) - 1
            cells = size - used if is_last else max(1, size * summary.counts[state] // summary.n_tasks)
            character, colour = _LOOKS[state]
            bar.append(character * max(0, min(cells, size - used)), style=colour)
            used += cells
        counts = _one_line(", ".join(f"{summary.counts[state]} {state}" for state in shown))
        is_moving = summary.counts["running"] or summary.counts["queued"]
        table.add_row(summary.stage, bar, counts, _one_line(f"ETA {duration(summary.eta_s)}" if is_moving else ""))
    return table


def _table(tasks: Sequence[TaskStatus], width: int, *, is_folded: bool) -> Table:
    """One row per task; the columns that say least give way to the reason, which is cut unless it is folded."""
    columns: dict[str, list[str]] = {
        "stage": [task.stage for task in tasks],
        "model": [name_of(task.model) for task in tasks],
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

    for name in ("rate", "exit", "restarts", "elapsed", "node", "ETA", "progress", "job"):
        if left() < min(longest, _MIN_REASON):
            widths.pop(name, None)
    if longest and left() < 1:
        widths["model"] = max(8, widths["model"] + left() - _MIN_REASON)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name, needed in widths.items():
        table.add_column(name, no_wrap=True, overflow="ellipsis", width=needed)
    if longest:
        width = max(1, min(longest, left()))
        table.add_column("reason", no_wrap=not is_folded, overflow="fold" if is_folded else "ellipsis", width=width)
    for row, task in enumerate(tasks):
        cells: list[Text] = [Text(columns[name][row]) for name in widths]
        cells[list(widths).index("state")].style = _LOOKS[task.state][1]
        table.add_row(*cells, *([Text(task.reason)] if longest else []))
    return table


def _rate(task: TaskStatus) -> str:
    if not task.rate_per_s:
        return ""
    return f"{task.rate_per_s:.1f}/s" if task.rate_per_s >= 1 else f"{1 / task.rate_per_s:.1f} s each"
