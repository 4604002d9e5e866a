"""Whether files can be locked and written in a folder: some NFS and Lustre mounts refuse HDF5's locks."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

import h5py
import numpy as np

from simhpc.store import hdf5

_KIND, _VERSION = "simhpc-trial", 1


def try_locks(folder: Path) -> str:
    """Create, close and reopen a file under HDF5's own locks; an empty string, or what went wrong."""
    path = folder / f"locks-{secrets.token_hex(4)}.h5"
    try:
        with h5py.File(path, "w", locking=True) as file:
            file["trial"] = np.arange(3)
        with h5py.File(path, "r", locking=True) as file:
            file["trial"][...]
    except (OSError, RuntimeError, KeyError) as error:
        return str(error)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return ""


def try_writing(folder: Path) -> str:
    """Write and read a file as all of a run are; an empty string, or what went wrong."""
    path = folder / f"trial-{secrets.token_hex(4)}.h5"
    rows = np.arange(3, dtype=np.int32)
    try:
        hdf5.write(path, kind=_KIND, version=_VERSION, attributes={}, datasets={"rows": rows})
        with hdf5.opened(path, kind=_KIND, version=_VERSION) as file:
            hdf5.read(path, file, "rows", dtype="int32", shape=(3,))
    # Whatever it is, a task would end with it.
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return ""
