"""SAT: from per-image predictions to one similarity per pair of models (docs/method.md, section 1).

For models A, B with correctly classified images X_A, X_B and X_AB their intersection,

    SAT(A, B) = ln(max(floor, 100 * (rate(A->B) + rate(B->A)) / 2)),

where rate(A->B) is the share of X_AB whose version attacked against A fools B. The diagonal is the share of
X_A that fools A itself, measured like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Counts = NDArray[np.int64]
Matrix = NDArray[np.float64]


def pack_bits(flags: NDArray[np.bool_]) -> Bits:
    """Flags (..., N) as words (..., ceil(N / 64)), zeros at the end: 64 images per machine operation."""
    n = flags.shape[-1]
    padded = np.zeros((*flags.shape[:-1], -(-n // 64) * 64), dtype=bool)
    padded[..., :n] = flags
    return np.packbits(padded, axis=-1).view(np.uint64)


@dataclass(frozen=True)
class PairCounts:
    """Numbers of images for M models; the statistic that every rate and interval of a pair is made from.

    Attributes:
        common: int64 (M, M), |X_AB|; symmetric.
        fooled: int64 (M, M), of those, how many attacked against row A fool column B; -1 where not measured.
        both: int64 (M, M), how many do so in both directions; symmetric; -1 where a direction is missing.
    """

    common: Counts
    fooled: Counts
    both: Counts


def count_pairs(correct: Bits, fooled: Bits, measured: NDArray[np.bool_]) -> PairCounts:
    """Count fooled images of all pairs.

    Args:
        correct: (M, W), images that each model classifies correctly when clean.
        fooled: (M, M, W), [a, b]: images of X_AB whose version attacked against a fools b.
        measured: (M, M), whether [a, b] is known.
    """
    m = len(correct)
    common, hits, both = (np.zeros((m, m), dtype=np.int64) for _ in range(3))
    for a in range(m):  # a row at a time: (M, W) words of memory
        common[a] = np.bitwise_count(correct[a] & correct).sum(-1, dtype=np.int64)
        hits[a] = np.bitwise_count(fooled[a]).sum(-1, dtype=np.int64)
        both[a] = np.bitwise_count(fooled[a] & fooled[:, a]).sum(-1, dtype=np.int64)
    hits[~measured] = -1
    both[~(measured & measured.T)] = -1
    return PairCounts(common, hits, both)


def fooling_rates(fooled: Counts, common: Counts) -> Matrix:
    """Share of X_AB attacked against row A that fools column B: (M, M) in [0, 1].

    Args:
        fooled, common: as in `PairCounts`; NaN results where `fooled` is negative or `common` not positive.
    """
    known = (fooled >= 0) & (common > 0)
    rates: Matrix = np.divide(fooled, common, out=np.full(common.shape, np.nan), where=known)
    return rates


def sat(mean_rate: Matrix, floor_percent: float) -> Matrix:
    """ln(max(floor_percent, 100 * mean_rate)) elementwise; `mean_rate` in [0, 1], NaN stays NaN."""
    result: Matrix = np.log(np.maximum(floor_percent, 100.0 * mean_rate))
    return result


def sat_matrix(counts: PairCounts, floor_percent: float) -> Matrix:
    """SAT of all pairs: (M, M), symmetric, in [ln floor_percent, ln 100]; NaN where a direction is unknown."""
    rates = fooling_rates(counts.fooled, counts.common)
    return sat((rates + rates.T) / 2.0, floor_percent)


def bootstrap_intervals(
    counts: PairCounts, *, floor_percent: float, confidence: float, samples: int, seed: int
) -> tuple[Matrix, Matrix]:
    """Confidence intervals of SAT over images: percentile bootstrap within X_AB.

    An image of X_AB scores 0, 1/2 or 1, by the number of directions in which it fools; the mean score is the
    mean rate. Resampling images is resampling three counts from a multinomial, so the bootstrap needs the
    counts alone. Where all images score alike, resampling shows no spread at all; there the exact binomial
    (Clopper-Pearson) bound on the share of images that might score otherwise takes its place.

    The interval is a function of the pair's counts and `seed`: it does not depend on the order of models.

    Returns:
        lower and upper ends, (M, M), symmetric, NaN where SAT is.
    """
    lower, upper = np.full(counts.common.shape, np.nan), np.full(counts.common.shape, np.nan)
    one_way = counts.fooled + counts.fooled.T - 2 * counts.both
    known = (counts.both >= 0) & (counts.common > 0)
    keys = np.stack([counts.common, one_way, counts.both], axis=-1)[known]
    distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
    ends = np.array(
        [_mean_rate_interval(n, n_one, n_both, confidence, samples, seed) for n, n_one, n_both in distinct.tolist()]
    )
    if len(distinct):
        lower[known], upper[known] = sat(ends[inverse.reshape(-1)], floor_percent).T
    return lower, upper


def _mean_rate_interval(
    n: int, n_one: int, n_both: int, confidence: float, samples: int, seed: int
) -> tuple[float, float]:
    """Interval of the mean score of n images, n_one of which score 1/2 and n_both score 1."""
    alpha = 1.0 - confidence
    n_none = n - n_one - n_both
    if n in (n_none, n_one, n_both):
        mean = (n_both + n_one / 2.0) / n
        otherwise = 1.0 - (alpha / 2.0) ** (1.0 / n)
        return mean * (1.0 - otherwise), mean + (1.0 - mean) * otherwise
    random = np.random.default_rng([seed, n, n_one, n_both])
    draws = random.multinomial(n, [n_none / n, n_one / n, n_both / n], size=samples)
    means = (draws[:, 2] + draws[:, 1] / 2.0) / n
    low, high = np.quantile(means, [alpha / 2.0, 1.0 - alpha / 2.0])
    return float(low), float(high)


def floor_binds(counts: PairCounts, floor_percent: float) -> NDArray[np.bool_]:
    """(M, M), where the floor and not the measured rate decides the number."""
    rates = fooling_rates(counts.fooled, counts.common)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.bool_] = 50.0 * (rates + rates.T) < floor_percent
    return result


def similarity_order(similarity: NDArray[Any]) -> NDArray[np.int64]:
    """An order of the models that puts alike ones side by side, for heatmaps.

    Average-linkage clustering of `max - similarity` with optimal leaf ordering (Bar-Joseph et al. 2001,
    scipy.cluster.hierarchy). Unknown pairs count as the least alike.

    Args:
        similarity: (M, M), symmetric, may hold NaN.

    Returns:
        int64 (M,), a permutation of 0..M-1.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    m = len(similarity)
    off_diagonal = ~np.eye(m, dtype=bool)
    known = np.isfinite(similarity) & off_diagonal
    if m < 3 or not known.any():
        return np.arange(m)
    filled = np.where(known, similarity, similarity[known].min())
    distance = filled[known].max() - filled
    np.fill_diagonal(distance, 0.0)
    tree = hierarchy.linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return hierarchy.leaves_list(tree).astype(np.int64)
