"""From the tasks that are not done to Slurm arrays, through submitit."""

from __future__ import annotations

import contextlib
import getpass
import io
import itertools
import math
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm import slurm as submitit_slurm

from simhpc.cluster import ledger, scheduler
from simhpc.cluster.job import REQUEUE_LINES, run_task
from simhpc.cluster.ledger import Submission
from simhpc.cluster.profile import Profile, Retry, StageResources
from simhpc.cluster.status import Monitor, RunStatus, TaskStatus
from simhpc.errors import SchedulerError, SchedulerUnavailableError
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

    @property
    def folder(self) -> str:
        return f"{self.stage}-{self.id}"


@dataclass(frozen=True)
class StagePlan:
    """What submitting one stage comes to.

    Attributes:
        n_tasks, n_done: of the whole stage.
        queued: models whose tasks are in the queue or running already, so that they are not submitted again.
        batches: to be submitted.
    """

    stage: str
    n_tasks: int
    n_done: int
    queued: tuple[str, ...]
    batches: tuple[Batch, ...]


@dataclass
class _Planned:
    """What later stages have to know of the stages before them."""

    batches: dict[str, list[Batch]] = field(default_factory=dict)
    live_jobs: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    newest_unix_s: dict[str, float] = field(default_factory=dict)


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
    planned = _Planned()
    for stage in STAGES:
        live = [task for task in status.of_stage(stage) if task.is_live]
        planned.live_jobs[stage] = {}
        for task in live:
            planned.live_jobs[stage][task.model] = {job.partition("_")[0] for job in task.live_jobs}
            planned.newest_unix_s[stage] = max(planned.newest_unix_s.get(stage, 0), task.submitted_unix_s or 0)
    plans = []
    for stage in stages:
        stage_plan = _plan_stage(
            status,
            stage,
            profile.resources(stage),
            profile.retry,
            profile_name,
            only,
            (special or {}).get(stage, {}),
            planned,
            max_array_size,
        )
        planned.batches[stage] = list(stage_plan.batches)
        plans.append(stage_plan)
    return plans


def _plan_stage(
    status: RunStatus,
    stage: str,
    resources: StageResources,
    retry: Retry,
    profile_name: str,
    only: Sequence[str] | None,
    special: Wanted,
    planned: _Planned,
    max_array_size: int,
) -> StagePlan:
    tasks = status.of_stage(stage)
    before = {"evaluate": "attack", "aggregate": "evaluate"}.get(stage)
    # New inputs are coming: what is done, or queued since before them, will have to be done again.
    has_new_inputs = before is not None and bool(planned.batches.get(before))
    inputs_unix_s = planned.newest_unix_s.get(before, 0) if before is not None else 0
    queued, todo = [], []
    for task in tasks:
        wanted = only is None or task.model in only or task.model == ALL
        if task.is_live and not has_new_inputs and (task.submitted_unix_s or 0) >= inputs_unix_s:
            queued.append(task.model)
        elif wanted and (has_new_inputs or inputs_unix_s or task.state != "done"):
            todo.append(task)
    n_done = sum(task.state == "done" for task in tasks)

    def batch(models: Sequence[TaskStatus], needs: StageResources, **after: Any) -> Batch:
        return Batch(ledger.new_id(), stage, tuple(task.model for task in models), needs, retry, profile_name, **after)

    batches: list[Batch] = []
    usual = [task for task in todo if task.model not in special]
    if stage == "attack":
        batches += _attack_batches(usual, resources, batch, planned, max_array_size)
    else:
        after = _after_all(stage, before, todo, planned)
        batches += [batch(part, resources, **after) for part in _split(usual, max_array_size)]
    # Few and rare, so each set of resources is an array of its own.
    distinct = {special[task.model].model_dump_json(): special[task.model] for task in todo if task.model in special}
    for needs in distinct.values():
        alike = [task for task in todo if special.get(task.model) == needs]
        after = _after_all(stage, "train" if stage == "attack" else before, alike, planned)
        batches += [batch(part, needs, **after) for part in _split(alike, max_array_size)]
    return StagePlan(stage, len(tasks), n_done, tuple(queued), tuple(batches))


def _attack_batches(
    todo: Sequence[TaskStatus], resources: StageResources, batch: Any, planned: _Planned, max_array_size: int
) -> Iterator[Batch]:
    left = list(todo)
    for training in planned.batches.get("train", []):
        by_model = {task.model: task for task in left}
        same = [by_model[model] for model in training.models if model in by_model]
        if not same:
            continue
        left = [task for task in left if task not in same]
        if len(same) == len(training.models):
            yield batch(same, resources, after_same=training.id)
        else:
            yield batch(same, resources, after_batches=(training.id,))
    training_now = planned.live_jobs["train"]
    waiting = [task for task in left if task.model in training_now]
    jobs = sorted({job for task in waiting for job in training_now[task.model]})
    for part in _split(waiting, max_array_size):
        yield batch(part, resources, after_jobs=tuple(jobs))
    for part in _split([task for task in left if task.model not in training_now], max_array_size):
        yield batch(part, resources)


def _after_all(stage: str, before: str | None, todo: Sequence[TaskStatus], planned: _Planned) -> dict[str, Any]:
    """Everything of the stage before; and earlier jobs of the same tasks, which would else run beside the new ones."""
    jobs: set[str] = set()
    batches: list[str] = []
    if before is not None:
        jobs |= {job for of_model in planned.live_jobs[before].values() for job in of_model}
        batches = [batch.id for batch in planned.batches.get(before, [])]
    for task in todo:
        jobs |= planned.live_jobs[stage].get(task.model, set())
    return {"after_jobs": tuple(sorted(jobs)), "after_batches": tuple(batches)}


def _split(tasks: Sequence[TaskStatus], most: int) -> list[Sequence[TaskStatus]]:
    """Parts of nearly one size, none longer than `most`."""
    if not tasks:
        return []
    n_parts = math.ceil(len(tasks) / most)
    bounds = [len(tasks) * part // n_parts for part in range(n_parts + 1)]
    return [tasks[start:end] for start, end in itertools.pairwise(bounds)]


def submit(run: Run, plans: Sequence[StagePlan]) -> Iterator[Submission]:
    """Submit a plan, batch by batch, each noted in the ledger before and after.

    Yields:
        What was submitted, as it is. Whatever was yielded before an error stays submitted.

    Raises:
        SchedulerError: Slurm refused a batch; the message holds its words.
        SchedulerUnavailableError: there is no sbatch here.
    """
    job_of_batch: dict[str, str] = {}
    for batch in [batch for stage_plan in plans for batch in stage_plan.batches]:
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
        user=getpass.getuser(),
        host=socket.gethostname(),
        resources=batch.resources.model_dump(mode="json"),
        retry=batch.retry.model_dump(mode="json"),
        profile=batch.profile,
    )
    if not scheduler.is_there("sbatch", "srun"):
        raise SchedulerUnavailableError(
            "sbatch or srun was not found: is this a login node of the cluster, and is Slurm's bin folder in PATH? "
            "On a machine without Slurm, use `simhpc run`"
        )
    ledger.write(run.dir, submission)
    # submitit prints Slurm's refusal itself; it belongs into the error.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), scheduler.outside_any_job():
            executor = submitit.SlurmExecutor(folder=run.dir.submissions / batch.folder, python=_python())
            executor.update_parameters(**parameters)
            jobs = executor.map_array(run_task, *zip(*_arguments(run, batch), strict=True))
    except (FailedJobError, FailedSubmissionError) as error:
        words = str(error).strip() or said.getvalue().strip()
        if not _is_undone(submission, words):
            raise SchedulerError(
                f"the {batch.stage} array may or may not have been queued, as job {submission.job_name}: {words}; "
                "`simhpc status` will tell"
            ) from None
        ledger.remove(run.dir, submission)
        raise SchedulerError(f"Slurm refused the {batch.stage} array of {len(batch.models)} task(s): {words}") from None
    submission = replace(submission, job_id=str(jobs[0].job_id).partition("_")[0])
    ledger.write(run.dir, submission)
    return submission


def _is_undone(submission: Submission, words: str) -> bool:
    """After sbatch failed: whether no job came of it, or the one that did has been cancelled.

    A controller that is too busy to answer may have taken the job; its tasks' arguments were not stored.
    """
    try:
        found = scheduler.find_by_name([submission.job_name], since_unix_s=submission.submitted_unix_s)
        scheduler.cancel(list(found.values()))
    except SchedulerError:
        return "timed out" not in words.lower()
    return bool(found) or "timed out" not in words.lower()


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
    except SchedulerError as error:
        raise SchedulerUnavailableError(
            f"nothing was submitted: Slurm cannot be asked what is queued: {error}"
        ) from None
    for entry in open_entries:
        if entry.job_name in found:
            ledger.write(run.dir, replace(entry, job_id=found[entry.job_name]))
        else:
            ledger.remove(run.dir, entry)


def look_before_submitting(run: Run) -> RunStatus:
    """The run's status, with the ledger settled and locked by the caller.

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
    further: dict[str, Any] = {"requeue": True, "signal": f"USR2@{resources.delay_s}", **resources.sbatch}
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
        "array_parallelism": resources.array_parallelism,
        "dependency": ",".join(after) or None,
        # Since Slurm 22.05, srun no longer takes the number of cores from sbatch.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}"],
        "setup": list(resources.setup) or None,
        "teardown": REQUEUE_LINES,
        "additional_parameters": further,
    }
    return {name: value for name, value in parameters.items() if value is not None}
