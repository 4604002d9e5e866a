"""Rank correlations over resampled models, against scipy on groups that are written out as often as they count."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from simhpc.analysis import resampling


@given(st.data())
@settings(max_examples=40)
def test_weighted_ranks_are_those_of_repeated_groups(data):
    n, size = data.draw(st.integers(3, 6)), data.draw(st.integers(1, 3))
    members = np.array(list(itertools.combinations(range(n), size)))
    cells = st.integers(0, data.draw(st.sampled_from([2, 50])))  # with many ties, and with few
    values = np.array(
        [data.draw(st.lists(cells, min_size=len(members), max_size=len(members))) for _ in range(3)], dtype=float
    )
    drawn = np.array([data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for _ in range(4)], dtype=float)
    found = resampling.rank_correlations(values, members, drawn)
    for weights, matrix in zip(drawn, found, strict=True):
        times = [math.prod(int(weights[member]) for member in group) for group in members]
        repeated = np.repeat(values, times, axis=1)
        np.testing.assert_array_equal(resampling.group_weights(weights[None], members)[0], times)
        for one, other in itertools.product(range(3), repeat=2):
            spread = min(len(set(row)) for row in (repeated[one].tolist(), repeated[other].tolist()))
            if np.count_nonzero(times) < 3 or spread < 2:
                assert math.isnan(matrix[one, other])
            else:
                assert matrix[one, other] == pytest.approx(spearmanr(repeated[one], repeated[other])[0], abs=1e-9)


def test_partial_correlation_is_that_of_what_is_left_of_the_ranks():
    random = np.random.default_rng(0)
    z = random.normal(size=60)
    values = np.stack([z + random.normal(size=60), z + random.normal(size=60), z])
    members = np.array(list(itertools.combinations(range(12), 2)))[:60]
    found = resampling.partial(resampling.rank_correlations(values, members, np.ones((1, 12))), 0, 1, 2)
    ranks = np.array([rankdata(row) for row in values])
    design = np.stack([np.ones(60), ranks[2]], axis=1)
    left = [row - design @ np.linalg.lstsq(design, row, rcond=None)[0] for row in ranks[:2]]
    assert found[0] == pytest.approx(np.corrcoef(*left)[0, 1])
    determined = np.stack([values[0], values[1], values[0]])
    whole = resampling.rank_correlations(determined, members, np.ones((1, 12)))
    assert math.isnan(resampling.partial(whole, 0, 1, 2)[0])


def test_many_groups_in_parts_are_the_same(monkeypatch):
    random = np.random.default_rng(1)
    members = np.array(list(itertools.combinations(range(8), 3)))
    values, weights = random.normal(size=(3, len(members))), resampling.model_weights(8, 30, 5)
    whole = resampling.rank_correlations(values, members, weights)
    monkeypatch.setattr(resampling, "_AT_ONCE", 100)
    np.testing.assert_array_equal(resampling.rank_correlations(values, members, weights), whole)


def test_models_are_drawn_with_replacement_and_from_the_seed():
    weights = resampling.model_weights(7, 500, 3)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.2)
    np.testing.assert_array_equal(weights, resampling.model_weights(7, 500, 3))
    assert (weights != resampling.model_weights(7, 500, 4)).any()


def test_intervals_leave_out_a_few_that_are_not_defined_and_are_unknown_where_these_are_many():
    known = np.linspace(0, 1, 101)
    few = resampling.interval(np.array([*known, *[np.nan] * 5]), 0.9)
    assert few == (pytest.approx(0.05), pytest.approx(0.95))
    assert np.isnan(resampling.interval(np.array([*known, *[np.nan] * 6]), 0.9)).all()
    assert np.isnan(resampling.interval(np.array([np.nan]), 0.9)).all()


def test_intervals_over_models_are_wider_than_over_pairs_that_share_them():
    """What is peculiar to a model is in all its pairs: resampling pairs as if they were independent says too much."""
    random = np.random.default_rng(2)
    level = random.normal(size=(2, 15))
    a, b = np.triu_indices(15, k=1)
    values = level[:, a] + level[:, b] + random.normal(0, 0.1, (2, len(a)))
    members = np.stack([a, b], axis=1)
    drawn = resampling.rank_correlations(values, members, resampling.model_weights(15, 400, 0))
    over_models = np.subtract(*resampling.interval(drawn[:, 0, 1], 0.95)[::-1])
    pairs = random.integers(0, len(a), (400, len(a)))
    over_pairs = np.ptp(np.percentile([spearmanr(*values[:, rows])[0] for rows in pairs], [2.5, 97.5]))
    assert over_models > 1.5 * over_pairs
