"""From the tasks that are not done to Slurm arrays, through submitit."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import pwd
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm import slurm as submitit_slurm

from simhpc.cluster import ledger, local, scheduler
from simhpc.cluster.job import REQUEUE_LINES, START_LINES, run_task
from simhpc.cluster.ledger import Submission
from simhpc.cluster.profile import Profile, Retry, StageResources
from simhpc.cluster.status import BEFORE, Monitor, RunStatus, TaskStatus
from simhpc.errors import SchedulerError, SchedulerUnavailableError, SimhpcError
from simhpc.rundir import Run, RunDir
from simhpc.stages import STAGES
from simhpc.stages.task import ALL


@dataclass(frozen=True)
class Batch:
    """One array to be submitted.

    Attributes:
        id: of the submission that it will be.
        models: keys of its tasks, in array order.
        after_jobs: numbers of jobs that have to be over first, however they end.
        after_batches: `id`s of batches of the same plan, likewise.
        after_same: `id` of a batch whose element of the same number has to succeed first; if it fails, Slurm
            cancels ours.
        at_once: how many of its tasks may run at once: its share of what its stage may.
    """

    id: str
    stage: str
    models: tuple[str, ...]
    resources: StageResources
    retry: Retry
    profile: str
    after_jobs: tuple[str, ...] = ()
    after_batches: tuple[str, ...] = ()
    after_same: str | None = None
    at_once: int = 1

    @property
    def folder(self) -> str:
        return f"{self.stage}-{self.id}"


@dataclass(frozen=True)
class StagePlan:
    """What submitting one stage comes to.

    Attributes:
        n_tasks, n_done: of the whole stage.
        queued: models whose tasks are in the queue or running already, so that they are not submitted again.
        again: models whose tasks are done, and are submitted because new inputs are coming.
        blocked: models whose tasks need a task of the stage before that is neither done nor queued nor planned; they
            are not submitted, as they could only fail.
        batches: to be submitted.
    """

    stage: str
    n_tasks: int
    n_done: int
    queued: tuple[str, ...]
    again: tuple[str, ...]
    blocked: tuple[str, ...]
    batches: tuple[Batch, ...]


Wanted = Mapping[str, StageResources]
"""Resources by model, for those that differ from the stage's."""


def plan(
    status: RunStatus,
    stages: Sequence[str],
    profile: Profile,
    *,
    profile_name: str,
    only: Sequence[str] | None = None,
    special: Mapping[str, Wanted] | None = None,
    max_array_size: int = 1001,
) -> list[StagePlan]:
    """Decide what to submit: the tasks that are neither done nor queued, stage by stage.

    A stage whose inputs are queued, from this plan or from before, is planned for all models concerned and waits
    for them: each attack for the training of its own model alone, every evaluation for all attacks, the
    aggregation for all evaluations. A model that fails strands no other.

    Args:
        status: of the run, as just asked.
        stages: names from `stages.STAGES`, in that order.
        only: models to submit; None for all. The aggregation concerns all in any case.
        special: by stage, resources of single models, as a retry after too little memory needs.
        max_array_size: elements that one array can have.
    """
    planner = _Planner(status, profile, profile_name, only, special or {}, max_array_size)
    return [planner.plan_stage(stage) for stage in stages]


class _Planner:
    """Plans stage after stage, and remembers what later stages have to know of the stages before them."""

    def __init__(
        self,
        status: RunStatus,
        profile: Profile,
        profile_name: str,
        only: Sequence[str] | None,
        special: Mapping[str, Wanted],
        max_array_size: int,
    ) -> None:
        self._status, self._profile, self._profile_name = status, profile, profile_name
        self._only, self._special, self._max_array_size = only, special, max_array_size
        self._batches: dict[str, list[Batch]] = {}
        self._live_jobs: dict[str, dict[str, set[str]]] = {stage: {} for stage in STAGES}
        self._newest_unix_s: dict[str, float] = {}
        self._by_task = {(task.stage, task.model): task for task in status.tasks}
        for task in status.tasks:
            if task.is_live:
                self._live_jobs[task.stage][task.model] = {job.partition("_")[0] for job in task.live_jobs}
                newest = max(self._newest_unix_s.get(task.stage, 0), task.submitted_unix_s or 0)
                self._newest_unix_s[task.stage] = newest

    def plan_stage(self, stage: str) -> StagePlan:
        tasks = self._status.of_stage(stage)
        before = {"evaluate": "attack", "aggregate": "evaluate"}.get(stage)
        # New inputs are coming: what is done, or queued since before them, will have to be done again.
        has_new_inputs = before is not None and bool(self._batches.get(before))
        inputs_unix_s = self._newest_unix_s.get(before, 0) if before is not None else 0
        queued, todo = [], []
        for task in tasks:
            wanted = self._only is None or task.model in self._only or task.model == ALL
            if task.is_live and not has_new_inputs and (task.submitted_unix_s or 0) >= inputs_unix_s:
                queued.append(task.model)
            elif wanted and (has_new_inputs or inputs_unix_s or task.state != "done"):
                todo.append(task)
        blocked = [task.model for task in todo if self._is_blocked(task)]
        todo = [task for task in todo if task.model not in set(blocked)]
        again = [task.model for task in todo if task.state == "done"]
        special = self._special.get(stage, {})
        usual = [task for task in todo if task.model not in special]
        batches = self._attacks(usual) if stage == "attack" else self._after_all(stage, before, usual)
        # Few and rare, so each set of resources is an array of its own.
        distinct = {
            special[task.model].model_dump_json(): special[task.model] for task in todo if task.model in special
        }
        for needs in distinct.values():
            alike = [task for task in todo if special.get(task.model) == needs]
            batches += self._after_all(stage, "train" if stage == "attack" else before, alike, needs)
        self._batches[stage] = _sharing(batches)
        n_done = sum(task.state == "done" for task in tasks)
        return StagePlan(
            stage, len(tasks), n_done, tuple(queued), tuple(again), tuple(blocked), tuple(self._batches[stage])
        )

    def _is_blocked(self, task: TaskStatus) -> bool:
        """Whether the model's own task of the stage before has not been done and will not be."""
        needed = self._by_task.get((BEFORE.get(task.stage, ""), task.model))
        if needed is None or needed.state == "done" or needed.is_live:
            return False
        return not any(task.model in batch.models for batch in self._batches.get(needed.stage, []))

    def _batch(
        self, stage: str, tasks: Sequence[TaskStatus], resources: StageResources | None = None, **after: Any
    ) -> Batch:
        needs = self._profile.resources(stage) if resources is None else resources
        models = tuple(task.model for task in tasks)
        return Batch(ledger.new_id(), stage, models, needs, self._profile.retry, self._profile_name, **after)

    def _attacks(self, todo: Sequence[TaskStatus]) -> list[Batch]:
        """Each after the training of its own model, if that is planned or queued."""
        batches, left = [], list(todo)
        for training in self._batches.get("train", []):
            by_model = {task.model: task for task in left}
            same = [by_model[model] for model in training.models if model in by_model]
            if not same:
                continue
            left = [task for task in left if task.model not in training.models]
            if len(same) == len(training.models):
                batches.append(self._batch("attack", same, after_same=training.id))
            else:
                batches.append(self._batch("attack", same, after_batches=(training.id,)))
        training_now = self._live_jobs["train"]
        waiting = [task for task in left if task.model in training_now]
        jobs = sorted({job for task in waiting for job in training_now[task.model]})
        batches += [self._batch("attack", part, after_jobs=tuple(jobs)) for part in self._split(waiting)]
        free = [task for task in left if task.model not in training_now]
        return [*batches, *(self._batch("attack", part) for part in self._split(free))]

    def _after_all(
        self, stage: str, before: str | None, todo: Sequence[TaskStatus], resources: StageResources | None = None
    ) -> list[Batch]:
        """After all of the stage before, and after earlier jobs of the same tasks, which would else run beside ours."""
        jobs: set[str] = set()
        batches: tuple[str, ...] = ()
        if before is not None:
            jobs |= {job for of_model in self._live_jobs[before].values() for job in of_model}
            batches = tuple(batch.id for batch in self._batches.get(before, []))
        for task in todo:
            jobs |= self._live_jobs[stage].get(task.model, set())
        after = {"after_jobs": tuple(sorted(jobs)), "after_batches": batches}
        return [self._batch(stage, part, resources, **after) for part in self._split(todo)]

    def _split(self, tasks: Sequence[TaskStatus]) -> list[Sequence[TaskStatus]]:
        """Parts of nearly one size, none longer than an array can be."""
        if not tasks:
            return []
        n_parts = math.ceil(len(tasks) / self._max_array_size)
        bounds = [len(tasks) * part // n_parts for part in range(n_parts + 1)]
        return [tasks[start:end] for start, end in itertools.pairwise(bounds)]


def _sharing(batches: Sequence[Batch]) -> list[Batch]:
    """The batches of a stage with what may run at once divided among them: Slurm's `%` is of one array."""
    n_tasks = sum(len(batch.models) for batch in batches)

    def share(batch: Batch) -> int:
        return max(1, batch.resources.array_parallelism * len(batch.models) // n_tasks)

    return [replace(batch, at_once=share(batch)) for batch in batches]


def check_root(root: Path) -> None:
    """Check that Slurm jobs can be run from a run directory of this name.

    Raises:
        SimhpcError: they cannot.
    """
    local.check_root(root)
    text = str(root.resolve())
    if "\\" in text or not text.isprintable():
        raise SimhpcError(
            f"{text!r}: a batch script cannot hold a backslash or a control character in a path; choose another --out"
        )


def submit(run: Run, plans: Sequence[StagePlan]) -> Iterator[Submission]:
    """Submit a plan, batch by batch, each noted in the ledger before and after.

    Slurm is asked of every kind of job before the first is submitted.

    Yields:
        What was submitted, as it is. Whatever was yielded before an error stays submitted.

    Raises:
        SchedulerError: Slurm refused a batch; the message holds its words.
        SchedulerUnavailableError: there is no sbatch here, or the controller does not answer.
    """
    job_of_batch: dict[str, str] = {}
    batches = [batch for stage_plan in plans for batch in stage_plan.batches]
    if batches and not scheduler.is_there("sbatch", "srun"):
        raise SchedulerUnavailableError(
            "sbatch or srun was not found: is this a login node of the cluster, and is Slurm's bin folder in PATH? "
            "On a machine without Slurm, use `simhpc run`"
        )
    for batch in {batch.resources.model_dump_json(): batch for batch in reversed(batches)}.values():
        if (words := refusal(run.dir, batch)) and _NO_SUCH_NODE_NOW not in words:
            raise _refused(batch, words, "nothing was submitted")
    for batch in batches:
        submission = _submit(run, batch, job_of_batch)
        assert submission.job_id is not None
        job_of_batch[batch.id] = submission.job_id
        yield submission


def _submit(run: Run, batch: Batch, job_of_batch: Mapping[str, str]) -> Submission:
    parameters = _parameters(batch, job_of_batch)
    submission = Submission(
        id=batch.id,
        stage=batch.stage,
        models=batch.models,
        job_id=None,
        is_array=len(batch.models) > 1,
        folder=batch.folder,
        after=parameters.get("dependency", ""),
        submitted_unix_s=time.time(),
        user=pwd.getpwuid(os.getuid()).pw_name,  # $USER may be somebody else's, after `su`
        host=socket.gethostname(),
        resources=batch.resources.model_dump(mode="json"),
        retry=batch.retry.model_dump(mode="json"),
        profile=batch.profile,
    )
    ledger.write(run.dir, submission)
    # submitit prints Slurm's refusal itself; it belongs into the error.
    said = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(said),
            scheduler.environment(sbatch_environment(batch.resources)),
        ):
            executor = submitit.SlurmExecutor(folder=run.dir.submissions / batch.folder, python=_python())
            executor.update_parameters(**parameters)
            jobs = executor.map_array(run_task, *zip(*_arguments(run, batch), strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        words = str(error).strip() or said.getvalue().strip()
        if not _take_back(run, submission, is_answer=not any(mark in words.lower() for mark in _NO_ANSWER)):
            raise SchedulerError(
                f"the {batch.stage} array may or may not have been queued, as job {submission.job_name}: {words}; "
                "`simhpc status` will tell"
            ) from None
        raise _refused(batch, words, _so_far(job_of_batch)) from None
    except BaseException:  # Ctrl-C, a full disk: what may have been queued lacks its arguments
        _take_back(run, submission, is_answer=False)
        raise
    submission = replace(submission, job_id=str(jobs[0].job_id).partition("_")[0])
    ledger.write(run.dir, submission)
    return submission


# So says --test-only where sbatch itself would let the job wait until such a node is back.
_NO_SUCH_NODE_NOW = "node configuration is not available"
_NO_CONTROLLER = "unable to contact slurm controller"


def refusal(run_dir: RunDir, batch: Batch) -> str:
    """Why sbatch would refuse such a batch, in its own words; empty if it would not."""
    # What it waits for does not exist yet.
    alone = replace(batch, after_jobs=(), after_batches=(), after_same=None)
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script(run_dir, alone))
        file.flush()
        try:
            with scheduler.environment(sbatch_environment(batch.resources)):
                # It tries for half a minute to reach a controller that is away.
                scheduler.call(["sbatch", "--test-only", file.name], timeout_s=2 * scheduler.TIMEOUT_S)
        except SchedulerUnavailableError as error:
            return f"{_NO_CONTROLLER}: {error}"
        except SchedulerError as error:
            return str(error).removeprefix("sbatch failed: ")
    return ""


def _refused(batch: Batch, words: str, so_far: str) -> SchedulerError:
    if _NO_CONTROLLER in words.lower():
        return SchedulerUnavailableError(f"Slurm's controller does not answer, {so_far}: {words}")
    return SchedulerError(
        f"Slurm refused the {batch.stage} array of {len(batch.models)} task(s), {so_far}: {words}\n"
        f"Change {batch.profile}; `simhpc doctor --profile {shlex.quote(batch.profile)}` tells more"
    )


def _so_far(job_of_batch: Mapping[str, str]) -> str:
    if not job_of_batch:
        return "nothing was submitted"
    return f"what was submitted before it stays (jobs {', '.join(job_of_batch.values())})"


# A controller that is too busy to answer may have taken the job all the same.
_NO_ANSWER = ("timed out", "zero bytes", "connection reset", "communication", "unexpected message")


def _take_back(run: Run, submission: Submission, *, is_answer: bool) -> bool:
    """After a submission failed: cancel what came of it, and forget it.

    Args:
        is_answer: whether it is certain that no job will come of it from now on.

    Returns:
        Whether it is as if it had never been; else its entry stays.
    """
    try:
        found = scheduler.find_by_name([submission.job_name], since_unix_s=submission.submitted_unix_s)
        scheduler.cancel(list(found.values()))
        is_undone = bool(found) or is_answer
    except SchedulerError:
        is_undone = is_answer
    if is_undone:
        ledger.remove(run.dir, submission)
    return is_undone


def settle(run: Run) -> None:
    """Complete or remove the entries whose submitting process died before sbatch's answer was noted.

    To be called with the ledger locked: nobody is submitting.

    Raises:
        SchedulerUnavailableError: Slurm cannot be asked; whoever submitted now might submit twice.
    """
    open_entries = [entry for entry in ledger.read(run.dir) if entry.job_id is None]
    if not open_entries:
        return
    try:
        found = scheduler.find_by_name(
            [entry.job_name for entry in open_entries],
            since_unix_s=min(entry.submitted_unix_s for entry in open_entries),
        )
        for entry in open_entries:
            job_id = found.get(entry.job_name)
            if job_id is not None and _has_arguments(run, replace(entry, job_id=job_id)):
                ledger.write(run.dir, replace(entry, job_id=job_id))
            else:
                scheduler.cancel([job_id] if job_id is not None else [])
                ledger.remove(run.dir, entry)
    except SchedulerError as error:
        raise SchedulerUnavailableError(
            f"nothing was submitted: Slurm cannot be asked what is queued: {error}"
        ) from None


def _has_arguments(run: Run, submission: Submission) -> bool:
    """Whether submitit had stored what each of its jobs is to do: that comes after sbatch."""
    folder = run.dir.submissions / submission.folder
    return all(JobPaths(folder, job_id=job).submitted_pickle.exists() for job in submission.jobs())


def look_before_submitting(run: Run) -> RunStatus:
    """Settle the ledger and ask for the run's status; to be called with the ledger locked.

    Raises:
        SchedulerUnavailableError: Slurm cannot be asked what is queued.
    """
    settle(run)
    status = Monitor(run).look()
    if status.source == "nobody":
        raise SchedulerUnavailableError(
            f"nothing was submitted: Slurm cannot be asked what is queued already: {status.notes[-1]}"
        )
    return status


def sbatch_environment(resources: StageResources) -> dict[str, str]:
    """The environment that sbatch is to read a batch script in: what the profile says is what counts."""
    named = {name for name in ("account", "partition", "qos") if getattr(resources, name) is not None}
    return scheduler.environment_for_sbatch(named | resources.sbatch.keys())


def script(run_dir: RunDir, batch: Batch) -> str:
    """The batch script that `submit` would hand to sbatch, with `<...>` for the numbers of jobs not yet submitted."""
    placeholders = {batch_id: f"<job of {batch_id}>" for batch_id in (*batch.after_batches, batch.after_same or "")}
    folder = run_dir.submissions / batch.folder
    parameters = _parameters(batch, placeholders)
    if len(batch.models) > 1:
        parameters["map_count"] = len(batch.models)
    command = f"{_python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = submitit_slurm._make_sbatch_string(command=command, folder=folder, **parameters)
    return text


def _arguments(run: Run, batch: Batch) -> list[tuple[str, str, str, int, int]]:
    root, limits = str(run.dir.root), (batch.resources.timeout_min, batch.resources.delay_s)
    return [(root, batch.stage, model, *limits) for model in batch.models]


def _python() -> str:
    return shlex.quote(sys.executable)


def _parameters(batch: Batch, job_of_batch: Mapping[str, str]) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told, in its own names."""
    resources = batch.resources
    jobs = [*batch.after_jobs, *(job_of_batch[other] for other in batch.after_batches)]
    after = [f"afterany:{':'.join(jobs)}"] if jobs else []
    # Requeue whatever the cluster's default: every task goes on from its files.
    # submitit would take another signal from SUBMITIT_PREEMPT_SIGNAL.
    further: dict[str, Any] = {"requeue": True, "signal": f"USR2@{resources.delay_s}"}
    # To submitit, what is false is a value; a stage may say it to undo a default.
    further |= {name: value for name, value in resources.sbatch.items() if value is not False}
    if batch.after_same is not None:
        after.append(f"aftercorr:{job_of_batch[batch.after_same]}")
        further["kill-on-invalid-dep"] = "yes"
    parameters = {
        "job_name": ledger.job_name(batch.stage, batch.id),
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.timeout_min,
        "signal_delay_s": resources.delay_s,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{math.ceil(resources.mem_gb * 1024)}M",
        "gpus_per_node": resources.gpus_per_node or None,
        "gres": resources.gres,
        "array_parallelism": batch.at_once,
        "dependency": ",".join(after) or None,
        # Since Slurm 22.05, srun no longer takes the number of cores from sbatch.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}"],
        # Under a `set -e` of theirs, the script would end before it can requeue the job.
        "setup": [*START_LINES, *resources.setup, "set +e"],
        "teardown": REQUEUE_LINES,
        "additional_parameters": further,
    }
    # submitit's own default for this one is a name that a site may not know.
    return {name: value for name, value in parameters.items() if value is not None} | {"wckey": None}
