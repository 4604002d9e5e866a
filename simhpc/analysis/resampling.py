"""Resampling models: means and rank correlations over pairs or groups of models, and how they vary with the models.

Pairs that share a model are not independent, and neither are ensembles: N models are drawn with replacement, not
pairs. A group of models that were drawn w_1, w_2, ... times then counts w_1 * w_2 * ... times; copies of one model are
no pair. So every mean over pairs is a quotient of two quadratic forms in w.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Positions = NDArray[np.int64]

_AT_ONCE = 1 << 21
"""Numbers of an array that is worked on at once: 16 MiB."""

MOST_UNDEFINED = 0.05
"""Share of resamples that may leave nothing to compute."""


def model_weights(n_models: int, resamples: int, seed: int) -> Matrix:
    """How often each model is drawn in each resample: float64 (R, N), rows sum to N."""
    random = np.random.default_rng(seed)
    return random.multinomial(n_models, np.full(n_models, 1.0 / n_models), size=resamples).astype(np.float64)


def pair_means(weights: Matrix, filled: Matrix, which: NDArray[np.bool_]) -> Matrix:
    """Mean of the marked pairs in each resample: (R,), NaN where none was drawn.

    Args:
        weights: (R, N), as of `model_weights`.
        filled: (N, N), symmetric, finite where `which` is.
        which: (N, N), symmetric, false on the diagonal.
    """
    total = np.einsum("bi,bi->b", weights @ which, weights)
    summed = np.einsum("bi,bi->b", weights @ np.where(which, filled, 0.0), weights)
    mean: Matrix = np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)
    return mean


def group_weights(weights: Matrix, members: Positions) -> Matrix:
    """How often each of E groups of s different models occurs: (R, N) and int (E, s) to (R, E)."""
    product = weights[:, members[:, 0]].copy()
    for column in members.T[1:]:
        product *= weights[:, column]
    return product


def rank_correlations(values: Matrix, members: Positions, weights: Matrix) -> Matrix:
    """Spearman's correlation of Q quantities over E groups of models, in each of R resamples of the models.

    Args:
        values: float64 (Q, E), finite.
        members: int (E, s), the models of each group.
        weights: (R, N), from `model_weights`; ones for the correlation in what was seen itself.

    Returns:
        (R, Q, Q), NaN where fewer than three groups have any weight, or a quantity has one value in all of them.
        Equal to scipy's `spearmanr` over groups repeated as often as they count.
    """
    q, e = values.shape
    found = np.full((len(weights), q, q), np.nan)
    if e < 3:
        return found
    step = max(1, _AT_ONCE // e)
    sorted_values = [np.unique(row, return_inverse=True) for row in values]
    for start in range(0, len(weights), step):
        counts = group_weights(weights[start : start + step], members)
        total = counts.sum(axis=1, keepdims=True)
        centred = np.empty((q, *counts.shape))
        for row, (distinct, place) in zip(centred, sorted_values, strict=True):
            of_value = _summed(counts, place, len(distinct))
            # The mean rank of equal values, as for ties: half of themselves stand before them.
            middle = np.cumsum(of_value, axis=1) - of_value / 2.0
            row[:] = middle[:, place] - total / 2.0
        covariance = np.einsum("qre,pre,re->rqp", centred, centred, counts, optimize=True)
        variance = np.diagonal(covariance, axis1=1, axis2=2)
        enough = ((counts > 0).sum(axis=1) >= 3)[:, None]
        # A quantity without spread has exactly 0 here but for rounding.
        spread = np.where(enough & (variance > 1e-9 * total**3), variance, np.nan)
        scale = np.sqrt(spread[:, :, None] * spread[:, None, :])
        found[start : start + step] = np.clip(covariance / scale, -1.0, 1.0)
    return found


def partial(correlations: Matrix, x: int, y: int, given: int) -> Matrix:
    """Partial correlation of x and y given a third quantity: (R, Q, Q) to (R,), NaN where that determines one."""
    xy, xz, yz = correlations[:, x, y], correlations[:, x, given], correlations[:, y, given]
    left = (1.0 - xz**2) * (1.0 - yz**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(left > 1e-9, np.clip((xy - xz * yz) / np.sqrt(left), -1.0, 1.0), np.nan)


def interval(resampled: Matrix, confidence: float) -> tuple[float, float]:
    """Percentile interval of (R,) resampled numbers; NaN where more than `MOST_UNDEFINED` of them are not defined.

    Those that are left then are of peculiar draws, and their interval would look surer than anything is.
    """
    defined = resampled[np.isfinite(resampled)]
    if len(resampled) - len(defined) > MOST_UNDEFINED * len(resampled):
        return float("nan"), float("nan")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(defined, [tail, 100.0 - tail])
    return float(low), float(high)


def _summed(counts: Matrix, place: Positions, n_places: int) -> Matrix:
    """Sums of the columns of (R, E) that share a place: (R, n_places)."""
    if n_places == counts.shape[1]:
        ordered: Matrix = counts[:, np.argsort(place)]
        return ordered
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(n_places))
    summed: Matrix = np.add.reduceat(counts[:, order], starts, axis=1)
    return summed
