"""`python -m simhpc.cluster.probe FOLDER NONCE`: what `simhpc doctor` runs on a compute node.

Prints one line of JSON, a `NodeReport`. What fails here is what the report is about, so nothing but that is imported
before it is tried.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from simhpc import __version__

FROM_LOGIN = "login"
FROM_NODE = "node"
"""Names of the two files, each of which holds the nonce."""

SCONTROL = "SIMHPC_JOB_SCONTROL"
"""The variable that holds the path of scontrol on the node, which an image need not have."""

SEEN_WITHIN_S = 15.0
"""How long a file may take from one machine to another. `status` gives a task's output as long."""

_LIBRARIES = ("torch", "timm", "numpy", "h5py", "submitit")


@dataclass(frozen=True)
class NodeReport:
    """What a compute node is like. Problems are texts, empty when there is none.

    Attributes:
        nonce: as given, to tell this line from others.
        host: name of the node.
        versions: see `versions`.
        seen_after_s: how long the login node's file took to be seen; None if it was not within `SEEN_WITHIN_S`.
        not_writable: why the node could not write a file beside it.
        no_locks: what HDF5's own locks met with.
        no_hdf5: what writing a file as all of a run are met with.
        no_torch: why torch cannot be imported, or cannot attack a model on a device that it sees.
        devices: names of CUDA devices.
        temporary: the folder for temporary files.
        temporary_free_bytes: free space there; None if it cannot be asked.
        has_scontrol: whether the batch script finds it.
        unix_s: the node's clock at the very end.
    """

    nonce: str
    host: str
    versions: dict[str, str]
    seen_after_s: float | None
    not_writable: str
    no_locks: str
    no_hdf5: str
    no_torch: str
    devices: list[str]
    temporary: str
    temporary_free_bytes: int | None
    has_scontrol: bool
    unix_s: float


def versions() -> dict[str, str]:
    """Versions of Python, simhpc and the libraries that decide about results, without importing them."""
    found = {"python": platform.python_version(), "simhpc": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def wait_for_nonce(path: Path, nonce: str) -> float | None:
    """Seconds until the file holds the nonce; None if it does not within `SEEN_WITHIN_S`."""
    started_s = time.monotonic()
    while True:
        try:
            seen = path.read_text(encoding="utf-8") == nonce
        except (OSError, UnicodeError):
            seen = False
        elapsed_s = time.monotonic() - started_s
        if seen:
            return elapsed_s
        if elapsed_s >= SEEN_WITHIN_S:
            return None
        time.sleep(0.2)


def look(folder: Path, nonce: str) -> NodeReport:
    """Try everything that a task needs of this node."""
    seen_after_s = wait_for_nonce(folder / FROM_LOGIN, nonce)
    not_writable, no_locks, no_hdf5 = "", "", ""
    if seen_after_s is not None:
        not_writable = _write(folder / FROM_NODE, nonce)
        if not not_writable:
            no_locks, no_hdf5 = _try_hdf5(folder)
    no_torch, devices = _try_torch()
    temporary = tempfile.gettempdir()
    return NodeReport(
        nonce=nonce,
        host=socket.gethostname(),
        versions=versions(),
        seen_after_s=seen_after_s,
        not_writable=not_writable,
        no_locks=no_locks,
        no_hdf5=no_hdf5,
        no_torch=no_torch,
        devices=devices,
        temporary=temporary,
        temporary_free_bytes=_free_bytes(temporary),
        has_scontrol=bool(os.environ.get(SCONTROL)),
        unix_s=time.time(),
    )


def _write(path: Path, nonce: str) -> str:
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(nonce)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error)
    return ""


def _try_hdf5(folder: Path) -> tuple[str, str]:
    try:
        from simhpc.store import locking

        return locking.try_locks(folder), locking.try_writing(folder)
    except Exception as error:  # a library that cannot be loaded can raise anything
        return "", f"{type(error).__name__}: {error}"


def _try_torch() -> tuple[str, list[str]]:
    try:
        from simhpc.stages import smoke

        return "", smoke.attack_everywhere()[1:]
    except Exception as error:  # a library that cannot be loaded can raise anything
        return f"{type(error).__name__}: {error}", []


def _free_bytes(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def main(folder: str, nonce: str) -> None:
    # A line of its own, whatever a library may have printed before it.
    print(f"\n{json.dumps(asdict(look(Path(folder), nonce)))}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
