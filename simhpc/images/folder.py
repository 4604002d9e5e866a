"""`folder:PATH`: one folder per class, its images directly in it; read by timm."""

from __future__ import annotations

import os
from pathlib import Path

from simhpc.errors import ImageSourceError
from simhpc.images.files import check_is_image, is_ignored, is_image
from simhpc.images.source import Listing


def class_folders(root: Path) -> Listing:
    """List the images of class folders.

    Raises:
        ImageSourceError: no such folder, no class folders, an empty one, something in one that is not an image, or an
            image beside them.
    """
    from simhpc.zoo.timm_import import timm

    if not root.is_dir():
        raise ImageSourceError(f"images.source: no folder {root}")
    entries = sorted((entry for entry in root.iterdir() if not is_ignored(entry.name)), key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir()]
    if not folders:
        raise ImageSourceError(f"images.source: {root} holds no class folders")
    if loose := [entry for entry in entries if is_image(entry.name) and not entry.is_dir()]:
        raise ImageSourceError(f"{loose[0]} lies in no class folder")
    for name in folders:
        _check_contents(root / name)
    # timm's indices are not used (labels.py gives them); the map keeps hidden folders out. A class may be called `val`.
    reader = timm.data.create_dataset(
        "", root=str(root), search_split=False, class_map={name: index for index, name in enumerate(folders)}
    ).reader
    # timm reads hidden files such as macOS's `._1.png` too.
    kept = [k for k, name in enumerate(reader.filenames()) if not is_ignored(Path(name).name)]
    paths = [reader.filename(k) for k in kept]

    def read(place: int) -> bytes:
        # The reader, not timm's dataset: that one replaces an unreadable image by its neighbour.
        stream, _ = reader[kept[place]]
        with stream:
            data: bytes = stream.read()
            return data

    return Listing(
        where=str(root),
        paths=paths,
        classes=[folders[reader.samples[k][1]] for k in kept],
        read=read,
        size_bytes=lambda place: (root / paths[place]).stat().st_size,
        in_class_folders=True,
    )


def _check_contents(folder: Path) -> None:
    entries = [entry for entry in os.scandir(folder) if not is_ignored(entry.name)]
    for entry in entries:
        if not entry.is_file():
            raise ImageSourceError(f"{entry.path} is not an image: images lie directly in their class folder")
        check_is_image(entry.path)
    if not entries:
        raise ImageSourceError(f"the class folder {folder} is empty")
