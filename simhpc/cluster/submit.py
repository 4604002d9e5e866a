"""Handing planned arrays to Slurm, through submitit, and to the ledger."""

from __future__ import annotations

import contextlib
import io
import math
import os
import pwd
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm import slurm as submitit_slurm

from simhpc.cluster import container, ledger, local, scheduler
from simhpc.cluster.container import LAUNCHER, Launch
from simhpc.cluster.job import REQUEUE_LINES, START_LINES, run_task
from simhpc.cluster.ledger import Submission
from simhpc.cluster.planning import Batch, StagePlan
from simhpc.cluster.profile import Profile
from simhpc.cluster.status import Monitor, RunStatus
from simhpc.errors import ProfileError, SchedulerError, SchedulerUnavailableError, SimhpcError
from simhpc.rundir import Run, RunDir
from simhpc.stages import inputs
from simhpc.store import atomic


def check_root(root: Path) -> None:
    """Check that Slurm jobs can be run from a run directory of this name.

    Raises:
        SimhpcError: they cannot.
    """
    local.check_root(root)
    text = str(root.resolve())
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SimhpcError(f"{text!r}: the name is no UTF-8 text; choose another --out") from None
    if "\\" in text:
        raise SimhpcError(f"{text!r}: Slurm takes no log file with a backslash in its path; choose another --out")


def check_shares(run: Run, stages: Sequence[str], profile: Profile, profile_name: str) -> None:
    """Check that the processes of each training can share its steps evenly.

    Raises:
        ProfileError: they cannot.
    """
    trained = [(profile.train.processes, "train", model) for model in run.study.models if "train" in stages]
    if "distill" in stages:
        trained += [(profile.distill.processes, "distill", student.model) for student in run.study.students]
    for processes, stage, model in trained:
        if model.training is not None and model.training.batch_size % model.training.images_at_least(processes):
            raise ProfileError(
                f"{profile_name}: {stage}: {processes} processes (nodes x tasks_per_node) cannot share the "
                f"{model.training.batch_size} images of a step of model {model.key!r} evenly: make its "
                f"training.batch_size a multiple of {model.training.images_at_least(processes)}, or take other numbers"
            )


def look_at_containers(run: Run, plans: Sequence[StagePlan]) -> dict[str, Launch]:
    """How the plan's batches are started in their containers, after a look at the images; see `container.launches`."""
    batches = [batch for stage_plan in plans for batch in stage_plan.batches]
    known = [entry.container for entry in ledger.read(run.dir) if entry.container is not None]
    return container.launches(run, batches, known)


def downloads(run: Run, plans: Sequence[StagePlan]) -> str:
    """What tasks outside a container would have to download, in words; empty if nothing."""
    batches = [batch for stage_plan in plans for batch in stage_plan.batches if batch.container is None]
    by_key = {model.key: model for batch in batches for model in inputs.unstaged(run, batch.stage, batch.models)}
    if not by_key:
        return ""
    return (
        f"{container.unstaged_words(list(by_key.values()))}. Each task will try to download its own, which fails on "
        "nodes without network; this fetches them first: simhpc models fetch STUDY"
    )


def submit(run: Run, plans: Sequence[StagePlan], launches: Mapping[str, Launch] | None = None) -> Iterator[Submission]:
    """Submit a plan, batch by batch, each noted in the ledger before and after; to be called with the ledger locked.

    Slurm is asked of every kind of job before the first is submitted.

    Args:
        launches: what `look_at_containers` gave, if any batch runs in a container.

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
    first = ledger.next_number(run.dir)
    for number, batch in enumerate(batches, start=first):
        submission = _submit(run, batch, job_of_batch, (launches or {}).get(batch.id), number)
        assert submission.job_id is not None
        job_of_batch[batch.id] = submission.job_id
        yield submission


def _submit(run: Run, batch: Batch, job_of_batch: Mapping[str, str], launch: Launch | None, number: int) -> Submission:
    assert (launch is None) == (batch.container is None)
    parameters = _parameters(run.dir, batch, job_of_batch)
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
        container=None if launch is None else launch.checked.as_plain(),
        number=number,
    )
    ledger.write(run.dir, submission)
    # submitit prints Slurm's refusal itself; it belongs into the error.
    said = io.StringIO()
    try:
        folder = run.dir.submissions / batch.folder
        if launch is not None:
            atomic.write_text(folder / LAUNCHER, launch.script)
        with (
            contextlib.redirect_stderr(said),
            scheduler.environment(sbatch_environment(run.dir, batch)),
        ):
            executor = submitit.SlurmExecutor(folder=folder, python=_python(run.dir, batch))
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
    submission = replace(submission, job_id=scheduler.array_of(str(jobs[0].job_id)))
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
            with scheduler.environment(sbatch_environment(run_dir, batch)):
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


def sbatch_environment(run_dir: RunDir, batch: Batch) -> dict[str, str]:
    """The environment that sbatch is to read a batch script in: what the profile says is what counts."""
    resources = batch.resources
    named = {name for name in ("account", "partition", "qos") if getattr(resources, name) is not None}
    logs = {f"SBATCH_{name.upper()}": path for name, path in _logs_out_of_line(run_dir, batch).items()}
    return scheduler.environment_for_sbatch(named | resources.sbatch.keys()) | logs


def _logs_out_of_line(run_dir: RunDir, batch: Batch) -> dict[str, str]:
    """The job's two logs, if a line of a batch script cannot name them; sbatch then reads them from its environment."""
    folder = run_dir.submissions / batch.folder
    if str(folder).isprintable():
        return {}
    paths, job = JobPaths(folder), "%A_%a" if len(batch.models) > 1 else "%j"
    logs = {"output": paths.stdout, "error": paths.stderr}
    return {name: str(path).replace("%j", job).replace("%t", "0") for name, path in logs.items()}


def script(run_dir: RunDir, batch: Batch) -> str:
    """The batch script that `submit` would hand to sbatch, with `<...>` for the numbers of jobs not yet submitted."""
    placeholders = {batch_id: f"<job of {batch_id}>" for batch_id in (*batch.after_batches, batch.after_same or "")}
    folder = run_dir.submissions / batch.folder
    parameters = _parameters(run_dir, batch, placeholders)
    if len(batch.models) > 1:
        parameters["map_count"] = len(batch.models)
    command = f"{_python(run_dir, batch)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text: str = submitit_slurm._make_sbatch_string(command=command, folder=folder, **parameters)
    return text


def _arguments(run: Run, batch: Batch) -> list[tuple[str, str, str, int, int, int]]:
    root, resources = str(run.dir.root), batch.resources
    given = (resources.timeout_min, resources.delay_s, resources.processes)
    return [(root, batch.stage, model, *given) for model in batch.models]


def _python(run_dir: RunDir, batch: Batch) -> str:
    """The words of a shell that start Python on a node."""
    if batch.container is None:
        return shlex.quote(sys.executable)
    # By name, as a disk of theirs may not allow its files to be executed.
    return f"bash {shlex.quote(str(run_dir.submissions / batch.folder / LAUNCHER))}"


def _parameters(run_dir: RunDir, batch: Batch, job_of_batch: Mapping[str, str]) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told, in its own names."""
    resources = batch.resources
    jobs = [*batch.after_jobs, *(job_of_batch[other] for other in batch.after_batches)]
    after = [f"afterany:{':'.join(jobs)}"] if jobs else []
    # Requeue whatever the cluster's default: every task goes on from its files.
    # submitit would take another signal from SUBMITIT_PREEMPT_SIGNAL.
    signal = "USR2" if batch.container is None else str(container.SIGNAL.value)
    further: dict[str, Any] = {"requeue": True, "signal": f"{signal}@{resources.delay_s}"}
    further |= dict.fromkeys(_logs_out_of_line(run_dir, batch), "/dev/null")
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
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
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
