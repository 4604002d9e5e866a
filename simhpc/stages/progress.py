"""How far a running task is, in a small file that anyone may read at any time."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_MIN_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Progress:
    """One reading.

    Attributes:
        state: `running`, `finished` or `failed`.
        done, total: in `unit`s (`epoch`, `image`, ...); total 0 before the first report.
        started_unix_s, updated_unix_s: seconds since 1970.
        host, pid: of the process that wrote it.
    """

    state: str
    done: int
    total: int
    unit: str
    started_unix_s: float
    updated_unix_s: float
    host: str
    pid: int

    @property
    def rate_per_s(self) -> float:
        """Units per second since the start; 0 when nothing is done yet."""
        elapsed_s = self.updated_unix_s - self.started_unix_s
        return self.done / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present rate, or None when unknown."""
        return (self.total - self.done) / self.rate_per_s if self.rate_per_s > 0 else None


class ProgressFile:
    """Writes `Progress` to a file while a task runs, at most twice a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._now = Progress("running", 0, 0, "", time.time(), time.time(), socket.gethostname(), os.getpid())

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self._now)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(self._changed(state="finished" if error is None else "failed"))

    def report(self, done: int, total: int, unit: str) -> None:
        """Note how far the task is (a `task.Report`)."""
        if time.time() - self._now.updated_unix_s >= _MIN_INTERVAL_S or done == total:
            self._write(self._changed(done=done, total=total, unit=unit))

    def _changed(self, **changes: object) -> Progress:
        return Progress(**{**asdict(self._now), **changes, "updated_unix_s": time.time()})

    def _write(self, progress: Progress) -> None:
        self._now = progress
        # Renamed, not flushed: a reader never sees half a file, and a crash may lose the last reading.
        temporary = self._path.with_name(f"{self._path.name}.tmp.{progress.host}.{progress.pid}")
        temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        temporary.replace(self._path)


def read_progress(path: Path) -> Progress | None:
    """The last reading, or None when there is none that can be read."""
    try:
        return Progress(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
