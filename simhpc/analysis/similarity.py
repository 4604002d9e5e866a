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


def bootstrap_intervals(counts: PairCounts, *, floor_percent: float, confidence: float) -> tuple[Matrix, Matrix]:
    """Confidence intervals of SAT over images: the percentile bootstrap within X_AB, without its sampling noise.

    An image of X_AB scores 0, 1 or 2, the number of directions in which it fools; half the mean score is the mean
    rate. A resample draws n scores with the shares of the three counts, so the distribution of their sum is that
    of n independent draws: known exactly, and with it the interval that infinitely many resamples would give (Efron
    1979's ideal bootstrap). Each end leaves less than (1 - confidence) / 2 of it outside, and is the innermost that
    does. Where all images score alike, resampling shows no spread at all; there the exact binomial (Clopper-Pearson)
    bound on the share of images that might score otherwise takes its place.

    The interval of a pair is a function of its counts alone.

    Returns:
        lower and upper ends, (M, M), symmetric, NaN where SAT is.
    """
    a, b = np.nonzero(np.triu((counts.both >= 0) & (counts.common > 0)))
    n, n_two = counts.common[a, b], counts.both[a, b]
    n_one = counts.fooled[a, b] + counts.fooled[b, a] - 2 * n_two
    lower, upper = np.full(counts.common.shape, np.nan), np.full(counts.common.shape, np.nan)
    for ends, rates in zip((lower, upper), _mean_rate_intervals(n, n_one, n_two, 1.0 - confidence), strict=True):
        ends[a, b] = ends[b, a] = sat(rates, floor_percent)
    return lower, upper


def _mean_rate_intervals(n: Counts, n_one: Counts, n_two: Counts, alpha: float) -> tuple[Matrix, Matrix]:
    """Intervals (P,) of half the mean score of n images, n_one of which score 1 and n_two score 2; all (P,)."""
    mean = (n_two + n_one / 2.0) / n
    # Right where all images score alike; all others follow.
    otherwise = 1.0 - (alpha / 2.0) ** (1.0 / n)
    low, high = mean * (1.0 - otherwise), mean + (1.0 - mean) * otherwise
    variance = n_one + 4.0 * n_two - (n_one + 2.0 * n_two) ** 2 / n  # of the sum of n scores
    # By Bernstein's inequality at most _TAIL of the sum's distribution lies further above its mean, or below.
    exponent = -np.log(_TAIL)
    reach = 2.0 * exponent / 3.0 + np.sqrt((2.0 * exponent / 3.0) ** 2 + 2.0 * exponent * variance)
    widths = 2 ** np.ceil(np.log2(2.0 * reach + 2.0)).astype(np.int64)
    is_spread = (n != n_one) & (n != n_two) & (n_one + n_two > 0)
    for width in np.unique(widths[is_spread]).tolist():
        which, rows = np.flatnonzero(is_spread & (widths == width)), max(1, _BLOCK // width)
        for block in np.split(which, range(rows, len(which), rows)):
            ends = _sum_quantiles(n[block], n_one[block], n_two[block], alpha, width)
            low[block], high[block] = ends / (2.0 * n[block])
    return low, high


_TAIL = 1e-10
_BLOCK = 1 << 16
"""Numbers that are handled at once: a few arrays of this size stay in a core's cache."""


def _sum_quantiles(n: Counts, n_one: Counts, n_two: Counts, alpha: float, width: int) -> Counts:
    """Ends (2, P) of the central 1 - alpha of the sum of n draws from n scores: see `bootstrap_intervals`.

    The distribution is the inverse Fourier transform of the n-th power of one draw's. `width` consecutive values
    around the mean hold all but 2 * _TAIL of it; what lies outside is folded into them.
    """
    angle = 2.0 * np.pi / width * np.arange(width // 2 + 1)
    one, two = (n_one / n)[:, None], (n_two / n)[:, None]
    real = (1.0 - one - two) + one * np.cos(angle) + two * np.cos(2.0 * angle)
    imaginary = -one * np.sin(angle) - two * np.sin(2.0 * angle)
    first = n_one + 2 * n_two - width // 2
    with np.errstate(divide="ignore"):  # the logarithm of 0 has the right power, 0
        size = np.exp(n[:, None] / 2.0 * np.log(real**2 + imaginary**2))
    turn = n[:, None] * np.arctan2(imaginary, real) + first[:, None] * angle
    spectrum = np.empty(turn.shape, dtype=np.complex128)
    spectrum.real, spectrum.imag = size * np.cos(turn), size * np.sin(turn)
    below = np.cumsum(np.fft.irfft(spectrum, n=width), axis=-1)  # [k]: chance of at most first + k
    # Rounding must not decide a tie, such as two images of which one fools at a confidence of one half.
    slack = 1e-9
    low = np.count_nonzero(below < alpha / 2.0 - slack, axis=-1)
    high = np.count_nonzero(below <= 1.0 - alpha / 2.0 + slack, axis=-1)
    result: Counts = np.clip(first + np.stack([low, high]), 0, 2 * n)
    return result


def floor_binds(counts: PairCounts, floor_percent: float) -> NDArray[np.bool_]:
    """(M, M), where the floor and not the measured rate decides the number."""
    rates = fooling_rates(counts.fooled, counts.common)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.bool_] = 50.0 * (rates + rates.T) < floor_percent
    return result


def similarity_order(similarity: NDArray[Any]) -> NDArray[np.int64]:
    """An order of the models that puts alike ones side by side, for heatmaps.

    Average-linkage clustering of `max - similarity` with optimal leaf ordering (Bar-Joseph et al. 2001,
    scipy.cluster.hierarchy). Unknown pairs count as the least alike. Takes seconds for 1,000 models and grows with
    the cube of their number.

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
