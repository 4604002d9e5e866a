"""One module per stage, each with four functions and nothing clever:

- `tasks(run)` lists the stage's tasks, one per model;
- `is_done(run, task)` opens and validates that task's output, without torch;
- `execute(run, task, report)` makes it and returns plain data for the log line;
- `discard_partial(run, task)` deletes what unfinished attempts have left of it.

Running the same stage again is how one resumes: only tasks that are not done are executed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from simhpc.rundir import Run
from simhpc.stages import validity
from simhpc.stages.task import Report, Task
from simhpc.store.filecache import each_file_once
from simhpc.study import Study

STAGES = ("train", "attack", "evaluate", "aggregate")
"""Of every study, in the order in which each needs the ones before it."""

STUDENT_STAGES = ("distill",)
"""Of a study that has distillations, besides: their tasks are those of students, which no other stage needs."""

OPTIONAL_STAGES = ("representations",)
"""Done only where they are asked for by name; no other stage needs them."""

ALL_STAGES = (*STAGES, *STUDENT_STAGES, *OPTIONAL_STAGES)


class Stage(Protocol):
    """What a stage module offers."""

    def tasks(self, run: Run) -> Sequence[Task]: ...

    def is_done(self, run: Run, task: Task) -> bool: ...

    def execute(self, run: Run, task: Task, report: Report) -> dict[str, Any]: ...

    def discard_partial(self, run: Run, task: Task) -> None: ...


def stages_of(study: Study) -> tuple[str, ...]:
    """What a study asks for: all but the optional ones."""
    return (*STAGES, *(STUDENT_STAGES if study.distillations else ()))


def done_tasks(run: Run, stages: Sequence[str]) -> set[Task]:
    """The tasks of these stages that `is_done` holds for; fast for a thousand models."""
    with each_file_once(), validity.shared_sources(run):
        modules = [stage_module(stage) for stage in stages]
        return {task for module in modules for task in module.tasks(run) if module.is_done(run, task)}


def stage_module(name: str) -> Stage:
    """The module of one of `ALL_STAGES`; imported on use, because most need torch and aggregation must not."""
    assert name in ALL_STAGES, name
    module: Any = import_module(f"simhpc.stages.{name}")
    return module  # type: ignore[no-any-return]
