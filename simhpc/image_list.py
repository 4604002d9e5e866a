"""Lists of images: the text file that `images.list` names, and that every run writes as `images.txt`.

One name per line; empty lines and lines that begin with `#` do not count. The order means nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from simhpc.errors import ImageSourceError


def read(path: Path) -> list[str]:
    """The names in a list, in the order in which they stand there.

    Raises:
        ImageSourceError: unreadable, without any name, or with one of them twice.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageSourceError(f"images.list: cannot read {path}: {error}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise ImageSourceError(f"images.list: {path} names no image")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ImageSourceError(f"images.list: {path} names {name!r} twice")
        seen.add(name)
    return names


def text(names: Iterable[str]) -> str:
    """The content of a list that `read` gives back."""
    return "".join(
        f"{line}\n" for line in ("# The images of this run; another study takes them by images.list", *names)
    )


def sha256(names: Iterable[str]) -> str:
    """Identity of a list, whatever its order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
