"""Files of a layout: what counts as an image, and which shards belong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from simhpc.errors import ImageSourceError

IMAGE_ENDINGS = (".jpeg", ".jpg", ".png")
"""Of the files that are read as images, in lower case: timm's own, by which its reader of folders finds them."""

# Files that operating systems leave in folders, and that nobody meant as images.
_IGNORED_FILES = {"Thumbs.db", "desktop.ini"}
# `train-00003-of-00014`, behind which the hub may write a hash.
_SHARD = re.compile(r"(?P<split>.*?)[-_.]?(?P<number>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?")
# Webdataset's shards do not tell how many they are; a class `husky-2` is not to be taken for one.
_UNCOUNTED_SHARD = re.compile(r"(?P<split>(.*[-_.])?(train|val|validation|test))-\d+")


def is_ignored(name: str) -> bool:
    """Whether a file of this name is none that anybody meant: hidden, or left by an operating system."""
    return name.startswith(".") or name in _IGNORED_FILES


def is_image(path: str) -> bool:
    """Whether a file is an image, by its ending."""
    return PurePosixPath(path).suffix.lower() in IMAGE_ENDINGS


def check_is_image(path: str) -> None:
    """Check a file by its ending.

    Raises:
        ImageSourceError: it is no image.
    """
    if not is_image(path):
        raise ImageSourceError(f"{path} is not an image: the endings {', '.join(IMAGE_ENDINGS)} are read")


def matching(path: Path, endings: Sequence[str]) -> list[Path]:
    """The files that make up a data set: one file, those of a folder, or those that a pattern fits; sorted.

    Args:
        path: a file, a folder, or a pattern such as `data/validation-*.parquet`.
        endings: of the files in a folder, such as `.tar`.

    Raises:
        ImageSourceError: there is none; a folder holds several splits; or of `-00000-of-00014` some are absent or
            there twice.
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
    counted: dict[str, dict[str, list[int]]] = {}
    splits: set[str] = set()
    for stem in sorted(entry.stem for entry in found):
        if match := _SHARD.fullmatch(stem):
            counted.setdefault(match["split"], {}).setdefault(match["count"], []).append(int(match["number"]))
            splits.add(match["split"])
        elif match := _UNCOUNTED_SHARD.fullmatch(stem):
            splits.add(match["split"])
    if len(splits) > 1 and path.is_dir():
        raise ImageSourceError(
            f"{path} holds the files of {', '.join(sorted(splits)[:3])}: name those that you mean by a pattern, such "
            f"as {path / max(splits)}-*"
        )
    for split, by_count in counted.items():
        if len(by_count) > 1:
            raise ImageSourceError(f"{path}: {split} is there several times, in {' and in '.join(by_count)} files")
        ((count, numbers),) = by_count.items()
        first = 0 if 0 in numbers else 1  # some writers count from 1
        if len(numbers) != int(count) or sorted(numbers) != list(range(first, first + len(numbers))):
            raise ImageSourceError(
                f"{path}: of {split}-...-of-{count} there are the files {_ranges(numbers)}: some are missing, or there "
                "twice"
            )


def _ranges(numbers: Sequence[int]) -> str:
    """`0 to 3, 5` of 0, 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
