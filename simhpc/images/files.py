"""Files of a layout: what counts as an image, and which shards belong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from simhpc.errors import ImageSourceError

# Files that operating systems leave in folders, and that nobody meant as images.
_IGNORED_FILES = {"Thumbs.db", "desktop.ini"}
_NUMBERED = re.compile(r"(?P<split>.*?)-?\d+(-of-(?P<count>\d+))?$")


def is_ignored(name: str) -> bool:
    """Whether a file of this name is none that anybody meant: hidden, or left by an operating system."""
    return name.startswith(".") or name in _IGNORED_FILES


def check_is_image(path: str) -> None:
    """Check a file by its ending.

    Raises:
        ImageSourceError: timm reads no such file.
    """
    from simhpc.zoo.timm_import import timm

    endings = timm.data.get_img_extensions(as_set=True)
    if PurePosixPath(path).suffix.lower() not in endings:
        raise ImageSourceError(f"{path} is not an image: the endings {', '.join(sorted(endings))} are read")


def matching(path: Path, endings: Sequence[str]) -> list[Path]:
    """The files that make up a data set: one file, those of a folder, or those that a pattern fits; sorted.

    Args:
        path: a file, a folder, or a pattern such as `data/validation-*.parquet`.
        endings: of the files in a folder, such as `.tar`.

    Raises:
        ImageSourceError: there is none; a folder holds several splits; or some of `-00000-of-00014` are absent.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [entry for entry in path.iterdir() if entry.suffix in endings and not is_ignored(entry.name)]
    else:
        found = list(path.parent.glob(path.name)) if "*" in path.name else []
    if not found:
        raise ImageSourceError(f"images.source: no {' or '.join(endings)} files: {path}")
    _check_numbers(found, path)
    return sorted(found)


def _check_numbers(found: Sequence[Path], path: Path) -> None:
    numbered = [match for entry in found if (match := _NUMBERED.match(entry.stem))]
    splits = sorted({match["split"] for match in numbered if "-" in match[0]})
    if len(splits) > 1 and path.is_dir():
        raise ImageSourceError(
            f"{path} holds the files of {', '.join(splits[:3])}: name those that you mean by a pattern, such as "
            f"{path / splits[-1]}-*"
        )
    for count in {int(match["count"]) for match in numbered if match["count"]}:
        if len(numbered) != count:
            raise ImageSourceError(f"{path}: there are {len(numbered)} files numbered 'of {count}': some are missing")
