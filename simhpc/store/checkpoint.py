"""`checkpoints/<model>.safetensors`: trained weights with their provenance in the file's own metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as serialized

from simhpc.errors import BadFileError, ForeignFileError, MissingInputError
from simhpc.store import hdf5
from simhpc.store.atomic import replacing
from simhpc.store.filecache import cached_by_file

KIND, VERSION = "simhpc-checkpoint", "1"

Array = np.ndarray[Any, np.dtype[Any]]


def save(path: Path, weights: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write weights (name to array) and their provenance atomically."""
    header = {
        "simhpc_format": KIND,
        "simhpc_format_version": VERSION,
        "weights_sha256": weights_sha256(weights),
        "container": hdf5.container(),
        **metadata,
    }
    header["metadata_sha256"] = _metadata_sha256(header)
    # Not to a file: safetensors would write one of another name first, for its owner alone, which a kill leaves behind.
    data = serialized({name: _in_order(array) for name, array in weights.items()}, header)
    with replacing(path, verify=_verify) as temporary, temporary.open("wb") as file:
        file.writelines(_with_sorted_header(data))


@cached_by_file
def metadata_of(path: Path) -> dict[str, str]:
    """The provenance in the file's header, without reading the weights.

    Raises:
        MissingInputError: there is no such file.
        BadFileError: not a safetensors file that this stage wrote, or truncated.
    """
    if not path.exists():
        raise MissingInputError(f"{path} does not exist")
    if not path.is_file():  # to open a pipe would wait for ever
        raise ForeignFileError(f"{path} is not a file: move it away and run again")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except PermissionError as error:
        raise ForeignFileError(f"{path} cannot be read: {error}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFileError(f"{path} cannot be read as safetensors, it may be truncated or damaged: {error}") from None
    if metadata.get("simhpc_format") != KIND or metadata.get("simhpc_format_version") != VERSION:
        raise ForeignFileError(f"{path} was not written by simhpc's train stage (format version {VERSION})")
    # Files of before have none.
    stated = metadata.get("metadata_sha256")
    if "weights_sha256" not in metadata or (stated is not None and stated != _metadata_sha256(metadata)):
        raise BadFileError(f"{path}: what it says of itself is damaged or was edited: delete it and train again")
    return dict(metadata)


def _with_sorted_header(data: bytes) -> tuple[bytes, bytes, memoryview]:
    """The parts of a file with its provenance in order: safetensors has it in another one in every process."""
    size = int.from_bytes(data[:8], "little")
    held = json.loads(data[8 : 8 + size])
    held["__metadata__"] = dict(sorted(held["__metadata__"].items()))
    text = json.dumps(held, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    assert len(text) == size
    return data[:8], text, memoryview(data)[8 + size :]


def check_content(path: Path) -> None:
    """Read all weights and compare them with the file's checksum.

    Raises:
        MissingInputError, BadFileError: see `metadata_of`; or they do not match, or are not finite.
    """
    stated = metadata_of(path)["weights_sha256"]
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path} cannot be read as safetensors, it may be damaged: {error}") from None
    if weights_sha256(found) != stated:
        raise BadFileError(f"{path}: the weights do not match their checksum: delete it and train again")
    if broken := [name for name, array in found.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]:
        raise BadFileError(f"{path}: {broken[0]} is not finite: delete it and train again")


def _verify(path: Path) -> None:
    if weights_sha256(load_file(path)) != metadata_of(path)["weights_sha256"]:
        raise BadFileError(f"{path}: what was read back is not what was written; is the disk failing or full?")


def _metadata_sha256(metadata: Mapping[str, str]) -> str:
    stated = {name: value for name, value in metadata.items() if name != "metadata_sha256"}
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def weights_sha256(weights: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and bytes: the same for the same weights in any file format."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = _in_order(weights[name])
        digest.update(f"{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _in_order(array: Array) -> Array:
    # Not np.ascontiguousarray, which turns a scalar (a batch norm's counter) into a vector.
    return np.asarray(array, order="C")
