"""Which model to take for a teacher: what the students that a study has distilled say of those it has not.

Method: docs/analyses.md, "Suggesting a teacher". A rule is a straight line through distilled accuracies. It is believed
if it predicts students of teachers that it was not fitted on, and does so better than the best of the same rules does
when the accuracies are dealt out to the teachers at random: the best of three looks good by chance alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis.distillation import Vector, correlation
from simhpc.seeds import derive_seed

Rule = Literal["similarity", "teacher accuracy", "both"]
Evidence = Literal["none", "weak", "some"]

RULES: tuple[Rule, ...] = ("similarity", "teacher accuracy", "both")
_FEWEST_TO_FIT = 6
"""Left-out predictions of fewer teachers are those of a line through two or three points."""
_MANY_TEACHERS = 15
_RESAMPLES = 2000
_CONFIDENCE = 0.95
_SHUFFLES = 999
_BELIEVED_AT = 0.05


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first.

    Attributes:
        order: int64 (N,), positions of the candidates.
        expected: (N,), accuracy of a student: seen, or predicted by the rule; NaN where neither is possible.
        is_seen: (N,), whether it is the mean accuracy of students that were distilled.
        rule: that predicts best; None if none is to be believed.
        r2_left_out: by rule, of each teacher's students predicted from all others; NaN with too few teachers.
        p_value: share of shuffled accuracies that the best rule predicts as well or better; NaN with too few teachers.
        rank_correlation: of those predictions with what was seen (Spearman); NaN without a rule.
        ci_low, ci_high: its percentile bootstrap interval over teachers, 95 %.
        n_seen: teachers whose students are known.
        evidence: `none`: there is no rule; `weak`: the interval reaches 0, or the teachers are few; `some`: neither.
    """

    order: NDArray[np.int64]
    expected: Vector
    is_seen: NDArray[np.bool_]
    rule: Rule | None
    r2_left_out: dict[Rule, float]
    p_value: float
    rank_correlation: float
    ci_low: float
    ci_high: float
    n_seen: int
    evidence: Evidence


def rank(similarity: Vector, accuracy: Vector, distilled: Vector, *, seed: int = 0) -> Ranking:
    """Rank N candidates. NaN: unknown.

    Where there is no rule, the teachers whose students were seen come first, by those; the others follow by their
    similarity, which then says no more than an order has to have.

    Args:
        similarity: (N,), SAT with the undistilled student.
        accuracy: (N,), of the candidate, a fraction.
        distilled: (N,), mean accuracy of its students, a fraction; NaN if it has none.
        seed: of the resamples.
    """
    is_seen = np.isfinite(distilled)
    columns: dict[Rule, Vector] = {
        "similarity": similarity[:, None],
        "teacher accuracy": accuracy[:, None],
        "both": np.stack([similarity, accuracy], axis=1),
    }
    fitted_on = is_seen & np.isfinite(columns["both"]).all(axis=1)
    seen = distilled[fitted_on]
    left_out = {rule: _left_out(x[fitted_on], seen) for rule, x in columns.items()}
    r2 = {rule: float(_r2(predicted, seen)) for rule, predicted in left_out.items()}
    best = max(RULES, key=lambda each: np.nan_to_num(r2[each], nan=-np.inf))
    p_value = _p_value([x[fitted_on] for x in columns.values()], seen, r2[best], seed)
    rule = best if r2[best] > 0 and p_value <= _BELIEVED_AT else None
    expected, found, low, high = distilled.copy(), np.nan, np.nan, np.nan
    if rule is not None:
        line = np.linalg.lstsq(_with_constant(columns[rule][fitted_on]), seen, rcond=None)[0]
        expected = np.where(is_seen, distilled, _with_constant(columns[rule]) @ line)
        predicted = left_out[rule]
        found = float(correlation(seen, predicted, "spearman"))
        draws = np.random.default_rng(derive_seed(seed, "candidates")).integers(0, len(seen), (_RESAMPLES, len(seen)))
        resampled = correlation(seen[draws], predicted[draws], "spearman")
        low, high = np.nanquantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    evidence: Evidence = "none"
    if rule is not None:
        evidence = "some" if low > 0 and fitted_on.sum() >= _MANY_TEACHERS else "weak"
    # By expectation, then by similarity; what is unknown comes last, equal ones in their order.
    keys = [np.where(np.isfinite(values), -values, np.inf) for values in (similarity, expected)]
    return Ranking(
        order=np.lexsort(keys),
        expected=expected,
        is_seen=is_seen,
        rule=rule,
        r2_left_out=r2,
        p_value=p_value,
        rank_correlation=found,
        ci_low=float(low),
        ci_high=float(high),
        n_seen=int(is_seen.sum()),
        evidence=evidence,
    )


def _with_constant(x: Vector) -> Vector:
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _left_out(x: Vector, y: Vector) -> Vector:
    """Each value predicted by the line through the others: (N, C) and (..., N) to (..., N); NaN if they are too few."""
    if len(x) < _FEWEST_TO_FIT:
        return np.full(y.shape, np.nan)
    # Leaving a value out of a least-squares fit divides its residual by 1 minus its leverage.
    design = _with_constant(x)
    hat = design @ np.linalg.pinv(design)
    free = 1.0 - np.diag(hat)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(free > 1e-9, y - (y - y @ hat.T) / free, np.nan))


def _r2(predicted: Vector, y: Vector) -> Vector:
    """1 minus the squared error, in units of that of predicting each value by the mean of the others: (...,)."""
    n = y.shape[-1]
    by_mean = ((y - y.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1) * (n / max(n - 1, 1)) ** 2 if n else np.zeros(())
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(by_mean > 0, 1.0 - ((y - predicted) ** 2).sum(axis=-1) / by_mean, np.nan))


def _p_value(columns: list[Vector], y: Vector, found: float, seed: int) -> float:
    if not np.isfinite(found):
        return np.nan
    random = np.random.default_rng(derive_seed(seed, "shuffles"))
    shuffled = np.stack([random.permutation(y) for _ in range(_SHUFFLES)])
    best = np.nanmax([_r2(_left_out(x, shuffled), shuffled) for x in columns], axis=0)
    return float((1 + (best >= found).sum()) / (1 + _SHUFFLES))
