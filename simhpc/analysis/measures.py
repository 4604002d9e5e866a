"""Other measures of how alike two models answer, and how far they say the same as SAT (docs/analyses.md, "Measures").

These look at answers to clean images only: one forward pass per model and image, none per pair.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis import resampling
from simhpc.analysis.reliability import spearman_brown
from simhpc.analysis.representations import correlation_of_halves, halves
from simhpc.analysis.similarity import PairCounts, sat
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Positions = NDArray[np.int64]

_TINY = 1e-12
_MOST_COMPARISONS = 5e9
"""Numbers that `divergence_images` lets be compared: ten seconds on one core."""
_FEWEST_IMAGES = 200
_PAIRS_AT_ONCE = 1000
_MOST_BATCHES = 20
"""Of images, halves of which are halves of the images."""


@dataclass(frozen=True)
class Settings:
    """How measures are compared.

    Attributes:
        image_resamples: of the images, for standard errors.
        resamples: of the models, for intervals.
        confidence: of the intervals.
        n_differing: pairs that are named, of those that a measure and SAT rank most differently.
        seed: of everything random.
    """

    image_resamples: int = 500
    resamples: int = 1000
    confidence: float = 0.95
    n_differing: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Cost:
    """Passes through networks, for each image.

    Attributes:
        forwards_per_model: without a gradient.
        gradients_per_model: forward passes with the input's gradient.
        forwards_per_pair: of an unordered pair, both directions together.
    """

    forwards_per_model: int = 1
    gradients_per_model: int = 0
    forwards_per_pair: int = 0


@dataclass(frozen=True)
class Measure:
    """One number per pair of M models.

    Attributes:
        value: float64 (M, M), symmetric, NaN unknown; the diagonal is not used.
        std_error: (M, M), over images, NaN unknown; None: not known for any.
        unit: of the value.
        is_similarity: whether alike models have large values; else small ones.
        n_images: that the values were made from, at most.
        note: what it was made from, in words.
        reliability: correlation over pairs of the values from two halves of the images (Pearson's, mean over ways to
            halve them), brought to all images by Spearman and Brown's formula: the share of the spread over pairs that
            is not sampling error of the images. NaN unknown.
    """

    name: str
    value: Matrix
    std_error: Matrix | None
    unit: str
    is_similarity: bool
    n_images: int
    cost: Cost
    note: str = ""
    reliability: float = math.nan


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two measures over the pairs that both are known of, and its interval over models.

    The sign is that of the values: a similarity and a distance that agree have a negative one.
    """

    one: str
    other: str
    n_pairs: int
    rho: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Differing:
    """A pair that a measure ranks otherwise than SAT; rank 1 is the most alike pair.

    Attributes:
        a, b: positions of the models.
        of_pairs: how many were ranked.
    """

    measure: str
    a: int
    b: int
    sat_rank: float
    rank: float
    of_pairs: int


@dataclass(frozen=True)
class Comparison:
    """How measures go together.

    Attributes:
        correlations: of every two measures, in their order.
        differing: by measure; the largest differences of ranks first.
    """

    correlations: list[Correlation]
    differing: list[Differing]
    notes: list[str]


def transferability(
    value: Matrix, counts: PairCounts, floor_percent: float, cost: Cost, reliability: float, settings: Settings
) -> Measure:
    """SAT as one of the measures, its standard error by drawing images of X_AB again.

    Args:
        value: (M, M), SAT.
        counts: see `analysis.similarity`.
        reliability: it takes single images, which the counts are not of.
    """
    a, b = np.nonzero(np.triu((counts.both >= 0) & (counts.common > 0), k=1))
    two = counts.both[a, b]
    one = counts.fooled[a, b] + counts.fooled[b, a] - 2 * two

    def statistic(cells: Matrix) -> Matrix:
        return sat((cells[..., 1] + 2.0 * cells[..., 2]) / (2.0 * cells.sum(axis=-1)), floor_percent)

    cells = np.stack([counts.common[a, b] - one - two, one, two], axis=1)
    error = _symmetric(len(value), a, b, resampled_std(cells, statistic, settings, "sat"))
    n_images = int(counts.common.max(initial=0))
    return Measure("sat", value, error, "ln of a percentage", True, n_images, cost, reliability=reliability)


def error_consistency(right: NDArray[np.bool_], settings: Settings) -> Measure:
    """Cohen's kappa of being right: agreement beyond what the two accuracies give (Geirhos et al. 2020).

    (observed - expected) / (1 - expected), where observed is the share of images that both get right or both wrong, and
    expected that of two independent models of these accuracies. NaN where both get everything right, or wrong.

    Args:
        right: bool (M, N).
    """
    (m, n), (a, b) = right.shape, np.triu_indices(len(right), k=1)
    of_batches = np.stack([_cells(right[:, batch]) for batch in _batches(n, settings)])
    cells = of_batches.sum(axis=0, dtype=np.int64)
    value = _symmetric(m, a, b, kappa(cells.astype(np.float64)))
    error = _symmetric(m, a, b, resampled_std(cells, kappa, settings, "error_consistency"))
    reliability = _reliability(of_batches, kappa, settings)
    return Measure("error_consistency", value, error, "kappa", True, n, Cost(), reliability=reliability)


def _cells(right: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Counts of images as `kappa` takes them, of all unordered pairs: (M, N) to (P, 4)."""
    a, b = np.triu_indices(len(right), k=1)
    as_float = right.astype(np.float32)
    both = np.rint(as_float @ as_float.T).astype(np.int32)[a, b]
    n_right = right.sum(axis=1, dtype=np.int32)
    one, other = n_right[a] - both, n_right[b] - both
    cells: NDArray[np.int32] = np.stack([both, one, other, right.shape[1] - both - one - other], axis=1)
    return cells


def kappa(cells: Matrix) -> Matrix:
    """Cohen's kappa of (..., 4) counts: both right, only the first, only the second, none."""
    n = cells.sum(axis=-1)
    one, other = (cells[..., 0] + cells[..., 1]) / n, (cells[..., 0] + cells[..., 2]) / n
    observed = (cells[..., 0] + cells[..., 3]) / n
    expected = one * other + (1.0 - one) * (1.0 - other)
    left = 1.0 - expected
    found: Matrix = np.divide(observed - expected, left, out=np.full(left.shape, np.nan), where=left > _TINY)
    return found


def disagreement(predicted: NDArray[np.int32], settings: Settings) -> Measure:
    """Share of images on which two models answer different classes; its standard error is the bootstrap's, exactly.

    Args:
        predicted: int32 (M, N), N >= 1.
    """
    (m, n), (a, b) = predicted.shape, np.triu_indices(len(predicted), k=1)

    def cells(some: NDArray[np.int32]) -> NDArray[np.int32]:
        differ = np.stack([np.count_nonzero(row != some, axis=1) for row in some])[a, b]
        found: NDArray[np.int32] = np.stack([some.shape[1] - differ, differ], axis=1).astype(np.int32)
        return found

    def share(cells: Matrix) -> Matrix:
        found: Matrix = cells[..., 1] / cells.sum(axis=-1)
        return found

    of_batches = np.stack([cells(predicted[:, batch]) for batch in _batches(n, settings)])
    value = np.zeros((m, m))
    value[a, b] = value[b, a] = share(of_batches.sum(axis=0, dtype=np.float64))
    error, reliability = np.sqrt(value * (1.0 - value) / n), _reliability(of_batches, share, settings)
    return Measure("disagreement", value, error, "fraction", False, n, Cost(), reliability=reliability)


def divergence_images(n_models: int, n_images: int, n_classes: int, seed: int) -> Positions:
    """The images that `divergence` is made from: all, or where that would take long, some at random.

    Returns:
        int64 (n,), increasing; at least 200 where there are as many.
    """
    comparisons = n_models * (n_models - 1) / 2 * n_classes
    most = max(_FEWEST_IMAGES, int(_MOST_COMPARISONS / max(1.0, comparisons)))
    if n_images <= most:
        return np.arange(n_images)
    random = np.random.default_rng(derive_seed(seed, "divergence images"))
    return np.sort(random.choice(n_images, most, replace=False))


def divergence(blocks: Iterable[NDArray[np.float16]], images: Positions, settings: Settings) -> Measure:
    """Mean Jensen-Shannon divergence of two models' probabilities, in nats: 0 to ln 2 (Lin 1991).

    H((p + q) / 2) - (H(p) + H(q)) / 2 of each image, and the mean over images; its standard error is that of a mean,
    which is the bootstrap's. Probabilities are scaled to sum to 1: they were rounded when they were stored.

    Args:
        blocks: float16 (M, B, K) of successive images.
        images: int64 (n,), increasing positions of those that are used.
    """
    n, start = len(images), 0
    batches = _batches(n, settings)
    batch_of = np.empty(n, dtype=np.int64)
    for number, batch in enumerate(batches):
        batch_of[batch] = number
    sums, squares = np.empty((0, 0, 0)), np.empty((0, 0))
    for block in blocks:
        if not sums.size:
            sums, squares = np.zeros((len(batches), len(block), len(block))), np.zeros((len(block), len(block)))
        for k in np.flatnonzero((images >= start) & (images < start + block.shape[1])):
            found = _divergences(block[:, images[k] - start].astype(np.float32))
            sums[batch_of[k]] += found
            squares += found**2
        start += block.shape[1]
    mean = sums.sum(axis=0) / n
    error = np.sqrt(np.maximum(squares / n - mean**2, 0.0) / n)
    upper = np.triu_indices(len(mean), k=1)
    counted = np.array([len(batch) for batch in batches], dtype=np.float64)
    cells = np.stack([sums[:, *upper], np.broadcast_to(counted[:, None], (len(batches), len(upper[0])))], axis=2)
    reliability = _reliability(cells, lambda of: of[..., 0] / of[..., 1], settings)
    return Measure("js_divergence", mean + mean.T, error + error.T, "nats", False, n, Cost(), reliability=reliability)


def _divergences(probabilities: NDArray[np.float32]) -> Matrix:
    """Divergences of one image: (M, K) to (M, M), above the diagonal; 0 elsewhere."""
    m = len(probabilities)
    p = probabilities / probabilities.sum(axis=1, keepdims=True)
    # 0 ln 0 is 0, and so is this but for 1e-11.
    p = np.maximum(p, np.float32(_TINY))
    negative_entropy = np.einsum("mk,mk->m", p, np.log(p))
    sums, logs = np.empty_like(p), np.empty_like(p)
    found = np.zeros((m, m))
    for a in range(m - 1):
        # A row at a time stays in a core's cache.
        both = np.add(p[a], p[a + 1 :], out=sums[a + 1 :])
        of_sum = np.einsum("mk,mk->m", both, np.log(both, out=logs[a + 1 :]))
        found[a, a + 1 :] = (negative_entropy[a] + negative_entropy[a + 1 :] - of_sum) / 2.0 + math.log(2.0)
    # Of equal distributions rounding can leave -1e-7.
    return np.maximum(found, 0.0)


def _batches(n: int, settings: Settings) -> list[Positions]:
    """Positions of n images in batches of nearly one size, at random; an even number of batches, or one."""
    order = np.random.default_rng(derive_seed(settings.seed, "measures batches")).permutation(n)
    return np.array_split(order, max(1, min(_MOST_BATCHES, n) // 2 * 2))


def _reliability(of_batches: NDArray[Any], statistic: Callable[[Matrix], Matrix], settings: Settings) -> float:
    """`Measure.reliability` of a statistic of sums over images.

    Args:
        of_batches: (B, P, C), sums over the images of each batch, of each pair.
        statistic: float64 (P, C) sums to (P,).
    """

    def of(part: Positions) -> Matrix:
        return statistic(of_batches[part].sum(axis=0, dtype=np.float64))

    split = [(of(one), of(two)) for one, two in halves(len(of_batches), derive_seed(settings.seed, "measures halves"))]
    return spearman_brown(correlation_of_halves(np.array(split))) if split else math.nan


def resampled_std(
    cells: NDArray[np.int64], statistic: Callable[[Matrix], Matrix], settings: Settings, name: str
) -> Matrix:
    """Standard deviation of a statistic of counts over resamples of what was counted.

    Args:
        cells: int64 (P, C), images of each pair in each of C cells; every pair has some.
        statistic: float64 (..., C) counts to (...); NaN where it is not defined.

    Returns:
        (P,), over the resamples in which it is defined; NaN where these are not even half.
    """
    random = np.random.default_rng(derive_seed(settings.seed, "measures", name))
    found = np.full(len(cells), np.nan)
    for start in range(0, len(cells), _PAIRS_AT_ONCE):
        part = cells[start : start + _PAIRS_AT_ONCE]
        n = part.sum(axis=1)
        drawn = random.multinomial(n, part / n[:, None], size=(settings.image_resamples, len(part)))
        values = statistic(drawn.astype(np.float64))
        defined = np.isfinite(values)
        count = defined.sum(axis=0)
        mean = np.where(defined, values, 0.0).sum(axis=0) / np.maximum(count, 1)
        squares = np.where(defined, values - mean, 0.0) ** 2
        found[start : start + len(part)] = np.where(
            count * 2 >= len(values), np.sqrt(squares.sum(axis=0) / np.maximum(count, 1)), np.nan
        )
    return found


def _symmetric(m: int, a: Positions, b: Positions, values: Matrix) -> Matrix:
    matrix = np.full((m, m), np.nan)
    matrix[a, b] = matrix[b, a] = values
    return matrix


def compare(measures: Sequence[Measure], settings: Settings) -> Comparison:
    """How the measures rank the pairs of models, the first of them being SAT.

    Raises:
        AnalysisError: fewer than three models: there are no three pairs.
    """
    m = len(measures[0].value)
    a, b = np.triu_indices(m, k=1)
    if len(a) < 3:
        raise AnalysisError(f"it takes three pairs of models, hence three models, to compare measures; there are {m}")
    members = np.stack([a, b], axis=1)
    values = np.stack([measure.value[a, b] for measure in measures])
    weights = resampling.model_weights(m, settings.resamples, derive_seed(settings.seed, "measures"))
    correlations = _correlations([measure.name for measure in measures], values, members, weights, settings)
    differing = []
    for measure, row in zip(measures[1:], values[1:], strict=True):
        differing += _differing(measures[0], measure, values[0], row, members, settings)
    notes = [
        f"{measure.name}: more than half of its spread over pairs is sampling error of the images "
        f"(reliability {measure.reliability:.2f})"
        for measure in measures
        if measure.reliability < 0.5
    ]
    return Comparison(correlations, differing, notes)


def _correlations(
    names: Sequence[str], values: Matrix, members: Positions, weights: Matrix, settings: Settings
) -> list[Correlation]:
    # Measures that are known of the same pairs are ranked together, which is most of the work.
    by_mask: dict[bytes, list[tuple[int, int]]] = {}
    known = np.isfinite(values)
    for one, other in itertools.combinations(range(len(names)), 2):
        by_mask.setdefault((known[one] & known[other]).tobytes(), []).append((one, other))
    found = {}
    for mask, pairs in by_mask.items():
        which = np.frombuffer(mask, dtype=bool)
        rows = sorted({row for pair in pairs for row in pair})
        shared = values[rows][:, which]
        seen = resampling.rank_correlations(shared, members[which], np.ones((1, weights.shape[1])))
        drawn = resampling.rank_correlations(shared, members[which], weights)
        for one, other in pairs:
            x, y = rows.index(one), rows.index(other)
            rho = float(seen[0, x, y])
            low, high = resampling.interval(drawn[:, x, y], settings.confidence)
            found[one, other] = Correlation(names[one], names[other], int(which.sum()), rho, low, high)
    return [found[pair] for pair in itertools.combinations(range(len(names)), 2)]


def _differing(
    reference: Measure,
    measure: Measure,
    of_reference: Matrix,
    of_measure: Matrix,
    members: Positions,
    settings: Settings,
) -> list[Differing]:
    known = np.flatnonzero(np.isfinite(of_reference) & np.isfinite(of_measure))
    ranks = [
        _ranks_from_most_alike(values[known] if which.is_similarity else -values[known])
        for which, values in ((reference, of_reference), (measure, of_measure))
    ]
    order = np.argsort(-np.abs(ranks[1] - ranks[0]), kind="stable")[: settings.n_differing]
    return [
        Differing(
            measure=measure.name,
            a=int(members[known[k], 0]),
            b=int(members[known[k], 1]),
            sat_rank=float(ranks[0][k]),
            rank=float(ranks[1][k]),
            of_pairs=len(known),
        )
        for k in order
    ]


def _ranks_from_most_alike(alike: Matrix) -> Matrix:
    """Rank 1 for the largest; equal ones share their mean rank."""
    from scipy.stats import rankdata

    ranks: Matrix = rankdata(-alike)
    return ranks
