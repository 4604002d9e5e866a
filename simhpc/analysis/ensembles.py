"""What ensembles gain, and whether less alike members gain more (docs/analyses.md, "Ensembles").

An ensemble is the unweighted average of its members' clean probabilities. Its gain is the share of its members' mean
error that it takes away. Ensembles share members, so intervals come from drawing models (`analysis.resampling`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis import resampling
from simhpc.analysis.averaging import Outputs, note_of_unsure
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Positions = NDArray[np.int64]

PREDICTORS = ("mean_sat", "n_clusters")
OUTCOMES = ("error_reduction", "all_wrong_share")


@dataclass(frozen=True)
class Settings:
    """Which ensembles are made.

    Attributes:
        sizes: numbers of members, increasing.
        samples: ensembles of each size: all there are, or where there are more, so many at random.
        resamples: of the models, for intervals.
        confidence: of the intervals.
        seed: of everything random.
    """

    sizes: tuple[int, ...] = (2, 3, 4, 5)
    samples: int = 1000
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class OfSize:
    """The E ensembles of one size.

    Attributes:
        n_possible: how many there are; more than E if they were sampled.
        members: int64 (E, size), increasing positions of the models; rows in increasing order.
        accuracy: (E,), of the average.
        mean_member_accuracy, best_member_accuracy: (E,), of the members alone.
        error_reduction: (E,), 1 - error of the average / mean error of the members; NaN where no member errs.
        all_wrong_share: (E,), share of the images that every member gets wrong.
        mean_sat: (E,), mean SAT of the pairs inside; NaN where one is unknown.
        n_clusters: (E,), different clusters among the members; NaN where one belongs to none.
        n_unsure: answers to an image that are not sure, over all ensembles: see `Outputs.judge`.
    """

    size: int
    n_possible: int
    members: Positions
    accuracy: Matrix
    mean_member_accuracy: Matrix
    best_member_accuracy: Matrix
    error_reduction: Matrix
    all_wrong_share: Matrix
    mean_sat: Matrix
    n_clusters: Matrix
    n_unsure: int


@dataclass(frozen=True)
class Trend:
    """How an outcome goes with a predictor over the ensembles of one size: Spearman's rank correlation.

    Attributes:
        n: ensembles of which all is known.
        rho, ci_low, ci_high: and its interval over models; NaN where all ensembles are alike in one of the two. The
            interval alone is NaN where it is so in more than 5 % of the resamples of models.
        partial, partial_ci_low, partial_ci_high: the same given the members' mean accuracy.
    """

    size: int
    predictor: str
    outcome: str
    n: int
    rho: float
    ci_low: float
    ci_high: float
    partial: float
    partial_ci_low: float
    partial_ci_high: float


@dataclass(frozen=True)
class Contrast:
    """Ensembles from one cluster against those whose members are all from different ones.

    Attributes:
        n_same, n_different: ensembles of either kind.
        same_mean, different_mean: of the outcome; NaN without any.
        difference, ci_low, ci_high: different minus same, and its interval over models; this is NaN where more than
            5 % of the resamples of models lack one kind.
    """

    size: int
    outcome: str
    n_same: int
    n_different: int
    same_mean: float
    different_mean: float
    difference: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Ensembles:
    """All that was found; `notes` say what needs a word, one line each."""

    of_size: list[OfSize]
    trends: list[Trend]
    contrasts: list[Contrast]
    notes: list[str]


def ensembles(outputs: Outputs, similarity: Matrix, labels: Sequence[int | None], settings: Settings) -> Ensembles:
    """Make ensembles of all sizes and see what their gain goes with.

    Args:
        outputs: of M models, collected for the largest size.
        similarity: (M, M), symmetric, NaN unknown; the diagonal is not used.
        labels: M clusters; None: in none.

    Raises:
        AnalysisError: there are fewer models than the smallest size, or no images.
    """
    m, n_images = outputs.right.shape
    sizes = [size for size in settings.sizes if size <= m]
    if not sizes or not n_images:
        raise AnalysisError(
            f"it takes {settings.sizes[0]} models with predictions of the same images, there are {m} of {n_images} "
            "image(s)"
        )
    notes = []
    if len(sizes) < len(settings.sizes):
        notes.append(f"there are {m} models, so no ensembles of {', '.join(map(str, settings.sizes[len(sizes) :]))}")
    weights = resampling.model_weights(m, settings.resamples, derive_seed(settings.seed, "ensembles"))
    found, trends, contrasts = [], [], []
    for size in sizes:
        made = of_size(outputs, similarity, labels, size, settings)
        found.append(made)
        trends += _trends(made, weights, settings)
        contrasts += [_contrast(made, outcome, weights, settings) for outcome in OUTCOMES]
    unsure, judged = sum(made.n_unsure for made in found), n_images * sum(len(made.members) for made in found)
    notes += note_of_unsure(unsure, judged)
    without = {each.size for each in contrasts if math.isfinite(each.difference) and math.isnan(each.ci_low)}
    if without:
        notes.append(
            "one cluster against different ones: too few ensembles to give an interval at size "
            + ", ".join(map(str, sorted(without)))
        )
    return Ensembles(found, trends, contrasts, notes)


def of_size(
    outputs: Outputs, similarity: Matrix, labels: Sequence[int | None], size: int, settings: Settings
) -> OfSize:
    """The ensembles of one size: see `OfSize`."""
    m = len(outputs.right)
    members = subsets(m, size, settings.samples, derive_seed(settings.seed, "ensembles", size))
    judged = [outputs.judge(row) for row in members.tolist()]
    # Whole numbers up to the one division: what is equal must not be ranked by how it was rounded.
    n_images = outputs.right.shape[1]
    alone = outputs.right.sum(axis=1)
    n_right = np.array([np.count_nonzero(right) for right, _ in judged])
    n_all_wrong = np.array([np.count_nonzero(~outputs.right[row].any(axis=0)) for row in members])
    of_all_members = alone[members].sum(axis=1)
    n_wrong = size * n_images - of_all_members
    cluster = np.array([np.nan if label is None else label for label in labels])
    of_members = np.sort(cluster[members], axis=1)
    n_clusters = 1.0 + (np.diff(of_members, axis=1) != 0).sum(axis=1)
    return OfSize(
        size=size,
        n_possible=math.comb(m, size),
        members=members,
        accuracy=n_right / n_images,
        mean_member_accuracy=of_all_members / (size * n_images),
        best_member_accuracy=alone[members].max(axis=1) / n_images,
        error_reduction=np.divide(
            size * n_right - of_all_members, n_wrong, out=np.full(len(members), np.nan), where=n_wrong > 0
        ),
        all_wrong_share=n_all_wrong / n_images,
        mean_sat=np.mean([similarity[members[:, a], members[:, b]] for a, b in _pairs(size)], axis=0),
        n_clusters=np.where(np.isnan(of_members).any(axis=1), np.nan, n_clusters),
        n_unsure=sum(unsure for _, unsure in judged),
    )


def subsets(n: int, size: int, most: int, seed: int) -> Positions:
    """All subsets of `size` of n, or if these are more than `most`, so many different ones at random.

    Returns:
        int64 (E, size), rows and the numbers in each increasing.
    """
    if math.comb(n, size) <= most:
        return np.array(list(itertools.combinations(range(n), size)), dtype=np.int64)
    random = np.random.default_rng(seed)
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < most:
        drawn = np.sort(np.argpartition(random.random((most, n)), size - 1, axis=1)[:, :size], axis=1)
        seen.update(dict.fromkeys(map(tuple, drawn.tolist())))
    return np.array(sorted(list(seen)[:most]), dtype=np.int64)


def _pairs(size: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(size), 2))


def _trends(made: OfSize, weights: Matrix, settings: Settings) -> list[Trend]:
    trends = []
    for predictor, outcome in itertools.product(PREDICTORS, OUTCOMES):
        values = np.stack([getattr(made, predictor), getattr(made, outcome), made.mean_member_accuracy])
        known = np.isfinite(values).all(axis=0)
        values, members = values[:, known], made.members[known]
        seen = resampling.rank_correlations(values, members, np.ones((1, weights.shape[1])))
        drawn = resampling.rank_correlations(values, members, weights)
        low, high = resampling.interval(drawn[:, 0, 1], settings.confidence)
        partial_low, partial_high = resampling.interval(resampling.partial(drawn, 0, 1, 2), settings.confidence)
        trends.append(
            Trend(
                size=made.size,
                predictor=predictor,
                outcome=outcome,
                n=int(known.sum()),
                rho=float(seen[0, 0, 1]),
                ci_low=low,
                ci_high=high,
                partial=float(resampling.partial(seen, 0, 1, 2)[0]),
                partial_ci_low=partial_low,
                partial_ci_high=partial_high,
            )
        )
    return trends


def _contrast(made: OfSize, outcome: str, weights: Matrix, settings: Settings) -> Contrast:
    values = getattr(made, outcome)
    known = np.isfinite(values)
    kinds = (known & (made.n_clusters == 1), known & (made.n_clusters == made.size))
    means, resampled = [], []
    for which in kinds:
        means.append(float(values[which].mean()) if which.any() else math.nan)
        counts = resampling.group_weights(weights, made.members[which])
        total = counts.sum(axis=1)
        resampled.append(np.divide(counts @ values[which], total, out=np.full(len(total), np.nan), where=total > 0))
    low, high = resampling.interval(resampled[1] - resampled[0], settings.confidence)
    return Contrast(
        size=made.size,
        outcome=outcome,
        n_same=int(kinds[0].sum()),
        n_different=int(kinds[1].sum()),
        same_mean=means[0],
        different_mean=means[1],
        difference=means[1] - means[0],
        ci_low=low,
        ci_high=high,
    )
