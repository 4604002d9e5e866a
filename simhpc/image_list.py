"""Lists of images: the text file that `images.list` names, and that every run writes as `images.txt`.

One name per line; empty lines and lines that begin with `#` do not count. A name that begins with `#` or with a
backslash has a backslash before it. The order means nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from simhpc.errors import ImageSourceError

_HEADER = "# The images of this run; another study takes them by images.list"
# Whatever ends a line in Python's eyes is among these; surrogates stand for bytes that are no UTF-8.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_listable(name: str) -> bool:
    """Whether a line of a list can hold this name: no control characters, no space around it."""
    return bool(name) and name == name.strip() and not _UNFIT.search(name)


def read(path: Path) -> list[str]:
    """The names in a list, in the order in which they stand there.

    Raises:
        ImageSourceError: unreadable, without any name, or with one of them twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageSourceError(f"images.list: cannot read {path}: {error}") from None
    names = [line.removeprefix("\\") for line in lines if line and not line.startswith("#")]
    if not names:
        raise ImageSourceError(f"images.list: {path} names no image")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ImageSourceError(f"images.list: {path} names {name!r} twice")
        seen.add(name)
    return names


def text(names: Iterable[str]) -> str:
    """The content of a list that `read` gives back; every name is one that `is_listable`."""
    lines = [f"\\{name}" if name.startswith(("#", "\\")) else name for name in names]
    return "".join(f"{line}\n" for line in (_HEADER, *lines))


def sha256(names: Iterable[str]) -> str:
    """Identity of a list, whatever its order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
