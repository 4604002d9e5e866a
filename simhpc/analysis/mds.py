"""Models as points in the plane: classical multidimensional scaling (Torgerson 1952; Gower 1966)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Plane:
    """Where N models lie.

    Attributes:
        points: (N, 2), in the unit of the distances, centred; the first axis has the larger variance. An axis that
            does not exist (fewer than three models, all distances equal to 0) is 0.
        share: in [0, 1], sum of the two eigenvalues that are drawn over the sum of the absolute values of all (Mardia
            1978): 1 where the plane shows the distances exactly; NaN where all distances are 0.
    """

    points: Matrix
    share: float


def plane(distances: Matrix) -> Plane:
    """The points in the plane whose distances are nearest to those given, in the sense of the strain.

    Eigenvectors are known up to their sign: of each axis the entry that is largest in size is made positive, of equal
    ones the first.

    Args:
        distances: (N, N), symmetric, >= 0, 0 on the diagonal, all known. They need not be those of any points.
    """
    n = len(distances)
    if n == 0:
        return Plane(np.zeros((0, 2)), np.nan)
    squares = distances**2
    means = squares.mean(axis=0)
    values, vectors = np.linalg.eigh(-0.5 * (squares - means - means[:, None] + squares.mean()))
    total = float(np.abs(values).sum())
    largest = np.argsort(-values, kind="stable")[:2]
    drawn = np.zeros(2)
    # What rounding leaves of an eigenvalue of 0 is no axis.
    drawn[: len(largest)] = np.where(values[largest] > 1e-12 * total, values[largest], 0.0)
    points = np.zeros((n, 2))
    points[:, : len(largest)] = vectors[:, largest]
    for axis in points.T:
        sizes = np.abs(axis)
        axis *= np.sign(axis[np.argmax(sizes > (1.0 - 1e-9) * sizes.max())]) or 1.0
    return Plane(points * np.sqrt(drawn), float(drawn.sum()) / total if total > 0 else np.nan)
