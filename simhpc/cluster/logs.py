"""The logs of a task's attempts: one pair of files per job, one section per start of that job."""

from __future__ import annotations

import codecs
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from simhpc.cluster.status import ATTEMPT_MARK, Attempt
from simhpc.rundir import Run

_POLL_S = 0.5
_ASK_S = 15.0
_ANNOUNCED = "- Starting with JobEnvironment("


@dataclass(frozen=True)
class Log:
    """One start of one job.

    Attributes:
        number: of all starts of the task, from 1.
        job: that was started.
        path: its file, which may hold other starts of the same job too.
        text: its own part of the file.
    """

    number: int
    job: str
    path: Path
    text: str


def sections(run: Run, attempts: Sequence[Attempt], kind: str) -> list[Log]:
    """Every start of a task, oldest first.

    Args:
        attempts: the task's jobs, oldest first.
        kind: `out` or `err`.
    """
    found: list[Log] = []
    for attempt in attempts:
        path = attempt.log(run, kind)
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for part in split(text):
            found.append(Log(len(found) + 1, attempt.job, path, part))
    return found


def split(text: str) -> list[str]:
    """A log's starts. What a start prints before its mark (submitit, a module system) belongs to it."""
    lines = text.splitlines(keepends=True)
    marks = [number for number, line in enumerate(lines) if line.startswith(ATTEMPT_MARK)]
    if len(marks) < 2:
        return [text] if text else []
    starts = [0]
    for before, mark in itertools.pairwise(marks):
        # submitit announces itself anew in every start, before our mark.
        announced = (number for number in range(before + 1, mark) if _ANNOUNCED in lines[number])
        starts.append(next(announced, mark))
    bounds = [*starts, len(lines)]
    return ["".join(lines[a:b]) for a, b in itertools.pairwise(bounds)]


def follow(path: Path, is_over: Callable[[], bool]) -> Iterator[str]:
    """Text as it is appended to a file that need not exist yet, until `is_over` and nothing more comes.

    Args:
        is_over: asked at once, and every 15 s.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    position, asked_s, over = 0, -math.inf, False
    while True:
        text = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                text = file.read()
            position += len(text)
        if text:
            yield decoder.decode(text)
        elif over:
            return
        if time.monotonic() - asked_s >= _ASK_S:
            over, asked_s = is_over(), time.monotonic()
        time.sleep(_POLL_S)
