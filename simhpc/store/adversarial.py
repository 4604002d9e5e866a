"""`adversarial/<model>.h5`: the images that one model gets right, attacked against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError
from simhpc.store import hdf5
from simhpc.store.filecache import cached_by_file
from simhpc.store.provenance import Provenance

KIND, VERSION = "simhpc-adversarial", 3


@dataclass(frozen=True)
class Header:
    """What can be known of a set without reading its data.

    Attributes:
        n_images: size N of the image set.
        n_attacked: size of X_A.
        n_fooled: how many stored images fool their own model.
        size_px: side of the stored images.
        content_sha256: identity of the whole content, recorded by every prediction made from it.
    """

    provenance: Provenance
    n_images: int
    n_attacked: int
    n_fooled: int
    size_px: int
    content_sha256: str


@dataclass(frozen=True)
class AdversarialSet:
    """One model's adversarial images.

    Attributes:
        images: uint8 (N_A, 3, H, W), within eps of the clean view of the model.
        index: int32 (N_A,), increasing positions in the image set: X_A, the images classified correctly.
        clean_pred: int32 (N,), predicted class of every clean image.
        clean_margin: float16 (N,), true-class margin of every clean image.
        clean_probabilities: float16 (N, K), softmax of the logits of every clean image.
        adv_pred: int32 (N_A,), the model's own prediction on `images`.
    """

    provenance: Provenance
    images: NDArray[np.uint8]
    index: NDArray[np.int32]
    clean_pred: NDArray[np.int32]
    clean_margin: NDArray[np.float16]
    clean_probabilities: NDArray[np.float16]
    adv_pred: NDArray[np.int32]
    n_fooled: int

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        hdf5.write(
            path,
            kind=KIND,
            version=VERSION,
            attributes={
                **self.provenance.attributes(),
                "n_images": len(self.clean_pred),
                "n_attacked": len(self.index),
                "n_fooled": self.n_fooled,
                "size_px": self.images.shape[-1],
            },
            datasets={
                "images": self.images,
                "index": self.index,
                "clean_pred": self.clean_pred,
                "clean_margin": self.clean_margin,
                "clean_probabilities": self.clean_probabilities,
                "adv_pred": self.adv_pred,
            },
        )


@cached_by_file
def header(path: Path) -> Header:
    """Read the header.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    attributes = hdf5.attributes(path, kind=KIND, version=VERSION)
    numbers = {
        name: hdf5.attribute(path, attributes, name) for name in ("n_images", "n_attacked", "n_fooled", "size_px")
    }
    return Header(
        provenance=Provenance.from_attributes(path, attributes),
        **numbers,
        content_sha256=hdf5.attribute(path, attributes, "content_sha256"),
    )


def check_shapes(path: Path) -> None:
    """Check that the datasets have the shapes that the header promises, without reading them.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`; or one has another.
    """
    said = header(path)
    n, n_attacked, size_px = said.n_images, said.n_attacked, said.size_px
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        hdf5.dataset(path, file, "images", dtype="uint8", shape=(n_attacked, 3, size_px, size_px))
        hdf5.dataset(path, file, "clean_probabilities", dtype="float16", shape=(n, None))
        for name, dtype, length in _COLUMNS:
            hdf5.dataset(path, file, name, dtype=dtype, shape=({"N": n, "N_A": n_attacked}[length],))


_COLUMNS = (
    ("index", "int32", "N_A"),
    ("clean_pred", "int32", "N"),
    ("clean_margin", "float16", "N"),
    ("adv_pred", "int32", "N_A"),
)


def load_index(path: Path) -> NDArray[np.int32]:
    """X_A: int32 (N_A,), increasing positions in the image set."""
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        index = hdf5.read(path, file, "index", dtype="int32", shape=(None,))
        if np.any(np.diff(index) <= 0) or (len(index) and (index[0] < 0 or index[-1] >= file.attrs["n_images"])):
            raise BadFileError(f"{path}: 'index' does not increase within the image set")
        return index


def load_clean(path: Path) -> tuple[NDArray[np.int32], NDArray[np.float16], NDArray[np.float16]]:
    """Of every clean image: prediction int32 (N,), true-class margin float16 (N,), probabilities float16 (N, K)."""
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        return (
            hdf5.read(path, file, "clean_pred", dtype="int32", shape=(None,)),
            hdf5.read(path, file, "clean_margin", dtype="float16", shape=(None,)),
            hdf5.read(path, file, "clean_probabilities", dtype="float16", shape=(None, None)),
        )


def iterate_images(path: Path, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    """The images in slices of `batch_size`, in order: uint8 (B, 3, H, W), the last one shorter; not to be changed.

    Raises:
        BadFileError: after the last slice, when the data do not match their checksum. Results are to be
            kept only once the iteration has ended.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        found = hdf5.dataset(path, file, "images", dtype="uint8", shape=(None, 3, None, None))
        digest = hdf5.ArrayHash("|u1", found.shape)
        # Another thread hashes while these are used and the next are read: each takes as long as the other.
        with ThreadPoolExecutor(1) as pool:
            hashed: Future[None] | None = None
            for images in hdf5.unchecked_rows(found, batch_size):
                if hashed is not None:
                    hashed.result()  # no more than two slices are in memory
                hashed = pool.submit(digest.update, images)
                yield images
        if digest.hexdigest() != found.attrs.get("sha256"):
            raise BadFileError(f"{path}: the data of 'images' do not match their checksum: delete it and run again")


def load_some(path: Path, rows: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Some of the images and the model's own answers to them: uint8 (R, 3, H, W), int32 (R,), R being len(rows).

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened` and `hdf5.read_rows`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        images = hdf5.read_rows(path, file, "images", rows, dtype="uint8", shape=(None, 3, None, None))
        return images, hdf5.read(path, file, "adv_pred", dtype="int32", shape=(None,))[list(rows)]


def load(path: Path) -> AdversarialSet:
    """Read and check the whole file."""
    head = header(path)
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        images = hdf5.read(path, file, "images", dtype="uint8", shape=(None, 3, None, None))
        adv_pred = hdf5.read(path, file, "adv_pred", dtype="int32", shape=(None,))
    clean_pred, clean_margin, clean_probabilities = load_clean(path)
    return AdversarialSet(
        provenance=head.provenance,
        images=images,
        index=load_index(path),
        clean_pred=clean_pred,
        clean_margin=clean_margin,
        clean_probabilities=clean_probabilities,
        adv_pred=adv_pred,
        n_fooled=head.n_fooled,
    )
