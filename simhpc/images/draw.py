"""Which images of a source a study shows: drawn, or those of a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simhpc import image_list
from simhpc.errors import ImageSourceError
from simhpc.images.names import find
from simhpc.images.source import Source
from simhpc.seeds import derive_seed
from simhpc.study import Images


def choose(labels: NDArray[np.int32], n: int, seed: int) -> NDArray[np.int64]:
    """Draw n positions stratified by class, without replacement.

    Each class gets its proportional share of n, the remainders going to the largest fractions (ties drawn);
    images within a class are drawn uniformly.

    Args:
        labels: int32 (m,), m >= n.

    Returns:
        int64 (n,), increasing.
    """
    random = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = n * counts / len(labels)
    quota = np.floor(shares).astype(int)
    by_remainder = np.lexsort((random.random(len(classes)), -(shares - quota).round(9)))
    quota[by_remainder[: n - quota.sum()]] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:share] for label, share in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def selection(spec: Images, source: Source, seed: int) -> NDArray[np.int64]:
    """Positions of the study's N images in their source: int64 (N,), increasing.

    Positions are in the order of names, so the same images are drawn from every layout.

    Raises:
        ImageSourceError: the source has fewer images than asked for; or the list has changed, is of another number of
            images, names one that is not there, or one that could be several.
    """
    available = len(source.labels)
    if available < spec.n:
        raise ImageSourceError(f"images.n: {spec.n} images asked for, {spec.source} has {available}")
    if spec.list is None:
        return choose(source.labels, spec.n, derive_seed(seed, "images"))
    wanted = _listed(spec.list, spec.list_sha256)
    if len(wanted) != spec.n:
        raise ImageSourceError(f"images.n = {spec.n}, but {spec.list} names {len(wanted)} images: leave n out")
    return np.sort(np.array(find(wanted, source.names, spec.list), dtype=np.int64))


def list_sha256(spec: Images) -> str | None:
    """Identity of the study's list, whatever its order; None where images are drawn.

    Raises:
        ImageSourceError: it cannot be read, or is not the one that the study has frozen.
    """
    return None if spec.list is None else image_list.sha256(_listed(spec.list, spec.list_sha256))


def _listed(path: str, frozen_sha256: str | None) -> list[str]:
    wanted = image_list.read(Path(path))
    if frozen_sha256 not in (None, image_list.sha256(wanted)):
        raise ImageSourceError(f"images.list_sha256: {path} names other images than it did")
    return wanted
