"""`images.h5`: the N labelled images that all tasks of a study share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.store import hdf5
from simhpc.store.filecache import cached_by_file

KIND, VERSION = "simhpc-images", 2

_IDENTIFYING = ("ids", "images", "labels")
"""What makes an image set this one: not where it came from, how files were encoded or what classes are called."""


@dataclass(frozen=True)
class ImageSet:
    """The canonical images.

    Attributes:
        images: uint8 (N, 3, S, S), RGB.
        labels: int32 (N,), class index that a model must predict.
        ids: N names of the images, the same in every layout of the source, increasing.
        content_ids: N sizes and SHA-256 of the source records, by which training images are kept apart.
        classes: name of each class by class index (empty where the source has none; of ImageNet all 1,000).
        source: the study's `images.source`.
        settings_sha256: `Study.settings_sha256()`.
        sha256: identity of the set, as every file made from it records: pixels, labels and names. Set by `load`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    ids: list[str]
    content_ids: list[str]
    classes: list[str]
    source: str
    settings_sha256: str
    sha256: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes of the source: a model trained on it has as many outputs."""
        return len(self.classes)

    def save(self, path: Path) -> None:
        """Write `images.h5` atomically."""
        hdf5.write(
            path,
            kind=KIND,
            version=VERSION,
            attributes={"source": self.source, "study_sha256": self.settings_sha256},
            datasets={
                "images": self.images,
                "labels": self.labels,
                "ids": np.array(self.ids, dtype=object),
                "content_ids": np.array(self.content_ids, dtype=object),
                "classes": np.array(self.classes, dtype=object),
            },
        )


def load(path: Path) -> ImageSet:
    """Read and check `images.h5`.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        labels = hdf5.read(path, file, "labels", dtype="int32", shape=(None,))
        n = len(labels)
        attributes = hdf5.attributes_of(file)
        return ImageSet(
            images=hdf5.read(path, file, "images", dtype="uint8", shape=(n, 3, None, None)),
            labels=labels,
            ids=list(hdf5.read(path, file, "ids", dtype="str", shape=(n,))),
            content_ids=list(hdf5.read(path, file, "content_ids", dtype="str", shape=(n,))),
            classes=list(hdf5.read(path, file, "classes", dtype="str", shape=(None,))),
            source=hdf5.attribute(path, attributes, "source"),
            settings_sha256=hdf5.attribute(path, attributes, "study_sha256"),
            sha256=_identity(file),
        )


def load_span(path: Path, first: int, last: int) -> NDArray[np.uint8]:
    """Images `first` to `last`, exclusive: uint8 (last - first, 3, S, S); only their chunks' checksums are checked."""
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        found: NDArray[np.uint8] = hdf5.dataset(path, file, "images", dtype="uint8", shape=(None, 3, None, None))[
            first:last
        ]
        return found


def load_some(path: Path, positions: Sequence[int]) -> ImageSet:
    """The set with some of its images only: `images`, `labels`, `ids` and `content_ids` are theirs, in this order.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened` and `hdf5.read_rows`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        attributes = hdf5.attributes_of(file)
        labels = hdf5.read(path, file, "labels", dtype="int32", shape=(None,))
        n = len(labels)
        ids, content_ids = (hdf5.read(path, file, name, dtype="str", shape=(n,)) for name in ("ids", "content_ids"))
        return ImageSet(
            images=hdf5.read_rows(path, file, "images", positions, dtype="uint8", shape=(n, 3, None, None)),
            labels=labels[list(positions)],
            ids=[str(ids[position]) for position in positions],
            content_ids=[str(content_ids[position]) for position in positions],
            classes=list(hdf5.read(path, file, "classes", dtype="str", shape=(None,))),
            source=hdf5.attribute(path, attributes, "source"),
            settings_sha256=hdf5.attribute(path, attributes, "study_sha256"),
            sha256=_identity(file),
        )


def load_labels(path: Path) -> NDArray[np.int32]:
    """Class index of every image: int32 (N,)."""
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        return hdf5.read(path, file, "labels", dtype="int32", shape=(None,))


@cached_by_file
def identity(path: Path) -> str:
    """The set's SHA-256, without reading the images."""
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        return _identity(file)


def identity_of(chosen: ImageSet) -> str:
    """The same of a set in memory."""
    texts = np.array(chosen.ids, dtype=object)
    arrays = {"ids": texts, "images": chosen.images, "labels": chosen.labels}
    return hdf5.combined_sha256({name: hdf5.sha256_of(array) for name, array in arrays.items()})


def _identity(file: hdf5.File) -> str:
    return hdf5.combined_sha256({name: file[name].attrs["sha256"] for name in _IDENTIFYING})
