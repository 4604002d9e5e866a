"""Headers read once per file: asking of 1,000 models whether each has seen all others must not open 1,000,000 files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")
_Identity = tuple[int, int, int]

_looked_at: ContextVar[dict[Path, _Identity | None] | None] = ContextVar("_looked_at", default=None)


@contextmanager
def each_file_once() -> Iterator[None]:
    """Inside it the disk is asked about each file once: what is said of a thousand models is of one moment.

    On a shared disk such questions are what costs.
    """
    if _looked_at.get() is not None:
        yield
        return
    token = _looked_at.set({})
    try:
        yield
    finally:
        _looked_at.reset(token)


def exists(path: Path) -> bool:
    """Whether there is anything at `path`."""
    return identity(path) is not None


def cached_by_file(read: Callable[[Path], Value]) -> Callable[[Path], Value]:
    """Remember what `read(path)` returned for as long as the file is the same one.

    Files of a run are replaced whole and never changed in place, so inode, size and time tell. Failures are
    not remembered. The values are shared: they must not be changed.
    """
    known: dict[Path, tuple[_Identity, Value]] = {}

    @functools.wraps(read)
    def reader(path: Path) -> Value:
        found = identity(path)
        if found is None:
            return read(path)
        if path not in known or known[path][0] != found:
            known[path] = (found, read(path))
        return known[path][1]

    return reader


def identity(path: Path) -> _Identity | None:
    """What tells a file from another in its place; None if there is none."""
    seen = _looked_at.get()
    if seen is not None and path in seen:
        return seen[path]
    try:
        stat = path.stat()
    except OSError:
        found = None
    else:
        found = stat.st_ino, stat.st_size, stat.st_mtime_ns
    if seen is not None:
        seen[path] = found
    return found
