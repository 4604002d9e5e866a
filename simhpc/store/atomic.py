"""A file under its final name is complete: written beside it, flushed to disk, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from simhpc.errors import NoSpaceError

_MARK = ".tmp."
_OLD_S = 24 * 3600.0


@contextlib.contextmanager
def replacing(path: Path, *, verify: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it becomes `path`, on failure it is removed.

    Args:
        path: the final name; its folder is made if needed.
        verify: called with the flushed temporary file before the rename; whatever it raises stops the rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        if verify is not None:
            verify(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except Exception as error:
        if (reason := _no_space(error)) is None:
            raise
        raise _no_room(path, reason) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_room(path: Path, size_bytes: int) -> None:
    """Refuse to begin a file that cannot be ended, for libraries that do not survive a full disk.

    Args:
        size_bytes: at least what it will take up.

    Raises:
        NoSpaceError: less is free, or files may not become as large.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size_bytes:
        raise _no_room(path, os.strerror(errno.ENOSPC))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < size_bytes:
        raise _no_room(path, os.strerror(errno.EFBIG))


def _no_room(path: Path, reason: str) -> NoSpaceError:
    free_mb = shutil.disk_usage(path.parent).free / 2**20
    return NoSpaceError(
        f"{path} could not be written: {reason} ({free_mb:.1f} MiB are free there). Nothing of it was kept; make room "
        "and give the same command again"
    )


def never_writable_for_all() -> None:
    """From now on this process, and those that it starts, make no file that everybody may write, whatever the umask."""
    os.umask(os.umask(0o077) | 0o002)


def temporary_name(path: Path) -> Path:
    """A name beside `path` for what is to be renamed to it, which nobody else has; it says whose it is.

    Two copies of one task may run at once, on two nodes or on one: neither may touch the other's file.
    """
    # In containers two may have the same process number, on one host too.
    return path.with_name(
        f"{path.name}{_MARK}{socket.gethostname()}.{_namespace()}.{os.getpid()}.{secrets.token_hex(3)}"
    )


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove what killed writers have left in these folders: of this host, or a day old.

    A writer of another host cannot be asked whether it lives. One that has not written for a day is taken for dead; if
    it was only suspended, its rename fails, and it has to be run again.
    """
    for folder in folders:
        # Not there yet, or not ours to clean.
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if is_temporary(entry.name) and is_left_over(Path(entry.path)):
                    Path(entry.path).unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file of this name is, or was, to be renamed to another."""
    return _MARK in name


def is_left_over(temporary: Path) -> bool:
    """Whether nobody will rename it any more, as far as can be told from here: see `remove_leftovers`."""
    owner = temporary.name.rpartition(_MARK)[2]
    host, *numbers = owner.rsplit(".", 3)
    if host == socket.gethostname() and len(numbers) == 3 and numbers[0] == _namespace() and numbers[1].isdigit():
        try:
            os.kill(int(numbers[1]), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass  # somebody else's process, or no number of one
        else:
            return False
    try:
        return time.time() - temporary.lstat().st_mtime > _OLD_S
    except FileNotFoundError:
        return False


def _namespace() -> str:
    """Which processes the numbers of this one are comparable with: all of this host, or of its container."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - pathlib would cost as much as all else
    except OSError:  # not Linux
        return "0"


def _no_space(error: BaseException) -> str | None:
    """The system's words if it was for lack of space that a file could not be written; else None."""
    # HDF5 and torch say the number in words.
    said = f"{getattr(error, 'errno', None)} {error}"
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        words = os.strerror(number)
        if said.startswith(f"{number} ") or words in said or f"errno = {number}," in said:
            return words
    # torch says no more than where it failed.
    return "torch could not write all of it" if "inline_container" in said else None


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
