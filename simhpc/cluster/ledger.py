"""The ledger: which tasks of a run were given to which Slurm jobs. One JSON file per submission.

It lies in the run directory, so that status, logs, cancel and retry work from any login node, long after the
submitting shell is gone. An entry is written before sbatch is called and completed after it: a submitting
process that dies in between leaves an entry whose jobs can be found by their name.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simhpc.errors import BadFileError, SchedulerError
from simhpc.rundir import RunDir
from simhpc.stages.task import Task
from simhpc.store.atomic import remove_leftovers, write_text
from simhpc.store.filecache import cached_by_file

VERSION = 1


@dataclass(frozen=True)
class Submission:
    """One call of sbatch.

    Attributes:
        id: time and a random part; also the end of the job's name.
        number: which submission of the run it is, from 1 on: clocks may be set back, and hosts disagree. 0: unknown.
        stage: of all its tasks.
        models: keys of its tasks, in the order of the array.
        job_id: Slurm's number of the array (or of the single job); None until sbatch has answered.
        is_array: False for a single task, whose job has no element number.
        folder: name of submitit's folder inside `RunDir.submissions`.
        after: what it waited for when it was submitted, as sbatch's `--dependency`, else empty.
        user, host: who submitted it, and from where.
        resources: the `StageResources` that it got, as plain data.
        retry: the profile's `Retry`, as plain data.
        profile: the profile's file.
        container: the profile's container and the image's digest, see `container.Checked.as_plain`; None without one.
    """

    id: str
    stage: str
    models: tuple[str, ...]
    job_id: str | None
    is_array: bool
    folder: str
    after: str
    submitted_unix_s: float
    user: str
    host: str
    resources: dict[str, Any]
    retry: dict[str, Any]
    profile: str
    container: dict[str, Any] | None = None
    number: int = 0

    @property
    def job_name(self) -> str:
        return job_name(self.stage, self.id)

    def jobs(self) -> list[str]:
        """The jobs of its tasks, in order, as Slurm writes them: `12_3`, or `12`; empty before sbatch has answered."""
        if self.job_id is None:
            return [""] * len(self.models)
        return [f"{self.job_id}_{number}" for number in range(len(self.models))] if self.is_array else [self.job_id]

    def tasks(self) -> list[Task]:
        return [Task(self.stage, model) for model in self.models]


def job_name(stage: str, submission_id: str) -> str:
    """The name of a submission's jobs, which nothing else has."""
    return f"simhpc-{stage}-{submission_id}"


def new_id() -> str:
    """An identity for a submission that nothing else has, and that tells people when it was."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def write(run_dir: RunDir, submission: Submission) -> None:
    """Add or replace an entry, atomically."""
    text = json.dumps({"version": VERSION, **asdict(submission)}, indent=1)
    write_text(run_dir.ledger / f"{submission.id}.json", text + "\n")


def remove(run_dir: RunDir, submission: Submission) -> None:
    """Take back an entry whose sbatch was refused."""
    (run_dir.ledger / f"{submission.id}.json").unlink(missing_ok=True)


def read(run_dir: RunDir) -> list[Submission]:
    """All entries, oldest first.

    Raises:
        BadFileError: one cannot be read.
    """
    entries = [entry for path in run_dir.ledger.glob("*.json") if (entry := _read(path)) is not None]
    return sorted(entries, key=lambda entry: (entry.number, entry.submitted_unix_s, entry.id))


def next_number(run_dir: RunDir) -> int:
    """The `number` of a submission that comes now; to be called with the ledger locked.

    Raises:
        BadFileError: see `read`.
    """
    return max((entry.number for entry in read(run_dir)), default=0) + 1


@cached_by_file
def _read(path: Path) -> Submission | None:
    """An entry; None if it was taken back meanwhile."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != VERSION:
            raise BadFileError(f"{path} was written by another version of simhpc")
        return Submission(**{**data, "models": tuple(data["models"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadFileError(
            f"{path} cannot be read ({error}): it says which Slurm jobs a submission made. Move it away to go on "
            "without them"
        ) from None


@contextmanager
def locked(run_dir: RunDir) -> Iterator[None]:
    """Only one process submits to a run directory at a time, on whatever machine.

    Raises:
        SchedulerError: another one holds the lock.
    """
    path = run_dir.submissions / "submit.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = (socket.gethostname(), os.getpid())
    if not _take(path, owner):
        holder = _holder(path)
        is_stale = holder is not None and _is_gone(*holder)
        if is_stale:
            _remove_stale(path)
        if not is_stale or not _take(path, owner):
            who = "another simhpc" if holder is None or is_stale else f"process {holder[1]} on {holder[0]}"
            raise SchedulerError(f"{who} is submitting to this run now; if that is not so, delete {path} and try again")
    try:
        remove_leftovers([run_dir.ledger])
        yield
    finally:
        if _holder(path) == owner:
            path.unlink(missing_ok=True)


def _take(path: Path, owner: tuple[str, int]) -> bool:
    try:
        # Created exclusively: works on NFS too, where locks may not.
        with path.open("x", encoding="utf-8") as file:
            json.dump({"host": owner[0], "pid": owner[1]}, file)
    except FileExistsError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove a lock whose owner has died, and nobody else's."""
    # Moved first, and only then looked at: of two who found it stale, the second may have moved the first one's own.
    moved = path.with_name(f"{path.name}.stale.{secrets.token_hex(3)}")
    try:
        path.rename(moved)
    except FileNotFoundError:
        return
    holder = _holder(moved)
    if holder is None or not _is_gone(*holder):
        with suppress(FileExistsError):
            path.hardlink_to(moved)
    moved.unlink()


def _holder(path: Path) -> tuple[str, int] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return str(data["host"]), int(data["pid"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_gone(host: str, pid: int) -> bool:
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
