"""Stopping tasks, and giving failed ones another try."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simhpc.cluster import ledger, scheduler
from simhpc.cluster.ledger import Submission
from simhpc.cluster.planning import StagePlan, plan
from simhpc.cluster.profile import Container, Profile, Retry, StageResources
from simhpc.cluster.scheduler import array_of
from simhpc.cluster.status import OUT_OF_MEMORY, RunStatus, TaskStatus
from simhpc.errors import SchedulerError, nearest
from simhpc.rundir import Run
from simhpc.stages import ALL_STAGES
from simhpc.stages.task import ALL, Task


def chosen_models(run: Run, models: Sequence[str]) -> list[str]:
    """Check that the study has these models or students; `all` is the model of the aggregation.

    Raises:
        SchedulerError: it does not have one of them.
    """
    known = [model.key for model in run.study.models] + [student.key for student in run.study.students]
    chosen = []
    for model in models:
        if model in known:
            chosen.append(model)
        elif model in ("all", ALL):
            chosen.append(ALL)
        else:
            some = f"; it has {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
            raise SchedulerError(f"study {run.study.name!r} has no model {model!r}{nearest(model, known) or some}")
    return chosen


def cancel(status: RunStatus, *, models: Sequence[str] | None, stages: Sequence[str]) -> list[TaskStatus]:
    """Take tasks out of the queue, and stop those that run.

    Args:
        status: of the run, as just asked.
        models: None for all.
        stages: of which tasks are cancelled.

    Returns:
        The tasks whose jobs were cancelled.

    Raises:
        SchedulerError: Slurm refused.
    """
    live = [
        task
        for task in status.tasks
        # A task that is just being submitted has no job number yet.
        if any(task.live_jobs) and task.stage in stages and (models is None or task.model in models)
    ]
    # The last stage first: what waits for a job must not start because that one is over.
    live.sort(key=lambda task: ALL_STAGES.index(task.stage), reverse=True)
    chosen = [job for task in live for job in task.live_jobs if job]
    if models is None:
        chosen = _whole_arrays(chosen, {job for task in status.tasks for job in task.live_jobs})
    scheduler.cancel(chosen)
    return live


def _whole_arrays(chosen: Sequence[str], live: set[str]) -> list[str]:
    """The jobs with `12` in place of all elements of array 12, where each of those that live is among them."""
    left = Counter(map(array_of, live)) - Counter(map(array_of, chosen))
    return list(dict.fromkeys(job if left[array_of(job)] else array_of(job) for job in chosen))


@dataclass(frozen=True)
class RetryPlan:
    """What a retry comes to.

    Attributes:
        tasks: that failed or were cancelled, and are given another job.
        plans: all that is submitted: those, and what has to be done again because of them.
        raised: model and stage to memory in GiB, for those that ran out of it.
    """

    tasks: tuple[TaskStatus, ...]
    plans: tuple[StagePlan, ...]
    raised: dict[tuple[str, str], float]


def plan_retry(
    run: Run,
    status: RunStatus,
    *,
    models: Sequence[str] | None,
    profile: Profile | None,
    max_array_size: int,
    is_cancelled_too: bool = False,
    is_contained: bool = True,
) -> RetryPlan:
    """Plan new jobs for tasks that failed, with the resources that their stage had, and for what depends on them.

    Args:
        models: whose failed or cancelled tasks; None for every task that failed, or was cancelled because what it
            waited for had failed.
        profile: instead of the resources and container of the last submission.
        is_contained: whether there is to be a container, if there is one to be had.
        is_cancelled_too: with `models` None, whether those are retried that were cancelled on purpose.
    """
    submissions = ledger.read(run.dir)
    submitted = {submission.stage for submission in submissions}
    retry = profile.retry if profile is not None else _last_retry(submissions)
    container = profile.container if profile is not None else _last_container(submissions)
    if not is_contained:
        container = None
    tasks = _retried(status, models, is_cancelled_too=is_cancelled_too)
    # A task gets what its own last job had: an earlier retry may have raised it.
    had = {task: _resources(entry) for entry in submissions for task in entry.tasks()}
    resources = {
        stage: profile.resources(stage) if profile is not None else _most_common(had, stage)
        for stage in ALL_STAGES
        if profile is not None or stage in submitted
    }
    special: dict[str, dict[str, StageResources]] = {stage: {} for stage in ALL_STAGES}
    if profile is None:
        for task, needs in had.items():
            if needs != resources[task.stage]:
                special[task.stage][task.model] = needs
    raised = {}
    for failed in tasks:
        usual = special[failed.stage].get(failed.model, resources[failed.stage])
        more = _raised(failed, had, usual, retry)
        if more is not None:
            special[failed.stage][failed.model] = more
            raised[failed.model, failed.stage] = more.mem_gb or 0.0
    # Everything that was ever submitted and stands behind the first failure may have to be done again.
    first = min((ALL_STAGES.index(task.stage) for task in tasks), default=len(ALL_STAGES))
    stages = [stage for stage in ALL_STAGES[first:] if stage in submitted]
    plans = plan(
        _restricted(status, tasks),
        stages,
        Profile(**resources, retry=retry, container=container),
        profile_name=submissions[-1].profile if submissions else "",
        special=special,
        max_array_size=max_array_size,
    )
    return RetryPlan(tuple(tasks), tuple(plans), raised)


def _restricted(status: RunStatus, retried: Sequence[TaskStatus]) -> RunStatus:
    """The status without the tasks that nobody asked for: those never submitted, and the other failed or cancelled."""
    asked_for = set(retried)
    tasks = [
        task
        for task in status.tasks
        if task in asked_for or task.state == "done" or task.is_live or (task.state == "todo" and task.n_jobs)
    ]
    return RunStatus(tuple(tasks), status.source, status.notes, status.asked_unix_s)


def _retried(status: RunStatus, models: Sequence[str] | None, *, is_cancelled_too: bool) -> list[TaskStatus]:
    tasks: list[TaskStatus] = []
    chosen: set[tuple[str, str]] = set()
    for task in (task for task in status.tasks if task.state in ("failed", "cancelled")):
        if models is not None:
            is_wanted = task.model in models
        elif task.cause:
            # It would fail again, unless what it needs is mended too.
            is_wanted = (task.cause, task.needed_model) in chosen
        else:
            is_wanted = task.state == "failed" or is_cancelled_too
        if is_wanted:
            tasks.append(task)
            chosen.add((task.stage, task.model))
    return tasks


def _resources(submission: Submission) -> StageResources:
    return StageResources.model_validate_json(json.dumps(submission.resources))


def _last_retry(submissions: Sequence[Submission]) -> Retry:
    return Retry.model_validate_json(json.dumps(submissions[-1].retry)) if submissions else Retry()


def _last_container(submissions: Sequence[Submission]) -> Container | None:
    held = submissions[-1].container if submissions else None
    if held is None:
        return None
    return Container.model_validate_json(json.dumps({name: held[name] for name in Container.model_fields}))


def _most_common(had: Mapping[Task, StageResources], stage: str) -> StageResources:
    """What most tasks of a stage had last."""
    texts = Counter(needs.model_dump_json() for task, needs in had.items() if task.stage == stage)
    return StageResources.model_validate_json(texts.most_common(1)[0][0])


def _raised(
    task: TaskStatus, had: Mapping[Task, StageResources], usual: StageResources, retry: Retry
) -> StageResources | None:
    """What a task gets that ran out of memory: more than its last job had. None: what it gets anyway."""
    last = had.get(Task(task.stage, task.model))
    if not task.reason.startswith(OUT_OF_MEMORY) or last is None or last.mem_gb is None:
        return None
    more_gb = retry.raised(last.mem_gb)
    return usual.model_copy(update={"mem_gb": more_gb}) if more_gb > (usual.mem_gb or 0) else None
