"""`metrics/<model>.jsonl`: one JSON object per step of a training, readable while it grows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from simhpc.store.atomic import write_text

_FLUSH_EVERY_S = 1.0


class StepLog:
    """Appends rows; each has a `step`, which increases."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Go on with a log after a step: what an earlier attempt wrote of later ones is dropped."""
        write_text(path, "".join(f"{json.dumps(row)}\n" for row in read(path) if row["step"] <= after_step))
        self._file = path.open("a", encoding="utf-8")
        self._flushed_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.sync()
        self._file.close()

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._file.writelines(f"{json.dumps(row)}\n" for row in rows)
        if time.monotonic() - self._flushed_s > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._flushed_s = time.monotonic()

    def sync(self) -> None:
        """Put all rows on the disk; before a state is saved, or an attempt that goes on from it would leave a gap."""
        self.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log up to the first that is not whole; none if there is no file."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append({**json.loads(line)})
            except (ValueError, TypeError):
                break
            if "step" not in rows[-1]:
                return rows[:-1]
    return rows
