"""CIFAR-10 as folders of PNG files, for jobs/cifar10.toml: OUT/{train,test}/CLASS/NUMBER.png.

    python jobs/cifar10_folders.py cifar-10-binary.tar.gz data/cifar10

The archive is the authors' "binary version" (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html): files of
ten thousand records, each one byte of class and 3 x 32 x 32 bytes of pixels. Their Python version holds pickles, which
this project does not open.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

_RECORD_BYTES = 1 + 3 * 32 * 32
_FILES = {"train": [f"data_batch_{part}.bin" for part in range(1, 6)], "test": ["test_batch.bin"]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="cifar-10-binary.tar.gz")
    parser.add_argument("out", type=Path, help="folder to write to, e.g. data/cifar10")
    given = parser.parse_args(arguments)
    try:
        with tarfile.open(given.archive) as archive:
            write_folders(archive, given.out)
    except (OSError, tarfile.TarError, ValueError) as error:
        sys.exit(f"{given.archive}: {error}")


def write_folders(archive: tarfile.TarFile, out: Path) -> None:
    """Write all images; images are numbered within their split, in the archive's order.

    Raises:
        ValueError: a file is missing from the archive, or is not of that format.
    """
    members = {Path(member.name).name: member for member in archive if member.isfile()}
    classes = _content(archive, members, "batches.meta.txt").decode().split()
    for split, files in _FILES.items():
        content = b"".join(_content(archive, members, name) for name in files)
        if len(content) % _RECORD_BYTES:
            raise ValueError(f"the files of {split} are not a whole number of records of {_RECORD_BYTES} bytes")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
        if records.size and records[:, 0].max() >= len(classes):
            raise ValueError(f"{split} has class {records[:, 0].max()}, there are {len(classes)} class names")
        for name in classes:
            (out / split / name).mkdir(parents=True, exist_ok=True)
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for number, (label, image) in enumerate(zip(records[:, 0], pixels, strict=True)):
            Image.fromarray(image).save(out / split / classes[label] / f"{number:05d}.png")
        print(f"{out / split}: {len(records)} images of {len(classes)} classes")


def _content(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> bytes:
    opened = archive.extractfile(members[name]) if name in members else None
    if opened is None:
        raise ValueError(f"there is no {name} in it: this is not CIFAR-10's binary version")
    return opened.read()


if __name__ == "__main__":
    main()
