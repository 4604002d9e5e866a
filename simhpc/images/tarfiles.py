"""Tar archives without compression: what is in them, and one member's bytes, read by its place.

timm has two readers of tars, and neither serves. Its in-tar reader reads through all data to list the members, leaves
out whatever follows a damaged header without a word, and holds one file position, which threads cannot share. Its
webdataset reader only iterates: to draw 5,000 images it would decode all 50,000, and it leaves out those that fail.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from simhpc.errors import ImageSourceError

_BLOCK_BYTES = 512


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    Attributes:
        path: within the archive, without a leading `./`.
        offset_bytes, size_bytes: where its data lie.
    """

    archive: Path
    path: str
    offset_bytes: int
    size_bytes: int

    def read(self) -> bytes:
        """Its bytes. Every call opens the archive: any thread, any process.

        Raises:
            OSError: the archive cannot be read, or is shorter than it was.
        """
        with self.archive.open("rb") as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> bytes:
        """Its bytes from the open archive; `OSError` as for `read`."""
        file.seek(self.offset_bytes)
        data = file.read(self.size_bytes)
        if len(data) != self.size_bytes:
            raise OSError(f"{self.archive} has become shorter")
        return data


def members(archive: Path) -> list[Member]:
    """The files in a tar, in their order.

    Raises:
        ImageSourceError: not a tar, compressed, cut off or damaged; or it holds links or sparse files.
    """
    found, end_bytes = [], 0
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                end_bytes = info.offset_data + -(-info.size // _BLOCK_BYTES) * _BLOCK_BYTES
                if info.isdir():
                    continue
                if not info.isfile() or info.issparse():
                    raise ImageSourceError(f"{archive}: {info.name} is a link or a sparse file, which is not read")
                found.append(Member(archive, info.name.removeprefix("./"), info.offset_data, info.size))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ImageSourceError(f"{archive} cannot be read as a tar without compression: {error}") from None
    _check_end(archive, end_bytes)
    return found


def _check_end(archive: Path, end_bytes: int) -> None:
    """Python's tarfile takes a damaged header, and an archive that is cut off, for the end."""
    with archive.open("rb") as file:
        file.seek(end_bytes)
        if file.read(_BLOCK_BYTES) != bytes(_BLOCK_BYTES):
            raise ImageSourceError(f"{archive} is cut off or damaged at byte {end_bytes}: copy it again")
