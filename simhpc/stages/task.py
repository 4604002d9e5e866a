"""A task: plain data that says what to do, and the one function that does it in a job."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simhpc.rundir import Run, open_run
from simhpc.stages.progress import ProgressFile
from simhpc.store.atomic import never_writable_for_all, remove_leftovers

Report = Callable[[int, int, str], None]
"""Called with (done, total, unit) as a task advances; first with what earlier attempts have left."""

ALL = "_all"
"""The model of a task that concerns every model at once; no model key starts with an underscore."""


PROCESSES = "SIMHPC_PROCESSES"
"""The variable that says how many processes do this task together; torch's own (RANK, MASTER_ADDR) say the rest."""


@dataclass(frozen=True)
class Task:
    """One stage for one model (or `ALL`)."""

    stage: str
    model: str

    def __str__(self) -> str:
        return f"{self.stage} {self.model}"


def execute_task(run_dir: str, stage: str, model: str) -> dict[str, Any]:
    """Do one task in this process: what every local job runs.

    Takes and returns plain data only, so that nothing of ours is pickled across versions or machines.

    Args:
        run_dir: path of the run directory.
        stage: one of `stages.ALL_STAGES`.
        model: key in the study, or `ALL`.

    Returns:
        The stage's summary: names to numbers or strings; empty if the task was done already.
    """
    os.environ.pop(PROCESSES, None)
    run = open_run(Path(run_dir))
    return execute(run, Task(stage, model), ProgressFile(run.dir.progress(stage, model)))


def execute(run: Run, task: Task, progress: ProgressFile) -> dict[str, Any]:
    """Do one task in this process, unless it is done, and keep its progress file."""
    from simhpc.stages import stage_module

    never_writable_for_all()
    # Before torch is imported: its thread pools are sized once.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(run.study.resources.threads_per_task)
    module = stage_module(task.stage)
    remove_leftovers(run.dir.folders())
    with progress:
        # Another copy may have finished it: of a job that was requeued after its node was lost, a second submission.
        if not module.is_done(run, task):
            try:
                return module.execute(run, task, progress.report)
            except Exception:
                # It may also have done so just now, and have removed the parts that this one was working with.
                if not module.is_done(run, task):
                    raise
        module.discard_partial(run, task)
        return {}
