"""`answers/<teacher>-<identity>.h5`: a teacher's logits for training images that look alike each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError
from simhpc.store import hdf5

KIND, VERSION = "simhpc-answers", 1


def save(path: Path, logits: NDArray[np.float32], *, teacher: str, identity: str) -> None:
    """Write the file atomically.

    Args:
        logits: (N, K), of the training images in their order.
        teacher: its key.
        identity: SHA-256 over the teacher's weights, the images and how they are shown.
    """
    attributes = {"teacher": teacher, "identity": identity}
    hdf5.write(path, kind=KIND, version=VERSION, attributes=attributes, datasets={"logits": logits})


def load(path: Path, *, identity: str) -> NDArray[np.float32]:
    """Read and check the file.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`; or it is another teacher's, or of other images.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        if hdf5.attribute(path, hdf5.attributes_of(file), "identity") != identity:
            raise BadFileError(f"{path} holds other answers than its name says: delete it and run again")
        logits: NDArray[np.float32] = hdf5.read(path, file, "logits", dtype="float32", shape=(None, None))
        return logits
