"""How long a study takes with so many tasks at once, and what of it a profile's limits do not allow."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simhpc.cluster.profile import Profile
from simhpc.stages import ALL_STAGES
from simhpc.stages.estimate import Estimate, TaskEstimate
from simhpc.study import Resources

_GIB = 1 << 30
_NAMED = 5


@dataclass(frozen=True)
class StageForecast:
    """One stage.

    Attributes:
        n_tasks, n_done: of the stage.
        at_once: tasks that run side by side.
        flops, todo_flops: of all its tasks, and of what is left to do.
        device_s: seconds that the processes of its tasks take in all, one device each; None when unknown.
        longest_s: of its longest task.
        wall_s: from its start to its end.
        memory_bytes, device_bytes: peak of a process of its largest task, on the host and on the GPU.
        temporary_bytes: unfinished batches on the disk at most, gone when the stage is over.
    """

    stage: str
    n_tasks: int
    n_done: int
    at_once: int
    flops: int
    todo_flops: int
    device_s: float | None
    longest_s: float | None
    wall_s: float | None
    memory_bytes: int
    device_bytes: int
    temporary_bytes: int


def forecast(estimate: Estimate, at_once: dict[str, int]) -> list[StageForecast]:
    """Every stage that has tasks, one after the other.

    Args:
        at_once: tasks of each stage that run side by side.
    """
    return [_stage(stage, tasks, at_once[stage]) for stage in ALL_STAGES if (tasks := estimate.of_stage(stage))]


def _stage(stage: str, tasks: Sequence[TaskEstimate], at_once: int) -> StageForecast:
    todo = [task for task in tasks if not task.is_done and task.todo_s is not None]
    seconds = [task.todo_s or 0.0 for task in todo]
    is_known = all(task.todo_s is not None for task in tasks)
    written = sorted((task.written_most_bytes for task in tasks if not task.is_done), reverse=True)
    return StageForecast(
        stage=stage,
        n_tasks=len(tasks),
        n_done=sum(task.is_done for task in tasks),
        at_once=at_once,
        flops=sum(task.flops for task in tasks),
        todo_flops=sum(task.todo_flops for task in tasks),
        device_s=sum(task.processes * (task.todo_s or 0.0) for task in todo) if is_known else None,
        longest_s=max(seconds, default=0.0) if is_known else None,
        wall_s=makespan_s(seconds, at_once) if is_known else None,
        memory_bytes=max(task.memory_bytes for task in tasks),
        device_bytes=max(task.device_bytes for task in tasks),
        temporary_bytes=sum(written[:at_once]) if stage in ("attack", "evaluate") else 0,
    )


def makespan_s(seconds: Iterable[float], at_once: int) -> float:
    """When the last task ends if the longest waiting one starts whenever a place is free, all starting at 0.

    At most a third longer than the best order (Graham, "Bounds on Multiprocessing Timing Anomalies", 1969).
    """
    ends = [0.0] * max(1, at_once)
    for task_s in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + task_s)
    return max(ends)


def uses_gpu(profile: Profile, resources: Resources, stage: str) -> bool:
    """Whether tasks of a stage compute on a GPU."""
    return resources.device != "cpu" and profile.resources(stage).asks_for_gpu


def warnings(estimate: Estimate, profile: Profile, profile_name: str) -> list[str]:
    """What the profile's limits do not allow, one line for each limit."""
    found = []
    for stage in ALL_STAGES:
        limits = profile.resources(stage)
        todo = [task for task in estimate.of_stage(stage) if not task.is_done]
        usable_s = 60 * limits.timeout_min - limits.delay_s
        where = f"{profile_name}: {stage}.timeout_min = {limits.timeout_min}"
        long = [task for task in todo if task.todo_s is not None and task.todo_s > usable_s]
        stuck = [task for task in long if task.step_s is not None and task.step_s > usable_s]
        if stuck:
            what = {
                "train": "a single step takes longer, and nothing less is kept",
                "attack": "a single batch takes longer, and nothing less is kept",
                "evaluate": "a single source takes longer, and nothing less is kept",
                "distill": "a single step takes longer, and nothing less is kept",
                "representations": "it begins again after a time limit and would never end",
            }[stage]
            found.append(f"{where} is too short for {_names(stuck)}: {what}")
        elif long:
            found.append(
                f"{where} is less than {_names(long)} take(s): requeued until done, with what was finished kept"
            )
        if limits.mem_gb is None:
            continue
        # What a CUDA build of torch takes on the host depends on the driver.
        on_node = limits.tasks_per_node
        large = [task for task in todo if not task.device_bytes and on_node * task.memory_bytes > limits.mem_gb * _GIB]
        if large:
            needed = on_node * max(task.memory_bytes for task in large) / _GIB
            found.append(
                f"{profile_name}: {stage}.mem_gb = {limits.mem_gb:g} is less than {_names(large)} need(s), "
                f"up to {needed:.1f} GiB"
            )
    return found


def _names(tasks: Sequence[TaskEstimate]) -> str:
    shown = ", ".join(task.task.model for task in tasks[:_NAMED])
    return shown + (f" and {len(tasks) - _NAMED} more" if len(tasks) > _NAMED else "")
