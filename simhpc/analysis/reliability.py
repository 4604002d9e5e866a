"""How sure a similarity matrix is: what other images would change (docs/analyses.md, "How sure is it").

All of it follows from per-image outcomes: which model is right about which image, and which attacked image fools whom.
Other sets of images are weights of the images there are: 0 or 1 for a part of them, the number of times that each is
drawn for a resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from simhpc.analysis import clusters as clustering
from simhpc.analysis.resampling import interval, model_weights, rank_correlations
from simhpc.analysis.similarity import (
    Bits,
    PairCounts,
    bootstrap_intervals,
    count_pairs,
    pack_bits,
    sat,
)
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]
Positions = NDArray[np.int64]

_BLOCK = 1 << 22
"""Numbers of an array that is worked on at once: 16 MiB."""
_FEWEST_IMAGES = 10
_SURE = 0.95


@dataclass(frozen=True)
class Settings:
    """How sureness is measured.

    Attributes:
        floor_percent, confidence: the study's, of SAT and its intervals.
        resamples: of the images, for what would stay as it is.
        cluster_resamples: the first so many of them are clustered anew.
        splits: of the images into halves.
        subsets: of the images for each number of them.
        seed: of everything random.
    """

    floor_percent: float = 0.01
    confidence: float = 0.95
    resamples: int = 500
    cluster_resamples: int = 50
    splits: int = 100
    subsets: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Outcomes:
    """What M models made of N images, as bits (`similarity.pack_bits`).

    Attributes:
        correct: (M, W), images that each model gets right when clean.
        fooled: (M, M, W), [a, b]: images of X_AB whose version attacked against a fools b.
        measured: (M, M), whether [a, b] is known.
    """

    n_images: int
    correct: Bits
    fooled: Bits
    measured: Flags


@dataclass(frozen=True)
class Width:
    """Widths of SAT's intervals for a number of images, over pairs.

    Attributes:
        is_extrapolated: to more images than there are, if these were like them.
        n_pairs: with a known interval, the fewest of the subsets.
        median, p10, p90: in units of SAT, mean over the subsets.
    """

    n_images: int
    is_extrapolated: bool
    n_pairs: int
    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class SplitHalf:
    """Correlation over pairs of the matrices of two halves of the images, and what it predicts of the whole.

    Attributes:
        n_pairs: known in both halves, the fewest of the splits.
        mean: over splits.
        splits_low, splits_high: the central 95 % of the splits. They say what the choice of the halves does, and are no
            confidence interval: all splits are of the same images.
        whole: of `mean`, by Spearman and Brown's formula 2 r / (1 + r): what the matrix of all images would correlate
            with that of as many others.
    """

    n_pairs: int
    mean: float
    splits_low: float
    splits_high: float
    whole: float


@dataclass(frozen=True)
class Agreement:
    """How alike two matrices of the same models are, over the pairs known in both.

    Attributes:
        spearman, pearson: correlations over pairs; NaN for fewer than three.
        spearman_low, spearman_high: interval of the former, over models; NaN where more than one in twenty resamples
            has too few pairs.
        same_nearest: share of the models whose nearest is the same one in both; ties count as they come.
    """

    n_models: int
    n_pairs: int
    spearman: float
    spearman_low: float
    spearman_high: float
    pearson: float
    same_nearest: float


@dataclass(frozen=True)
class Neighbours:
    """Each of M models' nearest other one, and whether it would be that with other images.

    Attributes:
        nearest, runner_up: int64 (M,), positions; -1 where there is none.
        share: (M,), of the resamples in which the nearest is the same; equally near ones share a resample.
        rank_correlation: (M,), Spearman's, of the order of all others in a resample with that in all images; mean.
        images_needed: (M,), how many images would make `share` 95 %, if the differences are what they seem; NaN where
            the nearest is a tie.
    """

    nearest: Positions
    runner_up: Positions
    share: Matrix
    rank_correlation: Matrix
    images_needed: Matrix


def resampled_sat(outcomes: Outcomes, weights: NDArray[np.integer], floor_percent: float) -> NDArray[np.float32]:
    """SAT of all unordered pairs of different models with other images: (R, P), P as `np.triu_indices(M, 1)`.

    Args:
        weights: (R, N), how often each image counts; sums below 2**24, so that float32 holds every count.

    Returns:
        NaN where a direction is not measured, or no image of X_AB has any weight.
    """
    m, n = len(outcomes.correct), outcomes.n_images
    i, j = np.triu_indices(m, k=1)
    found = np.full((len(weights), len(i)), np.nan, dtype=np.float32)
    known = np.flatnonzero(outcomes.measured[i, j] & outcomes.measured[j, i])
    by_image = np.ascontiguousarray(weights.T, dtype=np.float32)
    for block in np.split(known, range(max(1, _BLOCK // n), len(known), max(1, _BLOCK // n))):
        a, b = i[block], j[block]
        common = _unpacked(outcomes.correct[a] & outcomes.correct[b], n).astype(np.float32) @ by_image
        hits = _unpacked(outcomes.fooled[a, b], n) + _unpacked(outcomes.fooled[b, a], n)
        rates = np.full(common.shape, np.nan, dtype=np.float32)
        np.divide(hits.astype(np.float32) @ by_image, 2.0 * common, out=rates, where=common > 0)
        found[:, block] = sat(rates.astype(np.float64), floor_percent).T
    return found


def resampled_weights(n: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """How often each of n images is drawn, n draws with replacement in each resample: (R, n)."""
    random = np.random.default_rng(derive_seed(seed, "reliability images"))
    return random.multinomial(n, np.full(n, 1.0 / n), size=resamples)


def widths(outcomes: Outcomes, settings: Settings) -> list[Width]:
    """Interval widths of a sixteenth of the images up to all, and extrapolated to sixteen times as many.

    Of fewer images: of random subsets. Of more: the intervals if every image were there 2, 4 and 16 times, in
    independent versions: the counts of each pair, multiplied.
    """
    n, found = outcomes.n_images, []
    random = np.random.default_rng(derive_seed(settings.seed, "reliability subsets"))
    for size in dict.fromkeys(n // part for part in (16, 8, 4, 2)):
        if size < _FEWEST_IMAGES:
            continue
        chosen = np.zeros((settings.subsets, n), dtype=bool)
        for row in chosen:
            row[random.permutation(n)[:size]] = True
        found.append(_width([_counts(outcomes, mask) for mask in pack_bits(chosen)], size, settings))
    whole = _counts(outcomes, pack_bits(np.ones(n, dtype=bool)))
    for times in (1, 2, 4, 16):
        # -1, which is unknown, stays below 0.
        counts = PairCounts(whole.common * times, whole.fooled * times, whole.both * times)
        found.append(_width([counts], n * times, settings, is_extrapolated=times > 1))
    return found


def _counts(outcomes: Outcomes, mask: Bits) -> PairCounts:
    return count_pairs(outcomes.correct & mask, outcomes.fooled & mask, outcomes.measured)


def _width(of: list[PairCounts], n_images: int, settings: Settings, *, is_extrapolated: bool = False) -> Width:
    quantiles, numbers = [], []
    for counts in of:
        low, high = bootstrap_intervals(counts, floor_percent=settings.floor_percent, confidence=settings.confidence)
        width = (high - low)[np.triu_indices(len(low), k=1)]
        width = width[np.isfinite(width)]
        numbers.append(len(width))
        quantiles.append(np.quantile(width, [0.5, 0.1, 0.9]) if len(width) else np.full(3, np.nan))
    median, p10, p90 = np.mean(quantiles, axis=0).tolist()
    return Width(n_images, is_extrapolated, min(numbers), median, p10, p90)


def halves(outcomes: Outcomes, settings: Settings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """SAT of random halves of the images, and of the others: (splits, P) each, as of `resampled_sat`.

    Of an odd number of images one is in neither.
    """
    n = outcomes.n_images
    random = np.random.default_rng(derive_seed(settings.seed, "reliability halves"))
    masks = np.zeros((2, settings.splits, n), dtype=np.int64)
    for split in range(settings.splits):
        order = random.permutation(n)
        masks[0, split, order[: n // 2]] = masks[1, split, order[n // 2 : 2 * (n // 2)]] = 1
    both = resampled_sat(outcomes, masks.reshape(-1, n), settings.floor_percent)
    return both[: settings.splits], both[settings.splits :]


def split_half(one: NDArray[np.float32], two: NDArray[np.float32]) -> dict[str, SplitHalf]:
    """How alike the matrices of two halves are: by `pearson` and `spearman`, see `SplitHalf`.

    Raises:
        AnalysisError: fewer than three pairs are known in both halves.
    """
    known = np.isfinite(one) & np.isfinite(two)
    fewest = int(known.sum(axis=1).min())
    if fewest < 3:
        raise AnalysisError(f"it takes 3 pairs known in both halves of the images, there are {fewest}")
    found = {}
    for name, scale in (("pearson", np.asarray), ("spearman", rankdata)):
        r = np.array([_correlation(scale(a[k]), scale(b[k])) for a, b, k in zip(one, two, known, strict=True)])
        mean = low = high = np.nan
        if np.isfinite(r).any():
            mean, (low, high) = float(np.nanmean(r)), np.nanquantile(r, [0.025, 0.975]).tolist()
        found[name] = SplitHalf(fewest, mean, low, high, spearman_brown(mean))
    return found


def spearman_brown(r: float) -> float:
    """Reliability of twice as many images: 2 r / (1 + r) (Spearman 1910, Brown 1910); NaN at r = -1."""
    return 2.0 * r / (1.0 + r) if r > -1.0 else np.nan


def neighbours(similarity: Matrix, resampled: NDArray[np.float32], n_images: int) -> Neighbours:
    """How sure each model's neighbours are, see `Neighbours`.

    For the nearest b of model a and another c, let d be SAT(a, b) - SAT(a, c) and s its standard deviation over
    resamples. With k times the images s falls by the root of k, and b stays nearer than c in 95 % of resamples once
    d = 1.64 s; `images_needed` is of the c that needs most. The nearest is chosen because its d is large, so that
    this is rather too few.

    Args:
        similarity: (M, M), of all images, NaN unknown; the diagonal is not used.
        resampled: (R, P), as of `resampled_sat` with `resampled_weights`.
    """
    m = len(similarity)
    own = np.where(np.eye(m, dtype=bool), np.nan, similarity)
    has = np.isfinite(own)
    order = np.argsort(np.where(has, -own, np.inf), axis=1, kind="stable")
    n_others = has.sum(axis=1)
    nearest = np.where(n_others > 0, order[:, 0], -1)
    runner_up = np.where(n_others > 1, order[:, min(1, m - 1)], -1)
    at = np.maximum(nearest, 0)
    ranks = _ranks(own, has)
    held, correlation = np.zeros((2, m))
    total, squares = np.zeros((2, m, m))
    for drawn in _matrices(resampled, m):
        drawn = np.where(has & np.isfinite(drawn), drawn, -np.inf)
        at_nearest, highest = np.take_along_axis(drawn, at[:, None], axis=1), drawn.max(axis=1, keepdims=True)
        held += ((at_nearest == highest) / (drawn == highest).sum(axis=1, keepdims=True))[:, 0]
        correlation += _row_correlations(ranks, _ranks(drawn, has))
        with np.errstate(invalid="ignore"):
            difference = np.nan_to_num(at_nearest - drawn, nan=0.0, posinf=0.0, neginf=0.0)
        total += difference
        squares += difference**2
    n = len(resampled)
    std = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0))
    apart = np.take_along_axis(own, at[:, None], axis=1) - own
    rivals = has & (np.arange(m) != at[:, None])
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.where(apart > 0, (norm.ppf(_SURE) * std / apart) ** 2, np.nan)
        needed = np.where(rivals, n_images * factor, 0.0).max(axis=1)  # NaN, a tie, wins
    some = n_others > 1
    return Neighbours(
        nearest=nearest,
        runner_up=runner_up,
        share=np.where(n_others > 0, held / n, np.nan),
        rank_correlation=np.where(some, correlation / n, np.nan),
        images_needed=np.where(some, np.maximum(np.ceil(needed), 1.0), np.nan),
    )


def agreement(one: Matrix, two: Matrix, settings: Settings) -> Agreement:
    """How alike two matrices are.

    Args:
        one, two: (M, M), symmetric, models in the same order, NaN unknown; the diagonal is not used.

    Raises:
        AnalysisError: fewer than three pairs are known in both.
    """
    m = len(one)
    i, j = np.triu_indices(m, k=1)
    known = np.isfinite(one[i, j]) & np.isfinite(two[i, j])
    i, j = i[known], j[known]
    if len(i) < 3:
        raise AnalysisError(f"it takes 3 pairs of models that are known in both, there are {len(i)}")
    values, members = np.stack([one[i, j], two[i, j]]), np.stack([i, j], axis=1)
    whole = rank_correlations(values, members, np.ones((1, m)))[0, 0, 1]
    drawn = rank_correlations(
        values, members, model_weights(m, settings.resamples, derive_seed(settings.seed, "models"))
    )[:, 0, 1]
    low, high = interval(drawn, settings.confidence)
    both = np.isfinite(one) & np.isfinite(two) & ~np.eye(m, dtype=bool)
    has = both.any(axis=1)
    nearest = [np.where(both, matrix, -np.inf).argmax(axis=1)[has] for matrix in (one, two)]
    return Agreement(
        n_models=int(has.sum()),
        n_pairs=len(i),
        spearman=float(whole),
        spearman_low=low,
        spearman_high=high,
        pearson=_correlation(values[0], values[1]),
        same_nearest=float((nearest[0] == nearest[1]).mean()),
    )


def cluster_jaccard(
    labels: Positions, kept: Positions, resampled: NDArray[np.float32], m: int, *, seed: int
) -> tuple[Matrix, Matrix]:
    """How much of each model's cluster it keeps in resamples of the images, clustered into as many (Hennig 2007).

    Args:
        labels: int64 (N,), cluster of each of the N `kept` models (positions among all M).
        resampled: (R, P), of all M models.

    Returns:
        (N,), for each model the mean over resamples of |C n C'| / |C u C'|, C its cluster and C' the one that it has in
        the resample; and (R,), the share of pairs of models that are together in both or in neither (Rand 1971). NaN
        where a resample has an unknown pair.
    """
    k, same = int(labels.max()), labels[:, None] == labels
    jaccard, rand = [], []
    for number, drawn in enumerate(_matrices(resampled, m)):
        part = drawn[np.ix_(kept, kept)]
        np.fill_diagonal(part, 0.0)
        if not np.isfinite(part).all():
            jaccard.append(np.full(len(kept), np.nan))
            rand.append(np.nan)
            continue
        points = clustering.embedding(clustering.spectrum(clustering.affinity(part))[1], k)
        found = clustering.k_means(points, k, starts=10, seed=derive_seed(seed, "reliability clusters", number))
        again = found[:, None] == found
        jaccard.append((same & again).sum(axis=1) / (same | again).sum(axis=1))
        rand.append(float((same == again)[np.triu_indices(len(kept), k=1)].mean()))
    values = np.array(jaccard)
    has = np.isfinite(values)
    mean: Matrix = np.divide(
        np.where(has, values, 0.0).sum(axis=0), has.sum(axis=0), out=np.full(len(kept), np.nan), where=has.any(axis=0)
    )
    return mean, np.array(rand)


def _matrices(resampled: NDArray[np.float32], m: int) -> Iterator[Matrix]:
    """One resample after the other: (M, M), symmetric, NaN on the diagonal."""
    i, j = np.triu_indices(m, k=1)
    for row in resampled:
        matrix = np.full((m, m), np.nan)
        matrix[i, j] = matrix[j, i] = row
        yield matrix


def _ranks(rows: Matrix, has: Flags) -> Matrix:
    """Ranks of the marked numbers in each row, NaN elsewhere; they begin above 1 where some are not marked."""
    # The others are lowest, so that they shift the rest and no more.
    return np.where(has, rankdata(np.where(has, rows, -np.inf), axis=1), np.nan)


def _row_correlations(one: Matrix, two: Matrix) -> Matrix:
    """Pearson's correlation of each row of `one` and `two`, NaN at the same places; 0 where one does not vary."""
    x, y = (np.nan_to_num(rows - _row_means(rows)) for rows in (one, two))
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    found: Matrix = np.divide((x * y).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)
    return found


def _row_means(rows: Matrix) -> Matrix:
    """(M, 1); 0 where nothing is known."""
    means: Matrix = np.nansum(rows, axis=1, keepdims=True) / np.maximum(np.isfinite(rows).sum(axis=1, keepdims=True), 1)
    return means


def _correlation(a: Matrix, b: Matrix) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan


def _unpacked(bits: Bits, n: int) -> NDArray[np.uint8]:
    """What `pack_bits` was given, as 0 and 1: (..., n)."""
    return np.unpackbits(bits.view(np.uint8), axis=-1, count=n)
