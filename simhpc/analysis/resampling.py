"""Resampling models: pairs that share a model are not independent, so it is models that are drawn, and not pairs.

N models are drawn with replacement; a pair of models drawn w_i and w_j times counts w_i * w_j times. Copies of one
model are no pair. So every mean over pairs is a quotient of two quadratic forms in w.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def model_weights(n: int, resamples: int, seed: int) -> Matrix:
    """How often each of n models is drawn in each resample: (B, n), rows sum to n."""
    random = np.random.default_rng(seed)
    return random.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)


def pair_means(weights: Matrix, filled: Matrix, which: NDArray[np.bool_]) -> Matrix:
    """Mean of the marked pairs in each resample: (B,), NaN where none was drawn.

    Args:
        weights: (B, N), as of `model_weights`.
        filled: (N, N), symmetric, finite where `which` is.
        which: (N, N), symmetric, false on the diagonal.
    """
    total = np.einsum("bi,bi->b", weights @ which, weights)
    summed = np.einsum("bi,bi->b", weights @ np.where(which, filled, 0.0), weights)
    mean: Matrix = np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
    return mean
