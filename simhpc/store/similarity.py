"""`similarity.h5`: the matrix, its intervals, and the counts it was made from."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc.store import hdf5

KIND, VERSION = "simhpc-similarity", 1


@dataclass(frozen=True)
class SimilarityMatrix:
    """SAT of M models.

    Attributes:
        models: M keys, in the study's order; both axes of every matrix.
        timm_names: M timm names.
        sat, ci_low, ci_high: float64 (M, M), NaN where unknown.
        n_common: int64 (M, M), |X_AB|; -1 unknown.
        n_fooled: int64 (M, M), of those, attacked against the row and fooling the column; -1 unknown.
        n_both: int64 (M, M), fooling in both directions; -1 unknown.
        clean_accuracy: float64 (M,), a fraction, NaN unknown.
        n_images: size of the image set.
        floor_percent, confidence: the study's settings.
        inputs_sha256: identity of all that it was made from.
        problems: what was missing or invalid, one line each.
        notes: models that stand for others, and pairs whose number needs a word (empty X_AB, floor), one line each.
    """

    models: list[str]
    timm_names: list[str]
    sat: NDArray[np.float64]
    ci_low: NDArray[np.float64]
    ci_high: NDArray[np.float64]
    n_common: NDArray[np.int64]
    n_fooled: NDArray[np.int64]
    n_both: NDArray[np.int64]
    clean_accuracy: NDArray[np.float64]
    n_images: int
    floor_percent: float
    confidence: float
    inputs_sha256: str
    problems: list[str]
    notes: list[str]

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        hdf5.write(
            path,
            kind=KIND,
            version=VERSION,
            attributes={
                "n_images": self.n_images,
                "floor_percent": self.floor_percent,
                "confidence": self.confidence,
                "inputs_sha256": self.inputs_sha256,
            },
            datasets={
                "models": np.array(self.models, dtype=object),
                "timm_names": np.array(self.timm_names, dtype=object),
                "problems": np.array(self.problems, dtype=object),
                "notes": np.array(self.notes, dtype=object),
                "sat": self.sat,
                "ci_low": self.ci_low,
                "ci_high": self.ci_high,
                "n_common": self.n_common,
                "n_fooled": self.n_fooled,
                "n_both": self.n_both,
                "clean_accuracy": self.clean_accuracy,
            },
        )


def load(path: Path) -> SimilarityMatrix:
    """Read and check the file.

    Raises:
        MissingInputError, BadFileError: see `hdf5.opened`.
    """
    with hdf5.opened(path, kind=KIND, version=VERSION) as file:
        attributes = hdf5.attributes_of(file)
        models = hdf5.read(path, file, "models", dtype="str", shape=(None,))
        m = len(models)
        square = functools.partial(hdf5.read, path, file, shape=(m, m))
        return SimilarityMatrix(
            models=list(models),
            timm_names=list(hdf5.read(path, file, "timm_names", dtype="str", shape=(m,))),
            sat=square("sat", dtype="float64"),
            ci_low=square("ci_low", dtype="float64"),
            ci_high=square("ci_high", dtype="float64"),
            n_common=square("n_common", dtype="int64"),
            n_fooled=square("n_fooled", dtype="int64"),
            n_both=square("n_both", dtype="int64"),
            clean_accuracy=hdf5.read(path, file, "clean_accuracy", dtype="float64", shape=(m,)),
            n_images=hdf5.attribute(path, attributes, "n_images"),
            floor_percent=hdf5.attribute(path, attributes, "floor_percent"),
            confidence=hdf5.attribute(path, attributes, "confidence"),
            inputs_sha256=hdf5.attribute(path, attributes, "inputs_sha256"),
            problems=list(hdf5.read(path, file, "problems", dtype="str", shape=(None,))),
            notes=list(hdf5.read(path, file, "notes", dtype="str", shape=(None,))),
        )


def inputs_sha256(path: Path) -> str:
    """Identity of what the matrix was made from, without reading it."""
    return str(hdf5.attribute(path, hdf5.attributes(path, kind=KIND, version=VERSION), "inputs_sha256"))
