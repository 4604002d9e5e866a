"""What all HDF5 files of a run share: how they say what they are, and how that is checked.

Root attributes `format`, `format_version`, `created_by`, `container` and `content_sha256` stand in every file. Each
dataset carries its own `sha256` and, through HDF5's Fletcher-32 filter, a checksum per chunk; all other bytes are
covered by the file's seal (`seal`), so that a flipped bit is an error and never a number. No filter needs a plugin.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from simhpc import __version__
from simhpc.errors import BadFileError, ForeignFileError, MissingInputError, SimhpcError
from simhpc.store import seal
from simhpc.store.atomic import check_room, replacing

Array = NDArray[Any]
File = h5py.File
Attributes = dict[str, Any]

CONTAINER_DIGEST = "SIMHPC_CONTAINER_DIGEST"
"""The variable that tells a task in which image it runs."""

_CHUNK_BYTES = 1 << 20
_CHECKSUM_BYTES = 4
# A node of the tree that finds chunks, at least half full, and a dataset's own header: 2 to 4 KiB, by the rank.
_INDEX_BYTES = 3 << 10
_HEADERS_BYTES = 16 << 10


def container() -> str:
    """The digest of the container image that this process runs in, or `none`."""
    return os.environ.get(CONTAINER_DIGEST, "none")


def write(path: Path, *, kind: str, version: int, attributes: Attributes, datasets: Mapping[str, Array]) -> None:
    """Write one file atomically, and read all of it back before it gets its name.

    Args:
        kind: the `format` attribute, e.g. `simhpc-adversarial`.
        attributes: root attributes; strings, numbers or booleans.
        datasets: name (may contain `/`) to array; arrays of `str` are stored as UTF-8.
    """
    # After a failed write HDF5 tries again as it closes the file, and the process dies of it.
    check_room(path, sum(stored_bytes(array.shape, array.itemsize) for array in datasets.values()) + _HEADERS_BYTES)
    verify = functools.partial(_verify, kind=kind, version=version)
    with replacing(path, verify=verify) as temporary:
        with h5py.File(temporary, "w", locking=False, userblock_size=seal.BLOCK_BYTES) as file:
            hashes = {name: _write_dataset(file, name, array) for name, array in datasets.items()}
            file.attrs.update(attributes)
            file.attrs.update(
                format=kind,
                format_version=version,
                created_by=f"simhpc {__version__}",
                container=container(),
                content_sha256=combined_sha256(hashes),
            )
        seal.seal(temporary, *_to_be_sealed(temporary))


@contextlib.contextmanager
def opened(path: Path, *, kind: str, version: int) -> Iterator[h5py.File]:
    """Open a file for reading after checking its format and version.

    `locking=False`: HDF5's own locks fail on some NFS and Lustre mounts, and files never change in place.

    Raises:
        MissingInputError: there is no such file.
        ForeignFileError: no file, not to be read, HDF5 without a seal, or of another format or version.
        BadFileError: not HDF5, truncated, not what its seal says; or, while it is open, a dataset is absent or does not
            match its checksum.
    """
    with _understood(path):
        seal.check(path)
        with h5py.File(path, "r", locking=False) as file:
            _check_header(path, file.attrs, kind, version)
            yield file


@contextlib.contextmanager
def _understood(path: Path) -> Iterator[None]:
    """Within it a file may be read; what is raised says what is wrong with it: see `opened`."""
    if not path.exists():
        raise MissingInputError(f"{path} does not exist")
    if not path.is_file():  # to open a pipe would wait for ever
        raise ForeignFileError(f"{path} is not a file: move it away and run again")
    try:
        yield
    except SimhpcError:
        raise
    except PermissionError as error:
        raise ForeignFileError(f"{path} cannot be read: {error}") from None
    # On damage h5py raises nearly anything: OSError, RuntimeError, KeyError, TypeError, ValueError, MemoryError.
    except Exception as error:
        _raise_if_whole(path, error)
        raise BadFileError(
            f"{path} cannot be read as HDF5, it may be truncated or damaged ({error}): delete it and run again"
        ) from None


def _raise_if_whole(path: Path, error: Exception) -> None:
    """For what says nothing of a file: nobody shall delete or make again a good one."""
    number, text = getattr(error, "errno", None), str(error)
    for code in (errno.EMFILE, errno.ENFILE):
        if number == code or os.strerror(code) in text:
            raise SimhpcError(f"{path} could not be opened: {os.strerror(code)}; raise the limit (ulimit -n)") from None
    if number == errno.ESTALE or os.strerror(errno.ESTALE) in text:
        raise BadFileError(f"{path} was replaced while it was being read: run again") from None


def attributes(path: Path, *, kind: str, version: int) -> Attributes:
    """All root attributes, without reading any data; where the seal repeats them, without HDF5.

    Raises:
        MissingInputError, ForeignFileError, BadFileError: see `opened`.
    """
    with _understood(path):
        found: Attributes | None = seal.check(path)
        if found is None:
            with h5py.File(path, "r", locking=False) as file:
                found = attributes_of(file)
        _check_header(path, found, kind, version)
    return found


def attributes_of(file: h5py.File) -> Attributes:
    """All root attributes of an open file, as plain Python values."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}


def attribute(path: Path, attributes: Attributes, name: str) -> Any:
    """One root attribute.

    Raises:
        BadFileError: the file does not have it.
    """
    if name not in attributes:
        raise BadFileError(f"{path}: the root attribute {name!r} is missing")
    return attributes[name]


def dataset(path: Path, file: h5py.File, name: str, *, dtype: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """A dataset of the expected type and shape (`None`: any length), not yet read.

    Raises:
        BadFileError: absent, or of another type or shape.
    """
    found = file.get(name)
    if not isinstance(found, h5py.Dataset):
        raise BadFileError(f"{path}: the dataset {name!r} is missing")
    fits = len(found.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(found.shape, shape, strict=True)
    )
    right_type = found.dtype == h5py.string_dtype() if dtype == "str" else found.dtype == np.dtype(dtype)
    if not fits or not right_type:
        want_shape = tuple("any" if want is None else want for want in shape)
        raise BadFileError(f"{path}: {name!r} is {found.dtype} {found.shape}, expected {dtype} {want_shape}")
    return found


def read(path: Path, file: h5py.File, name: str, *, dtype: str, shape: tuple[int | None, ...]) -> Array:
    """A whole dataset, checked against its type, shape and SHA-256; strings as an object array of `str`."""
    found = dataset(path, file, name, dtype=dtype, shape=shape)
    array: Array = found.asstr()[...] if dtype == "str" else found[...]
    if sha256_of(array) != found.attrs.get("sha256"):
        raise BadFileError(f"{path}: the data of {name!r} do not match their checksum: delete it and run again")
    return array


def read_rows(
    path: Path, file: h5py.File, name: str, positions: Sequence[int], *, dtype: str, shape: tuple[int | None, ...]
) -> Array:
    """Some rows of a dataset that is too large to be read for them; their chunks' own checksums are what is checked.

    Raises:
        BadFileError: see `dataset`; or there is no such row.
    """
    found = dataset(path, file, name, dtype=dtype, shape=shape)
    if any(not 0 <= position < len(found) for position in positions):
        raise BadFileError(f"{path}: {name!r} has {len(found)} rows, and other ones were asked for")
    # One by one: h5py is very slow with a list of positions.
    rows = [found[position] for position in positions]
    return np.stack(rows) if rows else np.empty((0, *found.shape[1:]), dtype=found.dtype)


def unchecked_rows(stored: h5py.Dataset, n_rows: int) -> Iterator[Array]:
    """All rows of a dataset of numbers in slices of `n_rows`, the last one shorter, past the checksums of its chunks.

    Those take longer than all the rest of reading. For a caller that compares the SHA-256 of the whole.
    """
    if stored.chunks is None:  # there is no number in it
        yield from (stored[start : start + n_rows] for start in range(0, len(stored), n_rows))
        return
    per_chunk, row_shape = stored.chunks[0], stored.shape[1:]
    for start in range(0, len(stored), n_rows):
        rows = np.empty((min(n_rows, len(stored) - start), *row_shape), dtype=stored.dtype)
        at = 0
        while at < len(rows):
            first = (start + at) // per_chunk * per_chunk
            _, raw = stored.id.read_direct_chunk((first, *[0] * len(row_shape)))
            chunk = np.frombuffer(raw, dtype=stored.dtype, count=math.prod(stored.chunks)).reshape(stored.chunks)
            some = chunk[start + at - first :][: len(rows) - at]
            rows[at : at + len(some)] = some
            at += len(some)
        yield rows


def sha256_of(array: Array) -> str:
    """SHA-256 over type, shape and little-endian row-major bytes; a string counts as its UTF-8 length and bytes."""
    digest = ArrayHash("str" if array.dtype.kind in "OU" else array.dtype.newbyteorder("<").str, array.shape)
    digest.update(array)
    return digest.hexdigest()


class ArrayHash:
    """`sha256_of` for an array that arrives in slices along its first axis."""

    def __init__(self, dtype: str, shape: tuple[int, ...]) -> None:
        self._digest = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())

    def update(self, rows: Array) -> None:
        if rows.dtype.kind in "OU":
            encoded = [str(text).encode() for text in rows.ravel()]
            parts = itertools.chain.from_iterable((len(each).to_bytes(8, "little"), each) for each in encoded)
            self._digest.update(b"".join(parts))
        else:
            little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
            self._digest.update(little.view(np.uint8).reshape(-1).data)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def stored_bytes(shape: tuple[int, ...], item_bytes: int) -> int:
    """What a dataset of numbers of this shape takes up in a file: whole chunks and their index, headers aside."""
    chunks = _chunks(shape, item_bytes)
    if chunks is None:
        return _INDEX_BYTES
    n_chunks = -(-shape[0] // chunks[0])
    return n_chunks * (math.prod(chunks) * item_bytes + _CHECKSUM_BYTES) + -(-n_chunks // 32) * _INDEX_BYTES


def _chunks(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...] | None:
    """Whole rows, as many as make about a mebibyte; None for a dataset without any number."""
    if math.prod(shape) == 0:
        return None
    row_bytes = max(1, math.prod(shape[1:]) * item_bytes)
    return (min(shape[0], max(1, _CHUNK_BYTES // row_bytes)), *shape[1:])


def _to_be_sealed(path: Path) -> tuple[list[seal.Extent], Attributes]:
    """The chunks whose bytes have a Fletcher-32 checksum, and the root attributes."""
    found: list[seal.Extent] = []

    def note(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.fletcher32:
            item.id.chunk_iter(lambda chunk: found.append((chunk.byte_offset, chunk.size)))

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(note)
        return found, attributes_of(file)


def _write_dataset(file: h5py.File, name: str, array: Array) -> str:
    is_text = array.dtype.kind in "OU"
    chunks = _chunks(array.shape, array.itemsize)
    created = file.create_dataset(
        name,
        shape=array.shape,
        dtype=h5py.string_dtype() if is_text else array.dtype,
        chunks=chunks,
        # Variable-length text lies outside its chunks, where the filter does not reach; its sha256 does.
        fletcher32=chunks is not None and not is_text,
    )
    if array.size:
        created[...] = array
    created.attrs["sha256"] = sha256_of(array)
    return str(created.attrs["sha256"])


def combined_sha256(hashes: Mapping[str, str]) -> str:
    """One hash over the hashes of several datasets, by name."""
    return hashlib.sha256("\n".join(f"{name} {hashes[name]}" for name in sorted(hashes)).encode()).hexdigest()


def _sha256_in_file(stored: h5py.Dataset) -> str:
    """`sha256_of` what a file holds, a chunk at a time: whole image sets are not held in memory twice."""
    if h5py.check_string_dtype(stored.dtype) is not None:
        return sha256_of(stored.asstr()[...])
    if stored.chunks is None:
        return sha256_of(stored[...])
    digest, rows = ArrayHash(stored.dtype.newbyteorder("<").str, stored.shape), stored.chunks[0]
    for start in range(0, len(stored), rows):
        digest.update(stored[start : start + rows])
    return digest.hexdigest()


def _check_header(path: Path, attributes: Mapping[str, Any], kind: str, version: int) -> None:
    found = attributes.get("format", "no format attribute")
    if found != kind:
        raise ForeignFileError(f"{path} is not a {kind} file: its format is {found!r}")
    found_version = attributes.get("format_version", 0)
    if found_version != version:
        raise ForeignFileError(
            f"{path}: {kind} version {found_version}; this simhpc ({__version__}) reads version {version}"
        )


def check_content(path: Path, *, kind: str, version: int) -> None:
    """Read every dataset and compare it with its checksum, and all of them with the file's.

    Raises:
        MissingInputError, BadFileError: see `opened`.
    """
    with opened(path, kind=kind, version=version) as file:
        hashes: dict[str, str] = {}

        def check(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                hashes[name] = _sha256_in_file(item)
                if hashes[name] != item.attrs.get("sha256"):
                    raise BadFileError(
                        f"{path}: the data of {name!r} do not match their checksum: delete it and run again"
                    )

        file.visititems(check)
        told = seal.check(path)
        if told is not None and told != attributes_of(file):
            raise BadFileError(f"{path}: its seal repeats other attributes than it has: delete it and run again")
        if combined_sha256(hashes) != file.attrs.get("content_sha256"):
            raise BadFileError(f"{path}: its datasets are not those that were written: delete it and run again")


def _verify(path: Path, *, kind: str, version: int) -> None:
    try:
        check_content(path, kind=kind, version=version)
    except BadFileError as error:
        raise BadFileError(
            f"{error} (this was read back right after it was written: is the disk failing or full?)"
        ) from None
