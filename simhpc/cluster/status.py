"""What became of every task: its output first, then Slurm's word, then its progress file."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from simhpc.cluster import ledger, scheduler
from simhpc.cluster.ledger import Submission
from simhpc.cluster.scheduler import Answer, JobState
from simhpc.errors import SchedulerError
from simhpc.rundir import Run
from simhpc.stages import ALL_STAGES, OPTIONAL_STAGES, done_tasks, stage_module
from simhpc.stages.progress import Progress, read_progress
from simhpc.stages.task import Task

ATTEMPT_MARK = "===== simhpc: attempt "
"""Every attempt's first line in both logs; requeued attempts append to the same files."""

OUT_OF_MEMORY = "out of memory"
"""How the reason of such a task begins."""
CANCELLED = "cancelled"

STATES = ("failed", "cancelled", "unknown", "running", "queued", "todo", "done")
"""Worst first. `todo`: neither done nor in the queue; `unknown`: Slurm could not be asked."""

BEFORE = {"attack": "train", "evaluate": "attack", "distill": "train", "representations": "train"}
"""The stage whose output for the same model (for a student: for its teacher) a task needs."""

# The accounting may not know a job that was just submitted, and a shared disk may not show a file just written.
_GRACE_S = 60.0
_FINISHING_S = 60.0
_FULL_MB = 1.0


@dataclass(frozen=True)
class Attempt:
    """One job that was given a task.

    Attributes:
        submission: from the ledger.
        job: `12_3` or `12`; empty when sbatch's answer was never heard.
        slurm: what Slurm says of it; None when it says nothing.
    """

    submission: Submission
    job: str
    slurm: JobState | None

    def log(self, run: Run, kind: str) -> Path:
        """The job's log: `out` or `err`. Requeued starts append to it."""
        return run.dir.submissions / self.submission.folder / f"{self.job}_0_log.{kind}"


@dataclass(frozen=True)
class TaskStatus:
    """One task, as it is now.

    Attributes:
        state: one of `STATES`.
        slurm_state: of its last job, in Slurm's word; empty without one.
        job: its last job; empty without one.
        node: where that ran last.
        done, total, unit: how far it is, from its progress file; total 0 when unknown.
        rate_per_s: units per second; None when not running.
        eta_s: seconds left at that rate; None when unknown.
        elapsed_s: of the last start; None when it never ran.
        restarts: how often its last job was requeued.
        n_jobs: how many jobs it was given to.
        exit_code: of its last job's batch script; None while it has none.
        reason: why it failed or waits; empty otherwise.
        submitted_unix_s: when its last job was submitted.
        submission: the `Submission.number` of that; 0 without one.
        live_jobs: all of its jobs that wait or run; more than one when its inputs changed while it was queued. A job
            that Slurm could not be asked about counts.
        cause: the stage before, if it did not succeed for this model and this task failed for that; else empty.
        teacher: of a student; else empty.
    """

    stage: str
    model: str
    state: str
    slurm_state: str = ""
    job: str = ""
    node: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    rate_per_s: float | None = None
    eta_s: float | None = None
    elapsed_s: float | None = None
    restarts: int = 0
    n_jobs: int = 0
    exit_code: int | None = None
    reason: str = ""
    submitted_unix_s: float | None = None
    submission: int = 0
    live_jobs: tuple[str, ...] = ()
    cause: str = ""
    teacher: str = ""

    @property
    def needed_model(self) -> str:
        """Whose task of the stage before it needs."""
        return self.teacher or self.model

    @property
    def is_live(self) -> bool:
        """Whether a job of it waits or runs; it may be `done` for a moment before its job is over."""
        return bool(self.live_jobs)


@dataclass(frozen=True)
class StageSummary:
    """One stage, counted.

    Attributes:
        counts: tasks by state.
        eta_s: seconds until all that runs or waits is over, if it goes on like this; None when unknown.
    """

    stage: str
    n_tasks: int
    counts: dict[str, int]
    eta_s: float | None


@dataclass(frozen=True)
class RunStatus:
    """A whole run, as it is now.

    Attributes:
        source: who told of the jobs: `sacct`, `squeue`, or `nobody`.
        notes: what did not work, one line each.
        asked_unix_s: when Slurm was asked last.
    """

    tasks: tuple[TaskStatus, ...]
    source: str
    notes: tuple[str, ...]
    asked_unix_s: float

    def of_stage(self, stage: str) -> list[TaskStatus]:
        return [task for task in self.tasks if task.stage == stage]

    def task(self, stage: str, model: str) -> TaskStatus:
        return next(task for task in self.tasks if (task.stage, task.model) == (stage, model))

    def begun(self) -> list[TaskStatus]:
        """The tasks that concern anybody: without those of an optional stage that was never asked for."""
        wanted = {task.stage for task in self.tasks if task.state != "todo" or task.n_jobs}
        return [task for task in self.tasks if task.stage in wanted or task.stage not in OPTIONAL_STAGES]

    def stages(self) -> list[StageSummary]:
        by_stage: dict[str, list[TaskStatus]] = {stage: [] for stage in ALL_STAGES}
        for task in self.begun():
            by_stage[task.stage].append(task)
        return [_summary(stage, tasks) for stage, tasks in by_stage.items() if tasks]

    def as_json(self) -> dict[str, Any]:
        """Plain data for scripts; quantities carry their unit in their name."""
        return {
            "source": self.source,
            "notes": list(self.notes),
            "asked_unix_s": self.asked_unix_s,
            "stages": [asdict(summary) for summary in self.stages()],
            "tasks": [{**vars(task), "is_live": task.is_live} for task in self.begun()],
        }


class Monitor:
    """Looks at a run again and again, and asks Slurm no more often than it has to.

    Attributes:
        calls: how often Slurm was asked.
    """

    # An administrator sees every call of every user; what changes in seconds is in the progress files anyway.
    MIN_INTERVAL_S = 10.0
    MAX_INTERVAL_S = 60.0

    def __init__(self, run: Run) -> None:
        self._run = run
        self._answer: Answer | None = None
        self._settled: dict[Task, Progress] = {}
        self._found: dict[str, str] = {}
        self._searched: set[str] = set()
        self._forgotten: set[str] = set()
        self._error = ""
        self._asked_unix_s = 0.0
        self._interval_s = self.MIN_INTERVAL_S
        self.calls = 0

    def look(self) -> RunStatus:
        """The present state. Slurm is asked every 10 s, up to a minute while nothing changes or it does not answer."""
        submissions = ledger.read(self._run.dir)
        # Either way: a clock that was set back must not silence it for hours.
        if abs(time.time() - self._asked_unix_s) >= self._interval_s:
            self._ask(submissions)
        return compose(
            self._run,
            self._completed(submissions),
            self._answer,
            error=self._error,
            asked_unix_s=self._asked_unix_s,
            settled=self._settled,
        )

    def attempts(self, task: Task) -> list[Attempt]:
        """All jobs that a task was given to, oldest first, as of the last look."""
        return _attempts(self._completed(ledger.read(self._run.dir)), self._answer).get(task, [])

    def _ask(self, submissions: Sequence[Submission]) -> None:
        self._asked_unix_s = time.time()
        if not submissions:
            return
        if lost := [entry for entry in _lost(submissions) if entry.job_name not in self._searched]:
            names = {entry.job_name for entry in lost}
            with suppress(SchedulerError):
                since_unix_s = min(entry.submitted_unix_s for entry in lost)
                self._found |= scheduler.find_by_name(names, since_unix_s=since_unix_s)
                self._searched |= names
        self.calls += 1
        try:
            answer = scheduler.ask(
                {job for entry in self._completed(submissions) for job in entry.jobs() if job},
                since_unix_s=min(submission.submitted_unix_s for submission in submissions),
                users={submission.user for submission in submissions},
                forgotten=self._forgotten,
            )
        except SchedulerError as error:
            # The last answer stands; what has changed since shows in the files.
            self._error = str(error).splitlines()[0]
            self._interval_s = min(self._interval_s * 2, self.MAX_INTERVAL_S)
            return
        is_same = self._answer is not None and answer.jobs == self._answer.jobs
        self._interval_s = min(self._interval_s * 1.5, self.MAX_INTERVAL_S) if is_same else self.MIN_INTERVAL_S
        self._answer, self._error = answer, ""
        if answer.source == "sacct":
            # Both know nothing of it, and it is no longer new: an element that was cancelled before it started.
            old = [entry for entry in self._completed(submissions) if not _is_new(entry)]
            self._forgotten = {job for entry in old for job in entry.jobs()} - answer.jobs.keys() - answer.unasked

    def _completed(self, submissions: Sequence[Submission]) -> list[Submission]:
        """The entries with the numbers that were found by name; without those that Slurm never accepted."""
        lost = {entry.id for entry in _lost(submissions) if entry.job_name in self._searched}
        numbered = [
            replace(entry, job_id=self._found.get(entry.job_name)) if entry.id in lost else entry
            for entry in submissions
        ]
        return [entry for entry in numbered if entry.job_id is not None or entry.id not in lost]


def _lost(submissions: Iterable[Submission]) -> list[Submission]:
    """Entries whose sbatch nobody heard the answer of; not those that are being submitted right now."""
    return [entry for entry in submissions if entry.job_id is None and not _is_new(entry)]


def _is_new(entry: Submission) -> bool:
    """Whether it was submitted right now, so that not everybody may have heard of it yet."""
    # Either way: what was submitted before a clock was set back must not stay new for hours.
    return abs(time.time() - entry.submitted_unix_s) <= _GRACE_S


def compose(
    run: Run,
    submissions: Sequence[Submission],
    answer: Answer | None,
    *,
    error: str,
    asked_unix_s: float,
    settled: dict[Task, Progress] | None = None,
) -> RunStatus:
    """Put together what the files, Slurm and the progress files say.

    Args:
        submissions: the ledger.
        answer: Slurm's last; None if it never answered.
        error: why the last question failed; empty if it did not.
        asked_unix_s: when that question was asked.
        settled: last readings of tasks that were over at an earlier look, which are not read again; what is over now is
            added.
    """
    if settled is None:
        settled = {}
    attempts = _attempts(submissions, answer)
    all_jobs = [attempt for of_task in attempts.values() for attempt in of_task]
    arrays = frozenset(scheduler.array_of(attempt.job) for attempt in all_jobs if attempt.slurm is not None)
    unasked = frozenset(attempt.job for attempt in all_jobs) if answer is None or error else answer.unasked
    heard = _Heard(arrays, unasked)
    done = done_tasks(run, ALL_STAGES)
    tasks = [
        _status(run, task, task in done, attempts.get(task, []), heard, settled)
        for stage in ALL_STAGES
        for task in stage_module(stage).tasks(run)
    ]
    teachers = {student.key: student.teacher for student in run.study.students}
    tasks = [replace(task, teacher=teachers[task.model]) if task.stage == "distill" else task for task in tasks]
    failed = {(task.stage, task.model) for task in tasks if task.state in ("failed", "cancelled")}
    chained = {task for task, of_task in attempts.items() if "aftercorr" in of_task[-1].submission.after}
    tasks = [_with_cause(task, failed, Task(task.stage, task.model) in chained) for task in tasks]
    notes = (
        *(answer.notes if answer is not None else ()),
        *([error] if error else []),
        *_disk_notes(run),
        *_matrix_notes(tasks),
    )
    source = answer.source if answer is not None and not error else "nobody" if error else "sacct"
    return RunStatus(tuple(tasks), source, notes, asked_unix_s)


def _attempts(submissions: Iterable[Submission], answer: Answer | None) -> dict[Task, list[Attempt]]:
    jobs = {} if answer is None else answer.jobs
    attempts: dict[Task, list[Attempt]] = {}
    for submission in submissions:
        for model, job in zip(submission.models, submission.jobs(), strict=True):
            slurm = jobs.get(job)
            if slurm is not None and slurm.name not in ("", submission.job_name):
                slurm = None  # Slurm has given the number to another job since
            attempts.setdefault(Task(submission.stage, model), []).append(Attempt(submission, job, slurm))
    return attempts


@dataclass(frozen=True)
class _Heard:
    """What is known where Slurm has said nothing of a job.

    Attributes:
        arrays: numbers of ours of which it has said something.
        unasked: jobs that it could not be asked about.
    """

    arrays: frozenset[str]
    unasked: frozenset[str]


def _status(
    run: Run,
    task: Task,
    is_done: bool,
    attempts: Sequence[Attempt],
    heard: _Heard,
    settled: dict[Task, Progress],
) -> TaskStatus:
    if not attempts:
        return TaskStatus(task.stage, task.model, "done" if is_done else "todo")
    now = time.time()
    live = [attempt for attempt in attempts if attempt.slurm is not None and attempt.slurm.is_live]
    # Of several, the one that runs says most.
    running = [attempt for attempt in live if attempt.slurm is not None and not attempt.slurm.is_waiting]
    last = running[-1] if running else attempts[-1]
    slurm = last.slurm
    progress = settled.get(task)
    if progress is None or progress.job != last.job:
        progress = read_progress(run.dir.progress(task.stage, task.model))
    if progress is not None and progress.job != last.job:
        progress = None  # of an earlier job, or of a run outside Slurm
    if progress is not None and is_done and not live and progress.state == "finished":
        settled[task] = progress
    else:
        settled.pop(task, None)
    base = TaskStatus(
        task.stage,
        task.model,
        "unknown",
        slurm_state="" if slurm is None else slurm.state,
        job=last.job,
        node="" if slurm is None else slurm.node,
        restarts=0 if slurm is None else slurm.restarts,
        n_jobs=len(attempts),
        exit_code=None if slurm is None else slurm.exit_code,
        elapsed_s=_elapsed_s(slurm, now),
        submitted_unix_s=attempts[-1].submission.submitted_unix_s,
        submission=attempts[-1].submission.number,
        live_jobs=tuple(attempt.job for attempt in live),
        **_advance(progress),
    )
    if is_done and (slurm is None or not slurm.is_waiting):
        return replace(base, state="done", rate_per_s=None, eta_s=None)
    if slurm is None:
        return _unheard(base, last, progress, heard, now)
    if slurm.is_waiting:
        reason = f"requeued, {slurm.reason}".removesuffix(", ") if slurm.restarts else slurm.reason
        if "held" in reason.lower():
            reason += f" (to let it go on: scontrol release {last.job})"
        return replace(base, state="queued", reason=reason, rate_per_s=None, eta_s=None)
    if slurm.is_live:
        return replace(base, state="running")
    if slurm.state == "COMPLETED":
        if now - (slurm.ended_unix_s or now) < _FINISHING_S:
            return replace(base, state="running", reason="finishing")
        reason = "its job ended well, but its output is missing or out of date: submit the stage again"
        return replace(base, state="todo", reason=reason, rate_per_s=None, eta_s=None)
    state = "cancelled" if slurm.state == "CANCELLED" else "failed"
    reason = _reason(run, last, slurm, progress)
    return replace(base, state=state, reason=reason, rate_per_s=None, eta_s=None)


def _advance(progress: Progress | None) -> dict[str, Any]:
    if progress is None or progress.total == 0:
        return {}
    known = {"done": progress.done, "total": progress.total, "unit": progress.unit}
    if progress.state != "running":
        return known
    return {**known, "rate_per_s": progress.rate_per_s, "eta_s": progress.eta_s}


def _elapsed_s(slurm: JobState | None, now: float) -> float | None:
    if slurm is None or slurm.started_unix_s is None or slurm.is_waiting:
        return None
    return max(0.0, (slurm.ended_unix_s or now) - slurm.started_unix_s)


def _unheard(base: TaskStatus, last: Attempt, progress: Progress | None, heard: _Heard, now: float) -> TaskStatus:
    """A task that is not done, and of whose last job Slurm has said nothing."""
    is_asked = last.job not in heard.unasked
    if last.job and is_asked and scheduler.array_of(last.job) in heard.arrays:
        # Slurm keeps no record of an element that was cancelled before it started.
        return replace(base, state="cancelled", reason=CANCELLED)
    if not last.job or _is_new(last.submission):
        return replace(base, state="queued", reason="just submitted", live_jobs=(*base.live_jobs, last.job))
    if not is_asked:
        base = replace(base, live_jobs=(*base.live_jobs, last.job))
        if progress is not None and progress.state == "running" and now - progress.updated_unix_s < 2 * _GRACE_S:
            return replace(base, state="running", reason="says its progress file")
        return replace(base, reason="Slurm could not be asked")
    if progress is not None and progress.state == "failed":
        return replace(base, state="failed", reason=progress.error)
    return replace(
        base, state="failed", reason=f"Slurm no longer knows job {last.job}, and it left no result: see its logs"
    )


def _reason(run: Run, last: Attempt, slurm: JobState, progress: Progress | None) -> str:
    resources = last.submission.resources
    said = _log_end(last.log(run, "err"))
    # With some versions only the step is called OUT_OF_MEMORY, and its job FAILED.
    oom = "oom_kill" in said or "Out Of Memory" in said or "oom-kill" in said
    match "OUT_OF_MEMORY" if oom and slurm.state == "FAILED" else slurm.state:
        case "OUT_OF_MEMORY":
            limit = resources["mem_gb"]
            how_much = f"{limit:g} GiB" if limit else "the default of the partition"
            return f"{OUT_OF_MEMORY} ({how_much}): see retry --help"
        case "TIMEOUT":
            return f"ended by its time limit of {resources['timeout_min']} min before it had saved and requeued itself"
        case "NODE_FAIL" | "BOOT_FAIL":
            return f"node {slurm.node} failed, and the job was not requeued".replace("node  ", "its node ")
        case "DEADLINE":
            return "Slurm ended it at its deadline"
        case "PREEMPTED":
            return "preempted, and the job was not requeued"
        case "CANCELLED":
            return CANCELLED
    if words := _of_launcher(said):
        return words
    own = progress.error if progress is not None and progress.state == "failed" else ""
    if words := _of_another_process(last.log(run, "err")):
        return f"{own}; {words}" if own and "Exited" in words else words
    if own:
        return own
    if not last.log(run, "err").exists():
        return (
            f"it left no log: can {slurm.node or 'the node'} see {run.dir.submissions}? "
            "`simhpc doctor` looks at the shared disk"
        )
    code = slurm.exit_code or 0
    number = slurm.signal or (code - 128 if 128 < code <= 192 else 0)
    said = _last_error(said)
    how = f"killed by signal {number}" if number else f"exit code {code}"
    return f"{how}: {said}" if said else how


def _log_end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4000))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _of_launcher(text: str) -> str:
    """Why the last attempt did not get as far as Python: our launcher's words, or Apptainer's; empty if it did."""
    since = text.rpartition(ATTEMPT_MARK)
    lines = [line.strip() for line in since[2].splitlines()]
    found = [line for line in lines if line.startswith(("simhpc: on ", "FATAL:"))]
    return found[-1].removeprefix("simhpc: ") if found else ""


def _of_another_process(log: Path) -> str:
    """What srun says of processes beside the first, which where one was killed knows of a lost connection only."""
    for line in _log_end(log).rpartition(ATTEMPT_MARK)[2].splitlines():
        found = re.fullmatch(r"srun: error: (\S+): tasks? (([1-9]\d*)\S*): (.+)", line.strip())
        if found is not None:
            node, ranks, rank, how = found.groups()
            its_log = log.parent / re.sub(r"_0_log\.err$", f"_{rank}_log.err", log.name)
            return f"process {ranks} on {node}: {how}: see {its_log}"
    return ""


def _last_error(text: str) -> str:
    """The last line of a log that says something of its own."""
    ours = ("submitit ", "=====", "srun: Force Terminated")
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(ours)]
    return said[-1][:300] if said else ""


def _with_cause(task: TaskStatus, failed: set[tuple[str, str]], is_chained: bool) -> TaskStatus:
    """Name the stage before that makes a task of the same model fail, or that Slurm has cancelled it for."""
    before = BEFORE.get(task.stage)
    is_consequence = task.state == "failed" or (task.state == "cancelled" and is_chained)
    if task.reason.startswith(OUT_OF_MEMORY):
        return task  # that has to be mended in any case
    if before is not None and is_consequence and (before, task.needed_model) in failed:
        return replace(task, reason=f"{before} of {task.needed_model} did not succeed", cause=before)
    return task


def _matrix_notes(tasks: Sequence[TaskStatus]) -> list[str]:
    """The aggregation is done with what there is; whoever sees a green bar must know what there was not."""
    lacking = sum(task.stage == "evaluate" and task.state != "done" for task in tasks)
    if not lacking or not any(task.stage == "aggregate" and task.state == "done" for task in tasks):
        return []
    n_models = sum(task.stage == "evaluate" for task in tasks)
    return [f"the matrix is incomplete: of {n_models} models, {lacking} are not evaluated"]


def _disk_notes(run: Run) -> list[str]:
    """On a full disk tasks fail without a word, because their logs lie there too."""
    # A run that is only planned has no folder yet.
    folder = run.dir.root if run.dir.root.exists() else Path()
    free_mb = shutil.disk_usage(folder).free / 2**20
    return [f"the disk of {run.dir.root} is full: {free_mb:.1f} MiB are free"] if free_mb < _FULL_MB else []


def _summary(stage: str, tasks: Sequence[TaskStatus]) -> StageSummary:
    counts = {state: sum(task.state == state for task in tasks) for state in STATES}
    running = [task for task in tasks if task.state == "running"]
    took_s = [task.elapsed_s for task in tasks if task.state == "done" and task.elapsed_s is not None]
    left_s = [task.eta_s for task in running if task.eta_s is not None]
    eta_s = max(left_s) if left_s and len(left_s) == len(running) else None
    if counts["queued"]:
        if took_s and running:
            waves = -(-counts["queued"] // len(running))
            eta_s = max(left_s, default=0.0) + waves * sum(took_s) / len(took_s)
        else:
            eta_s = None
    return StageSummary(stage, len(tasks), counts, eta_s)
