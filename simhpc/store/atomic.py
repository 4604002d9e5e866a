"""A file under its final name is complete: written beside it, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, verify: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on failure it is removed.

    Args:
        path: the final name; its folder is made if needed.
        verify: called with the flushed temporary file before the rename; whatever it raises stops the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two copies of one task may run at once, on two nodes or on one: neither may touch the other's file. In
    # containers both may have the same process number.
    owner = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(3)}"
    temporary = path.with_name(f"{path.name}.tmp.{owner}")
    try:
        yield temporary
        _sync(temporary)
        if verify is not None:
            verify(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def never_writable_for_all() -> None:
    """From now on this process, and those that it starts, make no file that everybody may write, whatever the umask."""
    os.umask(os.umask(0o077) | 0o002)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
