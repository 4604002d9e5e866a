"""`partial/attack/<model>/<identity>/`: the finished batches of an attack that is not finished, one file each.

A file never changes, and any copy of the task would write the same one: two copies at once, on a lost node and
on its replacement, cannot mix anything up.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError
from simhpc.store import hdf5

KIND, VERSION = "simhpc-attack-part", 1


@dataclass(frozen=True)
class AttackParts:
    """The parts of one attack.

    Attributes:
        folder: of the model; parts of another identity lie beside each other in it.
        identity: SHA-256 over all that decides their content.
    """

    folder: Path
    identity: str

    def save(self, first: int, images: NDArray[np.uint8]) -> None:
        """Write one batch atomically: `images` uint8 (B, 3, H, W), of the positions from `first` on."""
        hdf5.write(
            self._own / f"{first:07d}.h5",
            kind=KIND,
            version=VERSION,
            attributes={"identity": self.identity, "first": first},
            datasets={"images": images},
        )

    def load(self) -> dict[int, NDArray[np.uint8]]:
        """All batches of this attack that are whole, by first position; others are left out, never an error."""
        found = {}
        for path in sorted(self._own.glob("*.h5")):
            try:
                with hdf5.opened(path, kind=KIND, version=VERSION) as file:
                    if file.attrs.get("identity") == self.identity:
                        images = hdf5.read(path, file, "images", dtype="uint8", shape=(None, 3, None, None))
                        found[int(file.attrs["first"])] = images
            except BadFileError:
                continue
        return found

    @property
    def _own(self) -> Path:
        return self.folder / self.identity[:16]


def remove(folder: Path) -> None:
    """Delete all parts of a model, whatever attack they are of."""
    # Another copy of the task may be writing there still.
    shutil.rmtree(folder, ignore_errors=True)
