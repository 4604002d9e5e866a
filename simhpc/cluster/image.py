"""The container image that tasks run in: what its file says of itself, and whether it fits this simhpc.

A SIF file is read here without Apptainer, which a login node need not have: its header (architecture, an identity that
each build draws anew) and the labels that Apptainer keeps beside the file system. The layout is that of the SIF
specification, version 1 (github.com/apptainer/sif, pkg/sif/sif.go).

`python -m simhpc.cluster.image`, inside an image that is being built, prints the labels that `check` looks for.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from simhpc import __version__
from simhpc.cluster.probe import versions
from simhpc.errors import ContainerError
from simhpc.study import Study

PYTHON = "/opt/simhpc/bin/python"
"""The Python of an image of ours; containers/install.sh puts it there."""

_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?III7q128s384s")
_MAGIC = b"SIF_MAGIC\0"
_GENERIC_JSON = 0x4006
_METADATA_NAME = b"inspect-metadata.json"
_METADATA_BYTES = 1 << 20
_DESCRIPTORS = 4096
# SIF's numbers (GetHeaderArch), and what Python and Slurm call the same processors.
_ARCHITECTURES = {
    "01": "i386",
    "02": "x86_64",
    "03": "arm",
    "04": "aarch64",
    "05": "ppc64",
    "06": "ppc64le",
    "11": "s390x",
    "12": "riscv64",
}

VERSION, SCHEMA, SOURCE, PYTHON_VERSION = "simhpc.version", "simhpc.study-schema", "simhpc.source", "simhpc.python"


@dataclass(frozen=True)
class Image:
    """A SIF file.

    Attributes:
        path: absolute.
        id: its identity, 32 hexadecimal digits; another build or signature of the same content has another.
        size_bytes: of the file.
        modified_ns: when the file was last changed.
        architecture: as `platform.machine()` and Slurm call it.
        labels: name to value; None if they are not where Apptainer 1 writes them.
    """

    path: Path
    id: str
    size_bytes: int
    modified_ns: int
    architecture: str
    labels: dict[str, str] | None

    def sha256(self) -> str:
        """SHA-256 of the whole file: what results record."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Image:
    """What an image file says of itself.

    Raises:
        ContainerError: it is missing, truncated, or no SIF file.
    """
    try:
        if path.is_dir():
            raise ContainerError(f"{path} is a folder: [container] takes a SIF file, as containers/build.sh makes it")
        with path.open("rb") as file:
            return _read(path, file)
    except FileNotFoundError:
        raise ContainerError(
            f"there is no image {path}: make one with containers/build.sh, name another in [container], or give "
            "--no-container"
        ) from None
    except OSError as error:
        raise ContainerError(f"the image {path} cannot be read: {error.strerror or error}") from None


def _read(path: Path, file: BinaryIO) -> Image:
    status = path.stat()
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or _HEADER.unpack(head)[1] != _MAGIC:
        raise ContainerError(f"{path} is not a SIF image ({status.st_size} bytes): make one with containers/build.sh")
    _, _, _, arch, identity, *numbers = _HEADER.unpack(head)
    _, _, _, n_descriptors, descriptors_at, _, data_at, data_bytes = numbers
    end = data_at + data_bytes
    labels = None
    if 0 <= n_descriptors <= _DESCRIPTORS and 0 <= descriptors_at <= status.st_size:
        file.seek(descriptors_at)
        for kind, offset, size, name in _descriptors(file.read(n_descriptors * _DESCRIPTOR.size)):
            end = max(end, offset + size)
            is_whole = offset >= 0 and size >= 0 and offset + size <= status.st_size
            if kind == _GENERIC_JSON and name == _METADATA_NAME and is_whole:
                file.seek(offset)
                labels = _labels(file.read(min(size, _METADATA_BYTES)))
    if status.st_size < end:
        raise ContainerError(
            f"the image {path} is truncated: it has {status.st_size} bytes of {end}. Copy or build it again"
        )
    code = arch.rstrip(b"\0").decode(errors="replace")
    return Image(
        path=path.absolute(),
        id=identity.hex(),
        size_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        architecture=_ARCHITECTURES.get(code, f"unknown ({code})"),
        labels=labels,
    )


def _descriptors(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, offset, size and name of each object in the file."""
    for start in range(0, len(raw) - _DESCRIPTOR.size + 1, _DESCRIPTOR.size):
        kind, is_used, _, _, _, offset, size, _, _, _, _, _, name, _ = _DESCRIPTOR.unpack_from(raw, start)
        if is_used:
            yield kind, offset, size, name.rstrip(b"\0")


def _labels(raw: bytes) -> dict[str, str] | None:
    try:
        found = json.loads(raw)["data"]["attributes"]["labels"]
        return {str(name): str(value) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def check(image: Image, architectures: Collection[str]) -> list[str]:
    """Whether tasks can run in the image.

    Args:
        architectures: of the nodes.

    Returns:
        What is worth knowing, one line each.

    Raises:
        ContainerError: they cannot.
    """
    if image.architecture not in architectures:
        raise ContainerError(
            f"the image {image.path} is for {image.architecture}, the nodes are {' or '.join(sorted(architectures))}: "
            "build it on such a machine"
        )
    if image.labels is None:
        return [f"the labels of {image.path} cannot be read: each task will check its simhpc as it starts"]
    ours = labels()
    theirs = {name: image.labels.get(name) for name in ours}
    if theirs[VERSION] is None:
        raise ContainerError(f"{image.path} is no image of simhpc (it has no label {VERSION}): see containers/build.sh")
    again = f"build the image again with containers/build.sh, or use the simhpc it was built from{_commit(image)}"
    if theirs[VERSION] != ours[VERSION]:
        raise ContainerError(
            f"the image {image.path} holds simhpc {theirs[VERSION]}, this is simhpc {ours[VERSION]}: {again}"
        )
    if theirs[SCHEMA] != ours[SCHEMA]:
        raise ContainerError(
            f"the image {image.path} holds a simhpc {ours[VERSION]} that reads other studies (study schema "
            f"{str(theirs[SCHEMA])[:12]}, here {ours[SCHEMA][:12]}): {again}"
        )
    notes = []
    if theirs[SOURCE] != ours[SOURCE]:
        notes.append(
            f"the image {image.path} was built from another state of simhpc {ours[VERSION]} than this one"
            f"{_commit(image)}: what was changed since is not in it"
        )
    if theirs[PYTHON_VERSION] != ours[PYTHON_VERSION]:
        notes.append(
            f"the image {image.path} has Python {theirs[PYTHON_VERSION]}, this is {ours[PYTHON_VERSION]}: only one "
            "version for both was tested"
        )
    return notes


def _commit(image: Image) -> str:
    commit = (image.labels or {}).get("simhpc.git-commit", "")
    return f" (commit {commit})" if commit else ""


def labels() -> dict[str, str]:
    """The labels of an image that this simhpc would be installed in."""
    found = versions()
    return {
        VERSION: __version__,
        SCHEMA: schema_sha256(),
        SOURCE: _source_sha256(),
        PYTHON_VERSION: ".".join(platform.python_version_tuple()[:2]),
        "simhpc.torch": found["torch"],
        "simhpc.timm": found["timm"],
        "simhpc.submitit": found["submitit"],
    }


def schema_sha256() -> str:
    """Identity of what a study file may hold: the host writes the frozen study, the image reads it."""
    return hashlib.sha256(json.dumps(_bare(Study.model_json_schema()), sort_keys=True).encode()).hexdigest()


def _bare(schema: object) -> object:
    """A JSON schema without its prose."""
    if isinstance(schema, dict):
        return {name: _bare(value) for name, value in schema.items() if name not in ("title", "description")}
    return [_bare(value) for value in schema] if isinstance(schema, list) else schema


def _source_sha256() -> str:
    """Identity of the package's code."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.c")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


if __name__ == "__main__":
    for _name, _value in labels().items():
        print(_name, _value)
