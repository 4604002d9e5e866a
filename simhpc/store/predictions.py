"""`predictions/<model>.h5`: what one model answers to the clean images and to every adversarial set.

Enough, together with the other models' prediction files, to recompute every measure without the images,
the weights or a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError
from simhpc.store import hdf5
from simhpc.store.filecache import cached_by_file
from simhpc.store.provenance import Provenance

KIND, VERSION = "simhpc-predictions", 3

_PROBABILITIES = "clean/probabilities"
_SOURCES = "sources_sha256"

NOT_SHOWN = -1
"""Prediction of an image that was not shown: outside X_AB, it can enter no measure."""


@dataclass(frozen=True)
class PredictionSet:
    """One target model B's answers.

    Attributes:
        labels: int32 (N,), true classes of the image set.
        clean_pred: int32 (N,), predictions on the clean images.
        clean_margin: float16 (N,), logit of the true class minus the largest other logit.
        clean_probabilities: float16 (N, K), softmax of the logits on the clean images.
        sources: M keys of the attacked models A.
        source_sha256: M `content_sha256` of their adversarial sets.
        adv_pred: int32 (M, N), B's prediction on A's version of image i, or `NOT_SHOWN` outside X_AB.
        adv_margin: float16 (M, N), likewise, NaN outside X_AB.
    """

    provenance: Provenance
    labels: NDArray[np.int32]
    clean_pred: NDArray[np.int32]
    clean_margin: NDArray[np.float16]
    clean_probabilities: NDArray[np.float16]
    sources: list[str]
    source_sha256: list[str]
    adv_pred: NDArray[np.int32]
    adv_margin: NDArray[np.float16]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        hdf5.write(
            path,
            kind=KIND,
            version=VERSION,
            attributes={
                **self.provenance.attributes(),
                _SOURCES: sources_identity(dict(zip(self.sources, self.source_sha256, strict=True))),
            },
            datasets={
                "labels": self.labels,
                "clean/pred": self.clean_pred,
                "clean/margin": self.clean_margin,
                _PROBABILITIES: self.clean_probabilities,
                "adversarial/source": np.array(self.sources, dtype=object),
                "adversarial/source_sha256": np.array(self.source_sha256, dtype=object),
                "adversarial/pred": self.adv_pred,
                "adversarial/margin": self.adv_margin,
            },
        )


def load(path: Path) -> PredictionSet:
    """Read and check the whole file.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        found = _outline(path, file)
        n, m = len(found.labels), len(found.sources)
        return PredictionSet(
            provenance=found.provenance,
            labels=found.labels,
            clean_pred=found.clean_pred,
            clean_margin=hdf5.read(path, file, "clean/margin", dtype="float16", shape=(n,)),
            clean_probabilities=hdf5.read(path, file, _PROBABILITIES, dtype="float16", shape=(n, None)),
            sources=found.sources,
            source_sha256=found.source_sha256,
            adv_pred=hdf5.read(path, file, "adversarial/pred", dtype="int32", shape=(m, n)),
            adv_margin=hdf5.read(path, file, "adversarial/margin", dtype="float16", shape=(m, n)),
        )


@dataclass(frozen=True)
class Outline:
    """All of a file but the answers to adversarial images and the probabilities, which are nearly all of its bytes,
    and the margins.

    Attributes:
        content_sha256: identity of the whole content.
        num_classes: K, of the model; where a study says so, not that of the image set.
        labels, clean_pred, sources, source_sha256: as in `PredictionSet`.
    """

    provenance: Provenance
    content_sha256: str
    num_classes: int
    labels: NDArray[np.int32]
    clean_pred: NDArray[np.int32]
    sources: list[str]
    source_sha256: list[str]


def outline(path: Path) -> Outline:
    """Read and check the outline.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        return _outline(path, file)


def _outline(path: Path, file: h5py.File) -> Outline:
    attributes = hdf5.attributes_of(file)
    labels = hdf5.read(path, file, "labels", dtype="int32", shape=(None,))
    sources = hdf5.read(path, file, "adversarial/source", dtype="str", shape=(None,))
    hashes = hdf5.read(path, file, "adversarial/source_sha256", dtype="str", shape=(len(sources),))
    return Outline(
        provenance=Provenance.from_attributes(path, attributes),
        content_sha256=str(hdf5.attribute(path, attributes, "content_sha256")),
        num_classes=hdf5.dataset(path, file, _PROBABILITIES, dtype="float16", shape=(len(labels), None)).shape[1],
        labels=labels,
        clean_pred=hdf5.read(path, file, "clean/pred", dtype="int32", shape=(len(labels),)),
        # The same texts stand in every file: who reads a thousand shall not hold a million of them.
        sources=[sys.intern(key) for key in sources],
        source_sha256=[sys.intern(sha256) for sha256 in hashes],
    )


def iterate_adversarial(path: Path, of: Outline) -> Iterator[NDArray[np.int32]]:
    """`adv_pred` in slices along the sources, in order: int32 (R, N), about a megabyte each.

    Args:
        of: what `outline(path)` has returned.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`; or the file has been replaced since. When the data do not
            match their checksum, this comes after the last slice. Results are to be kept only once the iteration
            has ended.
    """
    with _opened_again(path, of) as file:
        shape = (len(of.sources), len(of.labels))
        found = hdf5.dataset(path, file, "adversarial/pred", dtype="int32", shape=shape)
        digest = hdf5.ArrayHash("<i4", shape)
        rows = found.chunks[0] if found.chunks else 1
        for start in range(0, len(of.sources), rows):
            pred: NDArray[np.int32] = found[start : start + rows]
            digest.update(pred)
            yield pred
        if digest.hexdigest() != found.attrs.get("sha256"):
            raise BadFileError(_altered(path, "adversarial/pred"))


def iterate_probabilities(path: Path, of: Outline) -> Iterator[NDArray[np.float16]]:
    """`clean_probabilities` in blocks of images, in order: float16 (R, K), a megabyte each.

    Files of the same image set and as many classes have blocks of the same images, so that those of many models can be
    walked through side by side. No file stays open between two blocks: a process may not open a thousand.

    Args:
        of: what `outline(path)` has returned.

    Raises:
        MissingInputError, BadFileError: as from `iterate_adversarial`, a wrong checksum after the last block.
    """
    with _opened_again(path, of) as file:
        found = hdf5.dataset(path, file, _PROBABILITIES, dtype="float16", shape=(len(of.labels), of.num_classes))
        rows, stored = found.chunks[0] if found.chunks else 1, found.attrs.get("sha256")
        digest = hdf5.ArrayHash("<f2", found.shape)
    for start in range(0, len(of.labels), rows):
        with _opened_again(path, of) as file:
            block: NDArray[np.float16] = file[_PROBABILITIES][start : start + rows]
        digest.update(block)
        yield block
    if digest.hexdigest() != stored:
        raise BadFileError(_altered(path, _PROBABILITIES))


@contextlib.contextmanager
def _opened_again(path: Path, of: Outline) -> Iterator[h5py.File]:
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        if file.attrs.get("content_sha256") != of.content_sha256:
            raise BadFileError(f"{path} was replaced while it was being read: run again")
        yield file


def _altered(path: Path, name: str) -> str:
    return f"{path}: the data of {name!r} do not match their checksum: delete it and run again"


@dataclass(frozen=True)
class Header:
    """What can be known of a file without reading the predictions.

    Attributes:
        content_sha256: identity of the whole content.
        sources_sha256: `sources_identity` of the adversarial sets that it covers.
    """

    provenance: Provenance
    content_sha256: str
    sources_sha256: str


@cached_by_file
def header(path: Path) -> Header:
    """Who made the file, and what it covers.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    attributes = hdf5.attributes(path, kind=KIND, version=VERSION)
    # Files of before do not say it.
    covers = attributes[_SOURCES] if _SOURCES in attributes else sources_sha256(path)
    return Header(
        provenance=Provenance.from_attributes(path, attributes),
        content_sha256=str(hdf5.attribute(path, attributes, "content_sha256")),
        sources_sha256=str(covers),
    )


def sources_sha256(path: Path) -> str:
    """`sources_identity` of what a file lists: of a thousand sources it takes milliseconds.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        sources = hdf5.read(path, file, "adversarial/source", dtype="str", shape=(None,))
        hashes = hdf5.read(path, file, "adversarial/source_sha256", dtype="str", shape=(len(sources),))
    return sources_identity(dict(zip(sources, hashes, strict=True)))


def sources_identity(sources: Mapping[str, str]) -> str:
    """Identity of a collection of adversarial sets: model key to `content_sha256`."""
    return hashlib.sha256(json.dumps(dict(sources), sort_keys=True).encode()).hexdigest()
