"""`representations/<model>.h5`: what one model makes of the clean images, for measures that look inside networks.

Features (what it makes of an image right before it classifies it) of all images, and input gradients of some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError
from simhpc.store import hdf5
from simhpc.store.filecache import cached_by_file
from simhpc.store.provenance import Provenance

KIND, VERSION = "simhpc-representations", 1

_GRADIENTS = "gradients/values"


@dataclass(frozen=True)
class Header:
    """What can be known of a file without reading its data.

    Attributes:
        settings: the study's settings for this stage as JSON.
        features_from: where in the network the features are; or why there are none.
        n_images: N of the image set.
        n_features: D; 0 if there are none.
        n_gradients: n.
        size_px: side S of the images that gradients are taken at.
        forward_passes, gradient_passes: images that were computed for it; a gradient pass has a forward pass in it.
        content_sha256: identity of the whole content.
    """

    provenance: Provenance
    settings: str
    features_from: str
    n_images: int
    n_features: int
    n_gradients: int
    size_px: int
    forward_passes: int
    gradient_passes: int
    content_sha256: str


@dataclass(frozen=True)
class Representations:
    """One model's features and input gradients.

    Attributes:
        settings, features_from, forward_passes, gradient_passes: as in `Header`.
        features: float16 (N, D), divided by `scale`.
        scale: a power of two, so that no feature is too large or too small for 16 bits.
        index: int32 (n,), increasing positions in the image set, of the images whose gradients these are.
        gradients: float16 (n, 3, S, S), of the loss of the true class by the stored pixels in [0, 1], each divided by
            its Euclidean norm; 0 where that is 0.
        norms: float32 (n,), those norms.
        noise_cosines: float32 (n,), cosine of the gradients at two noisy copies of the image; NaN where one is 0.
    """

    provenance: Provenance
    settings: str
    features_from: str
    forward_passes: int
    gradient_passes: int
    features: NDArray[np.float16]
    scale: float
    index: NDArray[np.int32]
    gradients: NDArray[np.float16]
    norms: NDArray[np.float32]
    noise_cosines: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        hdf5.write(
            path,
            kind=KIND,
            version=VERSION,
            attributes={
                **self.provenance.attributes(),
                "settings": self.settings,
                "features_from": self.features_from,
                "n_images": self.features.shape[0],
                "n_features": self.features.shape[1],
                "n_gradients": len(self.index),
                "size_px": self.gradients.shape[-1],
                "forward_passes": self.forward_passes,
                "gradient_passes": self.gradient_passes,
            },
            datasets={
                "features/values": self.features,
                "features/scale": np.array([self.scale]),
                "gradients/index": self.index,
                _GRADIENTS: self.gradients,
                "gradients/norm": self.norms,
                "gradients/noise_cosine": self.noise_cosines,
            },
        )


@cached_by_file
def header(path: Path) -> Header:
    """Read the header, and check that the datasets have the shapes it promises.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        attributes = hdf5.attributes_of(file)

        def said(name: str) -> int:
            return int(hdf5.attribute(path, attributes, name))

        found = Header(
            provenance=Provenance.from_attributes(path, attributes),
            settings=str(hdf5.attribute(path, attributes, "settings")),
            features_from=str(hdf5.attribute(path, attributes, "features_from")),
            n_images=said("n_images"),
            n_features=said("n_features"),
            n_gradients=said("n_gradients"),
            size_px=said("size_px"),
            forward_passes=said("forward_passes"),
            gradient_passes=said("gradient_passes"),
            content_sha256=str(hdf5.attribute(path, attributes, "content_sha256")),
        )
        n, side = found.n_gradients, found.size_px
        for name, dtype, shape in (
            ("features/values", "float16", (found.n_images, found.n_features)),
            ("features/scale", "float64", (1,)),
            ("gradients/index", "int32", (n,)),
            (_GRADIENTS, "float16", (n, 3, side, side)),
            ("gradients/norm", "float32", (n,)),
            ("gradients/noise_cosine", "float32", (n,)),
        ):
            hdf5.dataset(path, file, name, dtype=dtype, shape=shape)
    return found


def load_features(path: Path) -> NDArray[np.float32]:
    """The features as the model gave them: float32 (N, D).

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        stored = hdf5.read(path, file, "features/values", dtype="float16", shape=(None, None))
        scale = hdf5.read(path, file, "features/scale", dtype="float64", shape=(1,))
    values: NDArray[np.float32] = stored.astype(np.float32)
    values *= np.float32(scale[0])
    return values


@dataclass(frozen=True)
class Gradients:
    """All that a file says of gradients, but themselves.

    Attributes:
        index, norms, noise_cosines: as in `Representations`.
    """

    index: NDArray[np.int32]
    norms: NDArray[np.float32]
    noise_cosines: NDArray[np.float32]


def load_gradients(path: Path) -> Gradients:
    """What is small of them.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`; or the positions do not increase.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        index = hdf5.read(path, file, "gradients/index", dtype="int32", shape=(None,))
        if np.any(np.diff(index) <= 0) or (len(index) and (index[0] < 0 or index[-1] >= file.attrs["n_images"])):
            raise BadFileError(f"{path}: 'gradients/index' does not increase within the image set")
        return Gradients(
            index=index,
            norms=hdf5.read(path, file, "gradients/norm", dtype="float32", shape=(len(index),)),
            noise_cosines=hdf5.read(path, file, "gradients/noise_cosine", dtype="float32", shape=(len(index),)),
        )


def iterate_gradients(path: Path, most_bytes: int = 1 << 24) -> Iterator[NDArray[np.float16]]:
    """The gradients one by one, in order: float16 (3, S, S).

    They are read several at a time, and the file is closed in between: a process may not have a thousand open.

    Args:
        most_bytes: of gradients to hold; a chunk (a mebibyte, or one gradient) is held in any case.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`; or the file has been replaced meanwhile; when the data do
            not match their checksum, after the last gradient. Results are to be kept only once the iteration has ended.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        found = hdf5.dataset(path, file, _GRADIENTS, dtype="float16", shape=(None, 3, None, None))
        shape, stored, content = found.shape, found.attrs.get("sha256"), file.attrs.get("content_sha256")
        chunk = found.chunks[0] if found.chunks else 1
    digest = hdf5.ArrayHash("<f2", shape)
    # Whole chunks, as a part of one is read with all of it.
    rows = max(1, most_bytes // (math.prod(shape[1:]) * 2 * chunk)) * chunk if math.prod(shape) else 1
    for start in range(0, shape[0], rows):
        with hdf5.opened(path, kind=KIND, version=VERSION) as file:
            if file.attrs.get("content_sha256") != content:
                raise BadFileError(f"{path} was replaced while it was being read: run again")
            some: NDArray[np.float16] = file[_GRADIENTS][start : start + rows]
        digest.update(some)
        yield from some
    if digest.hexdigest() != stored:
        raise BadFileError(f"{path}: the data of {_GRADIENTS!r} do not match their checksum: delete it and run again")
