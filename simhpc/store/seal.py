"""A checksum over the bytes of an HDF5 file that HDF5 itself does not check, read before HDF5 reads any of them.

HDF5 and our own hashes cover what datasets hold, but not the file's structure: headers, the index of chunks,
attributes, texts. A flipped bit there may change a name or a number unseen, and some make the library loop for ever.
So each file begins with 512 bytes of ours, which HDF5 knows as a user block and passes over, and ends with a table of
where the data lie; the block holds the table's place and a SHA-256 over every byte that is neither block nor data. To
check it costs about as much as to read a header, however large the data are. The table repeats the root attributes, so
that what a file is can be known without HDF5: of a thousand files in a fraction of the time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from simhpc.errors import BadFileError, ForeignFileError

BLOCK_BYTES = 512
"""The least that HDF5 allows."""

Extent = tuple[int, int]
"""First byte and length of a run of data in a file."""

_MARK = b"simhpc-sealed 1 "
_HDF5_MARK = b"\x89HDF\r\n\x1a\n"
_READ_BYTES = 1 << 20


def seal(path: Path, data: Iterable[Extent], attributes: Mapping[str, Any] | None = None) -> None:
    """Complete a closed HDF5 file that was made with a user block of `BLOCK_BYTES`.

    Args:
        data: the chunks that have checksums of their own.
        attributes: of the file's root, strings, numbers or booleans; None: only HDF5 knows them.
    """
    runs = _merged(data)
    stated = {"data": runs} if attributes is None else {"data": runs, "attributes": dict(attributes)}
    with path.open("r+b") as file:
        table_at = file.seek(0, 2)
        table = json.dumps(stated, separators=(",", ":")).encode() + b"\n"
        file.write(table)
        block = _block(table_at, _digest(file, runs, table_at + len(table)))
        file.seek(0)
        file.write(block)


def check(path: Path) -> dict[str, Any] | None:
    """Compare a file with its seal.

    Returns:
        The root attributes; None if the seal, of an earlier simhpc, does not repeat them.

    Raises:
        ForeignFileError: it is HDF5 without one, which no file of a run is.
        BadFileError: it is no HDF5 file, or not, byte for byte, what was written.
    """
    with path.open("rb") as file:
        block = file.read(BLOCK_BYTES)
        if block.startswith(_HDF5_MARK):
            raise ForeignFileError(
                f"{path} has no seal (docs/formats.md), so it is not as simhpc wrote it: move it away, or delete it, "
                "and run again"
            )
        if not block.startswith(_MARK):
            raise BadFileError(
                f"{path} cannot be read as HDF5, it may be truncated or damaged (it does not begin as such files do): "
                "delete it and run again"
            )
        table = _intact_table(file, block)
        if table is None:
            raise BadFileError(
                f"{path} is truncated, damaged or was edited: it is not what its seal says (docs/formats.md): "
                "delete it and run again"
            )
        return table.get("attributes")


def _intact_table(file: BinaryIO, block: bytes) -> dict[str, Any] | None:
    """The table, if the block and all that it covers are what was written."""
    size = file.seek(0, 2)
    try:
        table_at = int(block[len(_MARK) :].split()[0])
        file.seek(table_at)
        table: dict[str, Any] = json.loads(file.read(size))
        runs = [(int(first), int(length)) for first, length in table["data"]]
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, OSError, RecursionError):
        return None
    end = BLOCK_BYTES
    for first, length in runs:
        if first < end or length < 0:
            return None
        end = first + length
    is_intact = end <= table_at <= size and block == _block(table_at, _digest(file, runs, size))
    return table if is_intact else None


def _block(table_at: int, digest: str) -> bytes:
    text = _MARK + f"{table_at} {digest}\n".encode()
    return text.ljust(BLOCK_BYTES, b"\0")


def _digest(file: BinaryIO, runs: list[Extent], size: int) -> str:
    """SHA-256 of all but the block and the data."""
    digest, at = hashlib.sha256(), BLOCK_BYTES
    for first, length in (*runs, (size, 0)):
        file.seek(at)
        while at < first:
            part = file.read(min(_READ_BYTES, first - at))
            if not part:
                return "truncated"
            digest.update(part)
            at += len(part)
        at = first + length
    return digest.hexdigest()


def _merged(data: Iterable[Extent]) -> list[Extent]:
    runs: list[Extent] = []
    for first, length in sorted(data):
        if runs and sum(runs[-1]) == first:
            runs[-1] = (runs[-1][0], runs[-1][1] + length)
        else:
            runs.append((first, length))
    return runs
