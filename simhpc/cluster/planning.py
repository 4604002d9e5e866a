"""What to submit: from the tasks that are not done to arrays, and what each waits for. Asks and changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simhpc.cluster import ledger
from simhpc.cluster.profile import Container, Profile, Retry, StageResources
from simhpc.cluster.scheduler import array_of
from simhpc.cluster.status import BEFORE, RunStatus, TaskStatus
from simhpc.stages import ALL_STAGES
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
        container: what its tasks run in; None: nothing.
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
    container: Container | None = None

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
        stages: names from `stages.ALL_STAGES`, in that order.
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
        self._live_jobs: dict[str, dict[str, set[str]]] = {stage: {} for stage in ALL_STAGES}
        self._newest: dict[str, int] = {}
        self._by_task = {(task.stage, task.model): task for task in status.tasks}
        for task in status.tasks:
            if task.is_live:
                self._live_jobs[task.stage][task.model] = set(map(array_of, task.live_jobs))
                self._newest[task.stage] = max(self._newest.get(task.stage, 0), task.submission)

    def plan_stage(self, stage: str) -> StagePlan:
        tasks = self._status.of_stage(stage)
        before = {"evaluate": "attack", "aggregate": "evaluate"}.get(stage)
        # New inputs are coming: what is done, or queued since before them, will have to be done again.
        has_new_inputs = before is not None and bool(self._batches.get(before))
        newest_inputs = self._newest.get(before or "")
        queued, todo = [], []
        for task in tasks:
            wanted = self._only is None or task.model in self._only or task.model == ALL
            if task.is_live and not has_new_inputs and task.submission >= (newest_inputs or 0):
                queued.append(task.model)
            elif wanted and (has_new_inputs or newest_inputs is not None or task.state != "done"):
                todo.append(task)
        blocked = [task.model for task in todo if self._is_blocked(task)]
        todo = [task for task in todo if task.model not in set(blocked)]
        again = [task.model for task in todo if task.state == "done"]
        special = self._special.get(stage, {})
        usual = [task for task in todo if task.model not in special]
        needs_own_training = BEFORE.get(stage) == "train"
        batches = self._after_own(stage, usual) if needs_own_training else self._after_all(stage, before, usual)
        # Few and rare, so each set of resources is an array of its own.
        distinct = {
            special[task.model].model_dump_json(): special[task.model] for task in todo if task.model in special
        }
        for needs in distinct.values():
            alike = [task for task in todo if special.get(task.model) == needs]
            batches += self._after_all(stage, "train" if needs_own_training else before, alike, needs)
        self._batches[stage] = _sharing(batches)
        n_done = sum(task.state == "done" for task in tasks)
        return StagePlan(
            stage, len(tasks), n_done, tuple(queued), tuple(again), tuple(blocked), tuple(self._batches[stage])
        )

    def _is_blocked(self, task: TaskStatus) -> bool:
        """Whether the task of the stage before that it needs has not been done and will not be."""
        needed = self._by_task.get((BEFORE.get(task.stage, ""), task.needed_model))
        if needed is None or needed.state == "done" or needed.is_live:
            return False
        return not any(needed.model in batch.models for batch in self._batches.get(needed.stage, []))

    def _batch(
        self, stage: str, tasks: Sequence[TaskStatus], resources: StageResources | None = None, **after: Any
    ) -> Batch:
        needs = self._profile.resources(stage) if resources is None else resources
        models = tuple(task.model for task in tasks)
        return Batch(
            ledger.new_id(),
            stage,
            models,
            needs,
            self._profile.retry,
            self._profile_name,
            container=self._profile.container,
            **after,
        )

    def _after_own(self, stage: str, todo: Sequence[TaskStatus]) -> list[Batch]:
        """Each after the training of its own model (of a student: of its teacher), if that is planned or queued."""
        batches, left = [], list(todo)
        for training in self._batches.get("train", []):
            place = {model: number for number, model in enumerate(training.models)}
            same = sorted((task for task in left if task.needed_model in place), key=lambda t: place[t.needed_model])
            if not same:
                continue
            left = [task for task in left if task.needed_model not in place]
            if [task.needed_model for task in same] == list(training.models):
                batches.append(self._batch(stage, same, after_same=training.id))
            else:
                batches.append(self._batch(stage, same, after_batches=(training.id,)))
        training_now = self._live_jobs["train"]
        waiting = [task for task in left if task.needed_model in training_now]
        jobs = sorted({job for task in waiting for job in training_now[task.needed_model]})
        batches += [self._batch(stage, part, after_jobs=tuple(jobs)) for part in self._split(waiting)]
        free = [task for task in left if task.needed_model not in training_now]
        return [*batches, *(self._batch(stage, part) for part in self._split(free))]

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
