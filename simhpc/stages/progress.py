"""How far a running task is, in a small file that anyone may read at any time."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from simhpc.store.atomic import temporary_name

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.5, 10.0
_INTERVAL_SHARE = 0.01
"""Of the time that a task has run. A thousand tasks at once would else replace thousands of files a second."""


class Interrupted(BaseException):
    """The task was told to stop and may go on later, elsewhere; like KeyboardInterrupt, no error of its own.

    A stage that catches it saves what is whole, reports what a next attempt will find, and raises it again.
    """


@dataclass(frozen=True)
class Progress:
    """One reading.

    Attributes:
        state: `running`, `finished`, `interrupted` or `failed`.
        done, total: in `unit`s (`epoch`, `image`, ...); total 0 before the first report.
        resumed: of `done`, what earlier attempts had left behind.
        started_unix_s, updated_unix_s: seconds since 1970.
        host, pid: of the process that wrote it.
        job: the batch system's number of the job (`12_3`), empty outside one.
        error: the last line of what went wrong, empty unless failed.
    """

    state: str
    done: int
    total: int
    resumed: int
    unit: str
    started_unix_s: float
    updated_unix_s: float
    host: str
    pid: int
    job: str
    error: str

    @property
    def rate_per_s(self) -> float:
        """Units per second since this attempt started; 0 when it has done nothing yet."""
        elapsed_s = self.updated_unix_s - self.started_unix_s
        return (self.done - self.resumed) / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present rate, or None when unknown."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None


_is_interrupted = False
_is_held_back = False


def interrupt(*_: object) -> None:
    """A signal handler that stops the task. Where Python drops what is raised (in `__del__`), the next report raises.

    Raises:
        Interrupted: unless it is `held_back`.
    """
    global _is_interrupted
    _is_interrupted = True
    if not _is_held_back:
        raise Interrupted


def stop_at(signals: Iterable[signal.Signals]) -> None:
    """Let the first of these signals stop the task, and ignore all later ones: one may come while one is heeded."""
    numbers = tuple(signals)

    def stop(*_: object) -> None:
        ignore(numbers)
        interrupt()

    for number in numbers:
        signal.signal(number, stop)


def ignore(signals: Iterable[signal.Signals]) -> None:
    """Let these signals do nothing from now on."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def is_interrupted() -> bool:
    """Whether the task was told to stop."""
    return _is_interrupted


@contextmanager
def held_back() -> Iterator[None]:
    """Within it nothing is raised: the task asks `is_interrupted` where it can save all it has, and raises itself."""
    global _is_held_back
    _is_held_back = True
    try:
        yield
    finally:
        _is_held_back = False


class ProgressFile:
    """Writes `Progress` to a file while a task runs: twice a second at most, in a long task every 10 s.

    Args:
        path: None: nowhere, for the processes of a task beside the first.
    """

    def __init__(self, path: Path | None, job: str = "") -> None:
        now = time.time()
        self._path = path
        self._is_leaving = False
        self._began_s = time.monotonic()
        self._now = Progress("running", 0, 0, 0, "", now, now, socket.gethostname(), os.getpid(), job, "")
        self._temporary = None if path is None else temporary_name(path)

    def __enter__(self) -> Self:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self._now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write(self._changed(state="finished"))
        elif isinstance(error, Interrupted):
            self._write(self._changed(state="interrupted"))
        else:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._write(self._changed(state="failed", error=text.strip().splitlines()[0]))

    def report(self, done: int, total: int, unit: str) -> None:
        """Note how far the task is (a `task.Report`); the first report says what was there before."""
        is_first = self._now.total == 0
        self._now = self._changed(done=done, total=total, unit=unit, resumed=done if is_first else self._now.resumed)
        if is_first or done == total or self._is_due():
            self._write(self._now)
        if _is_interrupted and not _is_held_back and not self._is_leaving:
            self._is_leaving = True  # a stage that was interrupted reports what it has saved
            raise Interrupted

    def _is_due(self) -> bool:
        now_s = time.monotonic()
        interval_s = min(max(_MIN_INTERVAL_S, _INTERVAL_SHARE * (now_s - self._began_s)), _MAX_INTERVAL_S)
        return now_s - self._written_s >= interval_s

    def fail(self, error: str) -> None:
        """Note that the task has failed, after the context has been left."""
        self._write(self._changed(state="failed", error=error))

    @property
    def has_advanced(self) -> bool:
        """Whether this attempt has done anything that a next one will find."""
        return self._now.done > self._now.resumed

    def _changed(self, **changes: object) -> Progress:
        # Clocks are set back now and then.
        updated_unix_s = max(time.time(), self._now.updated_unix_s)
        return Progress(**{**asdict(self._now), **changes, "updated_unix_s": updated_unix_s})

    def _write(self, progress: Progress) -> None:
        self._now, self._written_s = progress, time.monotonic()
        if self._path is None or self._temporary is None:
            return
        # A full disk must not fail a task for its progress, nor hide what the task itself has to say of it.
        try:
            # As in `store.atomic`, but renamed without a flush: a crash may lose the last reading.
            self._temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
            self._temporary.replace(self._path)
        except OSError:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)


def read_progress(path: Path) -> Progress | None:
    """The last reading, or None when there is none that can be read."""
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
