"""Which teacher: a planted rule is found and believed, noise is not, and what was seen is never overruled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from simhpc.analysis import teachers as t


def candidates(n=40, seen=30, similarity=0.0, accuracy=0.0, noise=0.002, seed=0):
    random = np.random.default_rng(seed)
    x, z = random.normal(2, 0.5, n), random.normal(0.75, 0.03, n)
    truth = 0.7 + similarity * (x - 2) + accuracy * (z - 0.75) + random.normal(0, noise, n)
    return x, z, np.where(np.arange(n) < seen, truth, np.nan), truth


@pytest.mark.parametrize(
    ("slopes", "rule"),
    [
        ({"similarity": 0.02}, "similarity"),
        ({"similarity": -0.02}, "similarity"),
        ({"accuracy": 0.4}, "teacher accuracy"),
        ({"similarity": 0.02, "accuracy": -0.3}, "both"),
    ],
)
def test_a_planted_rule_is_found_and_orders_what_was_not_seen(slopes, rule):
    x, z, distilled, truth = candidates(**slopes, seed=1)
    found = t.rank(x, z, distilled)
    assert found.r2_left_out[rule] > 0.6
    assert found.rule in (rule, "both")
    assert found.evidence == "some"
    assert found.ci_low > 0.5
    assert sorted(found.order.tolist()) == list(range(40))
    assert np.corrcoef(found.expected[30:], truth[30:])[0, 1] > 0.8
    np.testing.assert_array_equal(found.expected[:30], distilled[:30])
    assert (np.diff(found.expected[found.order]) <= 0).all()


def test_left_out_predictions_are_those_of_scikit_learn():
    x, z, distilled, _ = candidates(n=12, seen=12, similarity=0.01, seed=2)
    found = t.rank(x, z, distilled)
    columns = {"similarity": x[:, None], "teacher accuracy": z[:, None], "both": np.stack([x, z], 1)}
    for rule, features in columns.items():
        predicted = cross_val_predict(LinearRegression(), features, distilled, cv=LeaveOneOut())
        mean = np.array([np.delete(distilled, i).mean() for i in range(12)])
        expected = 1 - ((distilled - predicted) ** 2).sum() / ((distilled - mean) ** 2).sum()
        assert found.r2_left_out[rule] == pytest.approx(expected)


def test_noise_is_seldom_believed():
    """Although the best of three rules is taken."""
    found = [t.rank(*candidates(n=20, seen=20, seed=seed)[:3]) for seed in range(60)]
    assert sum(max(each.r2_left_out.values()) > 0 for each in found) > 10
    assert sum(each.rule is not None for each in found) <= 8  # 3 expected at 5 %
    assert np.mean([each.p_value for each in found]) == pytest.approx(0.5, abs=0.12)


def test_few_teachers_are_weak_evidence_however_well_they_fit():
    x, z, distilled, _ = candidates(n=12, seen=8, similarity=0.05, noise=1e-5)
    found = t.rank(x, z, distilled)
    assert found.r2_left_out["similarity"] > 0.99
    assert found.evidence == "weak"


@pytest.mark.parametrize("seen", [0, 1, 5])
def test_without_enough_students_there_is_no_rule(seen):
    x, z, distilled, _ = candidates(n=8, seen=seen, similarity=0.05)
    found = t.rank(x, z, distilled)
    assert (found.rule, found.evidence, found.n_seen) == (None, "none", seen)
    assert np.isfinite(found.expected).sum() == seen
    first = found.order[:seen]
    assert set(first.tolist()) == set(range(seen))
    assert (np.diff(distilled[first]) <= 0).all()
    assert (np.diff(x[found.order[seen:]]) <= 0).all()


def test_unknown_and_constant_candidates_come_last_and_break_nothing():
    x, z, distilled, _ = candidates(n=20, seen=15, similarity=0.05)
    x[18] = np.nan
    found = t.rank(x, z, distilled)
    assert found.order[-1] == 18
    assert np.isnan(found.expected[18])
    flat = t.rank(x, z, np.where(np.isfinite(distilled), 0.7, np.nan))
    assert flat.rule is None
    assert t.rank(np.full(20, np.nan), np.full(20, np.nan), np.full(20, np.nan)).order.tolist() == list(range(20))


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_candidates_does_not_matter(seed):
    x, z, distilled, _ = candidates(n=15, seen=10, similarity=0.02)
    order = np.random.default_rng(seed).permutation(15)
    one, two = t.rank(x, z, distilled), t.rank(x[order], z[order], distilled[order])
    assert order[two.order].tolist() == one.order.tolist()
    assert one.rule == two.rule
