"""The images of one adversarial set that can enter a measure with another model, in parts of many batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError, MissingInputError
from simhpc.store import adversarial

BATCHES = 16
"""In a part: each part but a set's last one is made of whole batches, and two parts are in memory at once."""


@dataclass(frozen=True)
class Part:
    """Some images of a set, or word that it is over.

    Attributes:
        key: whose set it is.
        positions: int32 (B,), in the image set.
        images: uint8 (B, 3, H, W), attacked.
        n_read: images of the set read so far, those that are not shown included.
        is_last: whether the whole set has been read, and agrees with its checksum.
        error: why it could not be; then it is over, too.
    """

    key: str
    positions: NDArray[np.int32]
    images: NDArray[np.uint8]
    n_read: int
    is_last: bool = False
    error: str = ""


def parts_of(key: str, path: Path, is_correct: NDArray[np.bool_], batch_size: int) -> Iterator[Part]:
    """Read one set.

    Args:
        is_correct: (N,), which images the target classifies correctly when clean: X_B.
        batch_size: images at once of the target.

    Yields:
        parts whose images are of X_AB; the last one, which may be empty, says how it ended.
    """
    nothing = np.empty(0, dtype=np.int32), np.empty((0, 3, 1, 1), dtype=np.uint8)
    n_read = 0
    try:
        index = adversarial.load_index(path)
        held_positions, held = nothing
        for images in adversarial.iterate_images(path, batch_size * BATCHES):
            positions = index[n_read : n_read + len(images)]
            n_read += len(images)
            common = np.flatnonzero(is_correct[positions])
            held_positions = np.concatenate([held_positions, positions[common]])
            # Each image is copied once; "clip" keeps numpy from copying all of them again.
            both = np.empty((len(held) + len(common), *images.shape[1:]), dtype=np.uint8)
            both[: len(held)] = held
            np.take(images, common, axis=0, out=both[len(held) :], mode="clip")
            held = both
            whole = len(held) - len(held) % batch_size
            if whole:
                yield Part(key, held_positions[:whole], held[:whole], n_read)
                held_positions, held = held_positions[whole:], held[whole:]
        yield Part(key, held_positions, held, n_read, is_last=True)
    except (BadFileError, MissingInputError) as error:
        yield Part(key, *nothing, n_read, error=str(error))
