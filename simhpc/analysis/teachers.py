"""Which model to take for a teacher: what the students that a study has distilled say of those it has not.

Method: docs/analyses.md, "Suggesting a teacher". A rule is a straight line through distilled accuracies; it is
believed as far as it predicts students of teachers that it was not fitted on.
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


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first.

    Attributes:
        order: int64 (N,), positions of the candidates.
        expected: (N,), accuracy of a student: seen, or predicted by the rule; NaN where neither is possible.
        is_seen: (N,), whether it is the mean accuracy of students that were distilled.
        rule: that predicts best; None if none predicts better than the mean of all.
        r2_left_out: by rule, of each teacher's students predicted from all others; NaN with too few teachers.
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
    left_out = {rule: _left_out(x[fitted_on], distilled[fitted_on]) for rule, x in columns.items()}
    r2 = {rule: _r2(predicted, distilled[fitted_on]) for rule, predicted in left_out.items()}
    best = max(RULES, key=lambda each: np.nan_to_num(r2[each], nan=-np.inf))
    rule = best if r2[best] > 0 else None
    expected, found, low, high = distilled.copy(), np.nan, np.nan, np.nan
    if rule is not None:
        line = _line(columns[rule][fitted_on], distilled[fitted_on])
        expected = np.where(is_seen, distilled, _predict(line, columns[rule]))
        seen, predicted = distilled[fitted_on], left_out[rule]
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
        rank_correlation=found,
        ci_low=float(low),
        ci_high=float(high),
        n_seen=int(is_seen.sum()),
        evidence=evidence,
    )


def _line(x: Vector, y: Vector) -> Vector:
    return np.asarray(np.linalg.lstsq(_with_constant(x), y, rcond=None)[0])


def _predict(line: Vector, x: Vector) -> Vector:
    return np.asarray(_with_constant(x) @ line)


def _with_constant(x: Vector) -> Vector:
    return np.concatenate([np.ones((len(x), 1)), x], axis=1)


def _left_out(x: Vector, y: Vector) -> Vector:
    """Each value predicted by the line through all others; NaN with too few of them."""
    if len(y) < _FEWEST_TO_FIT:
        return np.full(len(y), np.nan)
    rows = np.arange(len(y))
    return np.array([_predict(_line(x[rows != i], y[rows != i]), x[i : i + 1])[0] for i in rows])


def _r2(predicted: Vector, y: Vector) -> float:
    """1 minus the squared error, in units of that of predicting each value by the mean of all others."""
    n = len(y)
    if n < _FEWEST_TO_FIT or np.ptp(y) == 0:
        return np.nan
    by_mean = (y - y.mean()) * n / (n - 1)
    return float(1.0 - ((y - predicted) ** 2).sum() / (by_mean**2).sum())
