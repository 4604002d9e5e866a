"""`flat:PATH`: images side by side in one folder or one tar, and a file that tells their classes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path, PurePosixPath

from simhpc.errors import ImageSourceError
from simhpc.images.files import check_is_image, is_ignored, is_image
from simhpc.images.ground_truth import DEVKIT_TABLES, read_classes
from simhpc.images.source import Listing
from simhpc.images.tarfiles import members


def flat(root: Path, ground_truth: Path) -> Listing:
    """List the images of a folder, or of a tar such as the original `ILSVRC2012_img_val.tar`.

    timm's reader of folders takes the class from the folder, which here is none.

    Args:
        ground_truth: the file that tells the classes; it may lie among the images, as may the devkit's tables.

    Raises:
        ImageSourceError: no such folder or tar, a damaged one, something that is not an image; or see `read_classes`.
    """
    if root.is_dir():
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        entries = [entry for entry in entries if not is_ignored(entry.name) and not _tells_classes(entry, ground_truth)]
        for entry in entries:
            if entry.is_dir():
                raise ImageSourceError(f"{entry.path} is a folder: where each class has one, the layout is 'folder:'")
        paths = [entry.name for entry in entries]

        def read(place: int) -> bytes:
            return (root / paths[place]).read_bytes()

        def size_bytes(place: int) -> int:
            return (root / paths[place]).stat().st_size
    elif root.is_file():
        inside = [member for member in members(root) if not is_ignored(PurePosixPath(member.path).name)]
        inside.sort(key=lambda member: member.path)
        paths = [member.path for member in inside]

        def read(place: int) -> bytes:
            return inside[place].read()

        def size_bytes(place: int) -> int:
            return inside[place].size_bytes
    else:
        raise ImageSourceError(f"images.source: no folder or tar {root}")
    for path in paths:
        check_is_image(path)
    if not paths:
        raise ImageSourceError(f"images.source: {root} holds no images")
    return Listing(str(root), paths, read_classes(ground_truth, paths), read, size_bytes)


def _tells_classes(entry: os.DirEntry[str], ground_truth: Path) -> bool:
    if entry.name in DEVKIT_TABLES:
        return True
    # One path may be written in many ways. Images are not compared: fifty thousand would take minutes on a network.
    with suppress(OSError):
        return not is_image(entry.name) and ground_truth.samefile(entry.path)
    return False
