"""All stages on this machine, through submitit's local executor: one process per task."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from simhpc.cluster.status import BEFORE
from simhpc.errors import SimhpcError
from simhpc.rundir import Run
from simhpc.stages import done_tasks, stage_module
from simhpc.stages.progress import Progress, read_progress, stop_at
from simhpc.stages.task import Task, execute_task

_POLL_S = 0.1
# Progress files change twice a second at most.
_READ_S = 0.5
# submitit ends a job after its time limit; a laptop has none that matters.
_TIMEOUT_MIN = 60 * 24 * 365


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; `n_done` of its tasks were done before."""

    stage: str
    n_tasks: int
    n_done: int


@dataclass(frozen=True)
class Running:
    """A reading while tasks run, twice a second.

    Attributes:
        n_waiting: tasks of the stage that have not been started.
        readings: of each running task; None before its first report.
    """

    stage: str
    n_waiting: int
    readings: dict[Task, Progress | None]


@dataclass(frozen=True)
class Finished:
    """A task has ended.

    Attributes:
        error: None on success, else one line.
        summary: what the stage's `execute` returned.
        log: the file with the task's error output.
    """

    task: Task
    elapsed_s: float
    error: str | None
    summary: dict[str, Any]
    log: Path


@dataclass(frozen=True)
class Skipped:
    """A task that was not started, because an earlier stage failed for its model."""

    task: Task
    reason: str


Event = StageStarted | Running | Finished | Skipped


def check_root(root: Path) -> None:
    """Check that jobs can be run from a run directory of this name.

    Raises:
        SimhpcError: they cannot.
    """
    if "%" in str(root.resolve()):
        raise SimhpcError(f"{root}: submitit reads '%' in a path as a job number; choose another --out")


def run_stages(run: Run, stages: Sequence[str], workers: int) -> Generator[Event, None, None]:
    """Run the tasks that are not done, stage by stage, `workers` at a time; a failed one stops no other.

    Args:
        stages: names from `stages.ALL_STAGES`, in that order.
        workers: tasks at once; with GPUs, each worker keeps to one.

    Yields:
        Events as they happen. Closing the iterator early cancels what runs.
    """
    failed: dict[str, str] = {}
    teachers = {student.key: student.teacher for student in run.study.students}
    for stage in stages:
        module = stage_module(stage)
        tasks = module.tasks(run)
        done = done_tasks(run, [stage])
        todo = [task for task in tasks if task not in done]
        yield StageStarted(stage, len(tasks), len(tasks) - len(todo))
        for task in list(todo):
            needed = teachers.get(task.model, task.model)
            if _needs(stage, failed.get(needed)):
                todo.remove(task)
                yield Skipped(task, f"{failed[needed]}{f' of {needed}' if needed != task.model else ''} failed")
        for event in _run_tasks(run, todo, workers):
            if isinstance(event, Finished) and event.error is not None:
                failed[event.task.model] = stage
            yield event


def _needs(stage: str, earlier: str | None) -> bool:
    """Whether a stage needs what an earlier one makes for the same model, itself or through others."""
    before = BEFORE.get(stage)
    return earlier is not None and before is not None and (before == earlier or _needs(before, earlier))


@dataclass(frozen=True)
class _Started:
    task: Task
    slot: int
    job: submitit.Job[dict[str, Any]]
    at_s: float
    before: Progress | None


def _run_tasks(run: Run, todo: Sequence[Task], workers: int) -> Iterator[Event]:
    waiting, running = list(todo), list[_Started]()
    gpus, read_s = _gpus(run), -math.inf
    try:
        while waiting or running:
            free = sorted(set(range(workers)) - {started.slot for started in running})
            while waiting and free:
                running.append(_start(run, waiting.pop(0), free.pop(0), gpus))
            time.sleep(_POLL_S)
            for started in [started for started in running if started.job.done()]:
                running.remove(started)
                yield _finished(run, started)
            if running and time.monotonic() - read_s >= _READ_S:
                read_s = time.monotonic()
                readings = {started.task: _reading(run, started) for started in running}
                yield Running(running[0].task.stage, len(waiting), readings)
    finally:
        for started in running:
            started.job.cancel()


def _start(run: Run, task: Task, slot: int, gpus: Sequence[int]) -> _Started:
    # A folder of its own: local job numbers are process numbers, and those come back.
    name = f"{task.model}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder = run.dir.submissions / "local" / task.stage / name
    executor = submitit.LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=_TIMEOUT_MIN)
    if gpus:
        executor.update_parameters(gpus_per_node=1, visible_gpus=[gpus[slot % len(gpus)]])
    before = read_progress(run.dir.progress(task.stage, task.model))
    with _stderr_to(folder / "controller.err"), _sigint_heeded():
        job = executor.submit(run_task, str(run.dir.root), task.stage, task.model)
    return _Started(task, slot, job, time.monotonic(), before)


def run_task(run_dir: str, stage: str, model: str) -> dict[str, Any]:
    """What every local job runs: `stages.task.execute_task`, which saves what it has when the job is cancelled.

    submitit cancels by SIGINT, which the task gets from a terminal's Ctrl-C too, and kills a second later what has
    not ended.
    """
    stop_at([signal.SIGINT])
    return execute_task(run_dir, stage, model)


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Give processes started here another standard error: submitit's controllers answer Ctrl-C with a traceback."""
    terminal = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextmanager
def _sigint_heeded() -> Iterator[None]:
    """Let processes started here be stopped by SIGINT, which is how submitit cancels them.

    What a shell script starts with `&` ignores SIGINT, and so would all that it starts.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _reading(run: Run, started: _Started) -> Progress | None:
    progress = read_progress(run.dir.progress(started.task.stage, started.task.model))
    # The file of an earlier attempt lies there until the new process writes its own. Clocks may be set back meanwhile.
    return None if progress == started.before else progress


def _finished(run: Run, started: _Started) -> Finished:
    elapsed_s = time.monotonic() - started.at_s
    exception = started.job.exception()
    log = Path(started.job.paths.stderr)
    if exception is not None:
        return Finished(started.task, elapsed_s, _last_line(str(exception)), {}, log)
    error = None
    if not stage_module(started.task.stage).is_done(run, started.task):
        error = "the task ended without an error, but its output is not valid"
    return Finished(started.task, elapsed_s, error, started.job.result(), log)


def _last_line(text: str) -> str:
    """The message at the end of a traceback that submitit wraps in its own."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip(" -=*")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or ["it ended without a word"])[-1].removeprefix("simhpc.errors.")


def default_workers(run: Run) -> int:
    """Tasks at once when nobody says: one per GPU, else as many as the cores allow."""
    # A batch job or taskset may own fewer cores than the machine has; not every system can tell.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return len(_gpus(run)) or max(1, cores // run.study.resources.threads_per_task)


def _gpus(run: Run) -> list[int]:
    """GPUs that tasks may use, without importing torch: the device files, or what CUDA_VISIBLE_DEVICES names."""
    if run.study.resources.device == "cpu":
        return []
    present = sorted(int(entry.name[6:]) for entry in Path("/dev").glob("nvidia[0-9]*") if entry.name[6:].isdigit())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return present
    names = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if not all(name.isdigit() for name in names):
        raise SimhpcError(f"CUDA_VISIBLE_DEVICES={visible}: submitit's local executor takes GPU numbers only")
    return [int(name) for name in names]
