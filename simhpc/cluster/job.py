"""What runs inside a Slurm job: one task, which goes on from its files and hands its place back in time."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import TorchDistributedEnvironment

from simhpc import __version__
from simhpc.cluster import image
from simhpc.cluster.container import SIGNAL, SUBMITTED_WITH
from simhpc.cluster.status import ATTEMPT_MARK
from simhpc.errors import ContainerError, SimhpcError
from simhpc.rundir import RunDir, open_run
from simhpc.stages.progress import Interrupted, ProgressFile, ignore, stop_at
from simhpc.stages.task import PROCESSES, Task, execute
from simhpc.store.hdf5 import CONTAINER_DIGEST

REQUEUE_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the batch script requeues its job when the task ends with it."""

REQUEUE_LINES = [
    "code=$?",
    "restarts=${SLURM_RESTART_COUNT:-0}",
    # Ended by the signal itself, while Python was starting; not for ever, should it come too early each time.
    'if [ "$code" -eq 140 ] || [ "$code" -eq 12 ]; then [ "$restarts" -ge 3 ] || code=75; fi',
    f'if [ "$code" -eq {REQUEUE_EXIT_CODE} ]; then',
    "  # Slurm ends this script as it requeues the job.",
    '  scontrol requeue "$SLURM_JOB_ID" && sleep 120',
    "fi",
    'exit "$code"',
]
"""The end of every batch script. Requeued from here and not by the task: a container need not hold Slurm's programs."""

_STARTED = "SIMHPC_JOB_STARTED_UNIX_S"
START_LINES = [f"export {_STARTED}=$(date +%s)", f"unset {CONTAINER_DIGEST} {SUBMITTED_WITH}"]
"""The beginning of every batch script."""

_LOOPBACK = "127.0.0.1"
# Slurm may send the signal up to a minute early.
_EARLY_S = 90.0
_IN_BATCHES = ("attack", "evaluate")
_SIGNALS = (signal.SIGUSR2, SIGNAL)


class TooLittleTimeError(Exception):
    """The time limit came before the task had anything to save."""


def run_task(
    run_dir: str, stage: str, model: str, timeout_min: int, delay_s: int, processes: int = 1
) -> dict[str, Any]:
    """Do one task in a Slurm job. Takes and returns plain data only.

    SIGUSR2 (in a container `container.SIGNAL`), which Slurm sends `delay_s` before the time limit (and, where so
    configured, before preemption), stops the task wherever it is; what it has finished lies in its files. The
    process then ends with `REQUEUE_EXIT_CODE`, and the batch script requeues the job.

    Args:
        run_dir: path of the run directory.
        stage, model: the task.
        timeout_min: the job's time limit.
        delay_s: how long before it the signal comes.
        processes: that srun has started with these same arguments.

    Returns:
        The stage's summary: names to numbers or strings; empty if the task was done already, and in all processes
        but the first.

    Raises:
        TooLittleTimeError: the time limit came before the attempt had finished anything that the next would find.
        ContainerError: the image holds another simhpc than the one that submitted this.
        SimhpcError: srun has started another number of processes.
    """
    started_unix_s = _started_unix_s()
    job = _job()
    is_first = _meet(processes)
    progress = ProgressFile(RunDir(Path(run_dir)).progress(stage, model) if is_first else None, job)
    try:
        # submitit has installed a handler of its own, which pickles the task's state; our state is in the files.
        stop_at(_SIGNALS)
        _announce(Task(stage, model), job)
        _check_submitter()
        _remove_half_written_result()
        summary = execute(open_run(Path(run_dir)), Task(stage, model), progress)
        # From here on there is nothing to save.
        ignore(_SIGNALS)
    except Interrupted:
        elapsed_s = time.time() - started_unix_s
        at_limit = elapsed_s >= timeout_min * 60 - delay_s - _EARLY_S
        if at_limit and not progress.has_advanced:
            text = (
                f"{stage} {model} had finished nothing that it could save when it was told to, {elapsed_s:.0f} s after "
                f"its job had begun: raise timeout_min (now {timeout_min}) in the profile"
            )
            if stage in _IN_BATCHES:
                text += ", or lower resources.batch_size in the study"
            progress.fail(text)
            raise TooLittleTimeError(text) from None
        _say("interrupted; what is finished is saved, and the job asks to be requeued")
        sys.exit(REQUEUE_EXIT_CODE)
    if is_first:
        _say(f"done: {summary}" if summary else "done already")
    return summary


def _meet(processes: int) -> bool:
    """Tell torch, through its own variables, how the processes of this task find each other.

    Returns:
        Whether this one is the first.
    """
    os.environ[PROCESSES] = str(processes)
    if processes == 1:
        return True
    found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if found.world_size != processes:
        raise SimhpcError(
            f"the profile asks for {processes} processes (nodes x tasks_per_node), and Slurm has started "
            f"{found.world_size}: does an option in its sbatch table change their number?"
        )
    if found.local_world_size == processes:
        # Not every node knows its own name, and in an image still fewer do.
        os.environ["MASTER_ADDR"] = _LOOPBACK
        return bool(found.rank == 0)
    try:
        socket.getaddrinfo(found.master_addr, None)
    except OSError as error:
        # torch would ask for a quarter of an hour.
        raise SimhpcError(
            f"{socket.gethostname()} cannot find the node {found.master_addr}, which the processes of this training "
            f"are to meet on ({error}): take nodes = 1, or let nodes, and the image if there is one, know each "
            "other's names"
        ) from None
    return bool(found.rank == 0)


def _check_submitter() -> None:
    """For images whose labels could not be read when the task was submitted."""
    theirs = os.environ.get(SUBMITTED_WITH, "")
    ours = f"{__version__} {image.schema_sha256()}" if theirs else ""
    if theirs != ours:
        raise ContainerError(
            f"this was submitted by simhpc {theirs.split()[0]}, and the image holds simhpc {__version__}"
            f"{'' if theirs.split()[0] != __version__ else ', which reads other studies'}: build it again with "
            "containers/build.sh"
        )


def _started_unix_s() -> float:
    """When the batch script started, which may be long before this process; now, without one."""
    text = os.environ.get(_STARTED, "")
    return float(text) if text.isdigit() else time.time()


def _remove_half_written_result() -> None:
    """submitit refuses to store a result where an earlier attempt was killed while it stored its own."""
    if "SUBMITIT_FOLDER" in os.environ:
        result = submitit.JobEnvironment().paths.result_pickle
        result.with_suffix(f"{result.suffix}.save_tmp").unlink(missing_ok=True)


def _job() -> str:
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")


def _announce(task: Task, job: str) -> None:
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    line = f"{ATTEMPT_MARK}{int(restarts) + 1} of job {job}, {task} on {socket.gethostname()}, {now}"
    for stream in (sys.stdout, sys.stderr):
        print(line, file=stream, flush=True)


def _say(text: str) -> None:
    print(f"simhpc: {text}", flush=True)
