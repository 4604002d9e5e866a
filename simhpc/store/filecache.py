"""Headers read once per file: asking of 1,000 models whether each has seen all others must not open 1,000,000 files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")


def cached_by_file(read: Callable[[Path], Value]) -> Callable[[Path], Value]:
    """Remember what `read(path)` returned for as long as the file is the same one.

    Files of a run are replaced whole and never changed in place, so inode, size and time tell. Failures are
    not remembered. The values are shared: they must not be changed.
    """
    known: dict[Path, tuple[tuple[int, int, int], Value]] = {}

    @functools.wraps(read)
    def reader(path: Path) -> Value:
        try:
            stat = path.stat()
        except OSError:
            return read(path)
        identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if path not in known or known[path][0] != identity:
            known[path] = (identity, read(path))
        return known[path][1]

    return reader
