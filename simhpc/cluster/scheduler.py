"""Asking Slurm, and reading its answers. All commands of ours to it stand here, except sbatch, which submitit calls."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from simhpc.errors import SchedulerError, SchedulerUnavailableError

TIMEOUT_S = 30.0
_JOBS_PER_CALL = 500

WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
LIVE = WAITING | {
    *("RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"),
}
"""States of a job that is not over (squeue(1), JOB STATE CODES)."""
ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"),
        *("BOOT_FAIL", "DEADLINE", "REVOKED"),
    }
)
"""States of a job that is over."""
_PERHAPS_REQUEUED = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
# The accounting says so at once, and that the job waits again only when it has left its node.
_REQUEUED_WITHIN_S = 600.0


@dataclass(frozen=True)
class JobState:
    """What Slurm says of one job or array element.

    Attributes:
        job: `12_3` or `12`.
        name: of the job, as it was submitted; empty when unknown.
        state: one word of `LIVE` or `ENDED`; another word is one that we do not know, of a job that is not over.
        reason: why it waits, in Slurm's word; empty if it does not.
        node: where it runs or ran; empty before.
        exit_code: of the batch script; None while it has none.
        signal: that ended it, 0 for none.
        restarts: how many times it was requeued.
        started_unix_s, ended_unix_s: of the present or last start.
    """

    job: str
    state: str
    name: str = ""
    reason: str = ""
    node: str = ""
    exit_code: int | None = None
    signal: int = 0
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    restarts: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it is not over. Slurm has more words for waiting than its manual lists."""
        return bool(self.state) and self.state not in ENDED

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING or self.state not in LIVE | ENDED


def array_of(job: str) -> str:
    """A job's number without that of the element: `12` of `12_3` and of `12`."""
    return job.partition("_")[0]


@dataclass(frozen=True)
class Answer:
    """One round of questions.

    Attributes:
        jobs: by `12_3` or `12`. A job that Slurm knows nothing of is absent.
        source: `sacct` or `squeue`; squeue knows only what is not over, or was over minutes ago.
        notes: what did not work on the way, one line each.
        unasked: jobs that the accounting says nothing certain of, and that squeue could not be asked about.
    """

    jobs: dict[str, JobState]
    source: str
    notes: tuple[str, ...] = ()
    unasked: frozenset[str] = frozenset()


def is_there(*programs: str) -> bool:
    """Whether all of these programs are in PATH."""
    return all(shutil.which(program) is not None for program in programs)


def call(command: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> str:
    """Run one of Slurm's programs and return its output.

    Raises:
        SchedulerUnavailableError: there is no such program, or it does not answer in time.
        SchedulerError: it failed; the message is what it said.
    """
    # Seconds since 1970: no time zone and no locale to misread.
    # And whole lists of elements: sacct shortens those of a waiting array to 64 characters otherwise.
    environment = {**environment_for_slurm(), "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SchedulerUnavailableError(
            f"{command[0]} was not found: is this a machine of the cluster, and is Slurm's bin folder in PATH?"
        ) from None
    except subprocess.TimeoutExpired:
        raise SchedulerUnavailableError(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
        raise SchedulerError(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def environment_for_slurm() -> dict[str, str]:
    """This process's environment without what would change the meaning of a command.

    A command typed inside an interactive job would else hand that job's size and number on to ours; and options
    that a user has set for the commands they type (`SQUEUE_PARTITION`) would hide jobs from us.
    """
    in_job = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_") if "SLURM_JOB_ID" in os.environ else ()
    theirs = (*in_job, "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_")
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith(theirs)}


_SITE_DEFAULTS = ("account", "partition", "qos", "reservation", "wckey")


def environment_for_sbatch(options: Iterable[str]) -> dict[str, str]:
    """`environment_for_slurm` without the variables that would overrule the options of a batch script.

    To sbatch an environment variable says more than a line of the script: a forgotten `SBATCH_TIMELIMIT` would win
    over the profile, and `SBATCH_NO_REQUEUE` would keep tasks from going on. Defaults that sites let their users set,
    such as `SBATCH_ACCOUNT`, hold where the script is silent.

    Args:
        options: long names of the script's options.
    """
    defaults = {f"SBATCH_{name.upper()}" for name in set(_SITE_DEFAULTS) - set(options)}
    return {
        name: value
        for name, value in environment_for_slurm().items()
        if not name.startswith("SBATCH_") or name in defaults
    }


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """This process's own environment for a while, for programs that others start: a part of what it is."""
    before = dict(os.environ)
    for name in before.keys() - wanted.keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(before)


def ask(
    jobs: Iterable[str], *, since_unix_s: float, users: Iterable[str] = (), forgotten: Iterable[str] = ()
) -> Answer:
    """The state of these jobs: one call of sacct; squeue only where sacct cannot tell.

    Args:
        jobs: single jobs and elements of arrays, as `12` and `12_3`.
        since_unix_s: when the first of them was submitted; older jobs with the same number are others.
        users: who submitted them, for squeue.
        forgotten: those of them that neither has known for a while; squeue is not asked for their sake.

    Raises:
        SchedulerUnavailableError: neither could be asked.
    """
    wanted = set(jobs)
    if not wanted:
        return Answer({}, "sacct")
    found: dict[str, JobState] = {}
    try:
        found = read_sacct(_sacct({array_of(job) for job in wanted}, since_unix_s))
        source, notes = "sacct", []
    except SchedulerError as error:
        source, notes = "squeue", [str(error).splitlines()[0]]
    for job in wanted - found.keys():
        array = found.get(array_of(job))
        # Cancelled before the accounting knew its elements: one line without a number stands for all of them.
        if array is not None and not array.is_live:
            found[job] = replace(array, job=job)
    # The accounting learns of a job seconds after it was submitted, and of its requeueing when it has left its node.
    unknown = wanted - found.keys() if source == "squeue" else wanted - found.keys() - set(forgotten)
    doubtful = {job for job in wanted & found.keys() if _is_perhaps_requeued(found[job])}
    unasked: set[str] = set()
    if unknown or doubtful:
        try:
            queued = read_squeue(_squeue(users))
        except SchedulerError as error:
            notes.append(str(error).splitlines()[0])
            if source == "squeue":
                raise SchedulerUnavailableError("; ".join(notes)) from None
            unasked = unknown | doubtful
        else:
            found |= {job: queued[job] for job in unknown & queued.keys()}
            for job in doubtful & queued.keys():
                if queued[job].is_live:
                    restarts = max(queued[job].restarts, found[job].restarts)
                    found[job] = replace(queued[job], restarts=restarts)
    states = {job: state for job, state in found.items() if job in wanted and job not in unasked}
    return Answer(states, source, tuple(notes), frozenset(unasked))


def _is_perhaps_requeued(job: JobState) -> bool:
    is_recent = time.time() - (job.ended_unix_s or 0) < _REQUEUED_WITHIN_S
    return job.state in _PERHAPS_REQUEUED and is_recent


_SACCT_FIELDS = ("JobID", "JobName", "State", "ExitCode", "Reason", "NodeList", "Start", "End")


def _sacct(job_ids: Iterable[str], since_unix_s: float) -> str:
    numbers = ",".join(sorted(job_ids))
    # Everybody's: a run may have been submitted by several people.
    command = ["sacct", "-a", "-X", "-D", "-P", "-n", "-S", _since(since_unix_s), "-o", ",".join(_SACCT_FIELDS)]
    return call([*command, "-j", numbers])


def _since(unix_s: float) -> str:
    """A little earlier, for clocks that disagree; and than now, for one that was set back."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(min(unix_s, time.time()) - 3600))


_SQUEUE_FIELDS = (
    *("JobArrayID", "Name", "State", "Reason", "NodeList", "StartTime", "EndTime"),
    *("exit_code", "RestartCnt"),
)


def _squeue(users: Iterable[str]) -> str:
    names = ",".join(sorted(users))
    whole = ",".join(f"{field}:|" for field in _SQUEUE_FIELDS)  # without the mark, each is cut to 20 characters
    return call(["squeue", "-h", "-r", "-t", "all", *(["-u", names] if names else []), "-O", whole])


def read_sacct(text: str) -> dict[str, JobState]:
    """Parse `sacct -X -D -P -n` of `_SACCT_FIELDS`; lines that are no job are left out.

    Raises:
        SchedulerUnavailableError: there is text, but no line of it is a job.
    """
    single: dict[str, JobState] = {}
    listed: dict[str, JobState] = {}
    # For its first seconds a job is called so in the accounting, and its state is out of date.
    lines = [line for line in text.splitlines() if line.strip() and line.split("|")[1:2] != ["allocation"]]
    for line in lines:
        fields = line.split("|")
        if len(fields) != len(_SACCT_FIELDS) or not fields[2].strip():
            continue
        job, name, state, exit_code, reason, node, start, end = (field.strip() for field in fields)
        # "CANCELLED by 1000"; a "+" marks a shortened state.
        word = state.split()[0].rstrip("+")
        if not re.fullmatch("[A-Z][A-Z_]+", word):
            continue
        code, killed_by = _wait_status(exit_code)
        entry = JobState(
            job="",
            state=word,
            name=name,
            reason="" if reason == "None" else reason,
            node="" if node.startswith("None") else node,
            exit_code=code if word in ENDED else None,
            signal=killed_by,
            started_unix_s=_time(start),
            ended_unix_s=_time(end) if word in ENDED else None,
        )
        if elements(job) == [job]:
            earlier = single.get(job)
            # With -D, each start of a requeued job is a line of its own, in order.
            single[job] = replace(entry, job=job, restarts=0 if earlier is None else earlier.restarts + 1)
        else:
            listed |= {element: replace(entry, job=element) for element in elements(job)}
    # The line of an array's waiting elements (`12_[0-9]`) may go on naming those that have a line of their own.
    jobs = {**listed, **single}
    if lines and not jobs:
        raise SchedulerUnavailableError(f"sacct printed what cannot be read: {lines[0][:200]!r}")
    return jobs


def read_squeue(text: str) -> dict[str, JobState]:
    """Parse `squeue -h -r -O` of `_SQUEUE_FIELDS`, each followed by `|`; lines that are no job are left out."""
    jobs = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != len(_SQUEUE_FIELDS) + 1 or not re.fullmatch("[A-Z][A-Z_]+", fields[2]):
            continue
        job, name, state, reason, node, start, end, status, restarts, _ = fields
        code, killed_by = _wait_status(status) if state in ENDED else (None, 0)
        for element in elements(job):
            jobs[element] = JobState(
                element,
                state,
                name=name,
                reason="" if reason == "None" else reason,
                node=node,
                exit_code=code,
                signal=killed_by,
                # Of what waits or runs, squeue tells when it is expected to start or end.
                started_unix_s=_time(start) if state not in WAITING else None,
                ended_unix_s=_time(end) if state in ENDED else None,
                restarts=int(restarts) if restarts.isascii() and restarts.isdigit() else 0,
            )
    return jobs


def _wait_status(text: str) -> tuple[int | None, int]:
    """Exit code and signal from what wait(2) gives (`256` is 1, 0), as squeue prints it, or from `1:0`."""
    code, colon, killed_by = text.partition(":")
    if not code.isascii() or not code.isdigit():
        return None, 0
    if colon:
        return int(code), int(killed_by) if killed_by.isascii() and killed_by.isdigit() else 0
    return int(code) >> 8, int(code) & 0x7F


def elements(job: str) -> list[str]:
    """The elements that Slurm's name of a job stands for: `12_[0-2,5%3]` is 12_0, 12_1, 12_2 and 12_5.

    What is no job's name gives an empty list; steps (`12.batch`) do too.
    """
    if re.fullmatch(r"\d+(_\d+)?", job):
        return [job]
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(%\d+)?\]", job)
    if match is None:
        return []
    found = []
    for part in match[2].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if span is None:
            return []
        first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
        # No cluster has arrays of more than a few million; a garbled line must not fill the memory.
        if step == 0 or last - first > 10_000_000:
            return []
        found += [f"{match[1]}_{index}" for index in range(first, last + 1, step)]
    return found


def _time(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0 else None


def find_by_name(names: Iterable[str], *, since_unix_s: float) -> dict[str, str]:
    """Numbers of jobs by their unique names, for submissions whose sbatch nobody heard the answer of.

    Raises:
        SchedulerError: the queue cannot be asked, so that nothing is known of what is not found.
    """
    wanted = ",".join(sorted(names))
    found: dict[str, str] = {}
    texts = [call(["squeue", "-h", "-t", "all", "-o", "%A|%j|%F", "--name", wanted])]
    # What is over already; without accounting there is no telling.
    with suppress(SchedulerError):
        since = _since(since_unix_s)
        texts.append(call(["sacct", "-a", "-X", "-P", "-n", "-S", since, "-o", "JobID,JobName", "--name", wanted]))
    for text in texts:
        for line in text.splitlines():
            fields = line.split("|")
            if len(fields) >= 2:
                number = fields[2] if len(fields) == 3 else array_of(fields[0])
                if number.isdigit():
                    found.setdefault(fields[1], number)
    return found


def cancel(jobs: Sequence[str]) -> None:
    """scancel jobs or elements, in as few calls as the command line allows; a call that fails does not stop the others.

    Raises:
        SchedulerError: Slurm refused; the first of its refusals.
    """
    errors: list[SchedulerError] = []
    for start in range(0, len(jobs), _JOBS_PER_CALL):
        try:
            # One request to the controller for each job, and a busy one makes them wait.
            call(["scancel", *jobs[start : start + _JOBS_PER_CALL]], timeout_s=10 * TIMEOUT_S)
        except SchedulerError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def configuration() -> Mapping[str, str]:
    """`scontrol show config` as names to values.

    Raises:
        SchedulerError: it cannot be asked.
    """
    pairs = (line.partition("=") for line in call(["scontrol", "show", "config"]).splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def max_array_size() -> int:
    """The most elements that one array can have; 1001, Slurm's default, when it cannot be asked."""
    try:
        value = configuration().get("MaxArraySize", "")
    except SchedulerError:
        return 1001
    return int(value) if value.isdigit() and int(value) > 0 else 1001
