"""Strategies: kinds by hand, means and tests against slow versions, what is planted is found and nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.analysis import strategies as s
from simhpc.analysis.resampling import model_weights, pair_means
from simhpc.errors import AnalysisError

FEW = s.Settings(resamples=400, permutations=999)
NAMES = [f"m{k}" for k in range(12)]


def origin(architecture="resnet", regime="here", hyper="lr 1", weights=None):
    return s.Origin(architecture, architecture, regime, hyper, weights)


def by_architecture(sizes):
    """Models that differ in nothing but the architecture and the initialisation."""
    return [origin(f"net {k}") for k, size in enumerate(sizes) for _ in range(size)]


def matrix(n, seed=0, level=0.0, noise=0.1):
    random = np.random.default_rng(seed)
    own, noises = random.normal(0, level, n), random.normal(0, noise, (n, n))
    return 2.0 + own[:, None] + own + (noises + noises.T) / 2


def pairs_of(groups, kind):
    return {(a, b) for g in groups if g.kind == kind for a, b in np.argwhere(np.triu(g.pairs)).tolist()}


def row_of(found, kind, group=s.ALL):
    return next(row for row in found.rows if (row.kind, row.group) == (kind, group))


def test_a_pair_is_of_the_kind_by_which_it_differs():
    models = [
        origin(),
        origin(),
        origin(hyper="lr 2"),
        origin(regime="tag a1", hyper="", weights="a1"),
        origin(regime="tag a2", hyper="", weights="a2"),
        origin("vit"),
    ]
    groups, notes = s.derived(models, NAMES)
    assert notes == []
    assert pairs_of(groups, "initialisation") == {(0, 1)}
    assert pairs_of(groups, "hyper-parameters") == {(0, 2), (1, 2)}
    assert pairs_of(groups, "regime") == {(a, b) for a in (0, 1, 2) for b in (3, 4)} | {(3, 4)}
    assert pairs_of(groups, "architecture") == {(a, 5) for a in range(5)}
    assert [(group.kind, group.name) for group in groups] == [
        ("initialisation", "resnet"), ("hyper-parameters", "resnet"), ("regime", "resnet"), ("architecture", "all"),
    ]  # fmt: skip


def test_the_same_weights_and_what_nobody_knows_are_of_no_kind_and_said():
    models = [origin(weights="w"), origin(weights="w"), origin(regime=None, weights="x"), origin("vit", regime=None)]
    groups, notes = s.derived(models, NAMES)
    assert pairs_of(groups, "architecture") == {(0, 3), (1, 3), (2, 3)}
    assert len(groups) == 1
    assert notes[0] == "the same weights, so of no kind: m0 / m1"
    assert notes[1].endswith("(declare [[strategies]] in the study): m0 / m2, m1 / m2")


def test_networks_of_one_name_that_are_not_the_same_are_two_groups():
    models = [s.Origin("resnet", f"resnet {size}", "here", "", None) for size in (1, 1, 2, 2)]
    groups, _ = s.derived(models, NAMES)
    assert [group.name for group in groups] == ["resnet (m0)", "resnet (m2)", "all"]


@given(st.lists(st.tuples(*[st.sampled_from("ab")] * 3, st.sampled_from([None, "w", "x"])), min_size=2, max_size=7))
def test_every_pair_is_of_one_kind_or_told(fields):
    models = [s.Origin(a, a, r, h, w) for a, r, h, w in fields]
    groups, notes = s.derived(models, NAMES)
    counted = [pair for kind in s.KINDS for pair in pairs_of(groups, kind)]
    assert len(counted) == len(set(counted))
    rest = set(itertools.combinations(range(len(models)), 2)) - set(counted)
    assert all(models[a].weights is not None and models[a].weights == models[b].weights for a, b in rest)
    assert bool(rest) == bool(notes)
    for group in groups:
        np.testing.assert_array_equal(group.pairs, group.pairs.T)
        assert not np.diag(group.pairs).any()


def test_means_by_hand():
    similarity = np.array([[9, 4, 1, 2], [4, 9, 1, np.nan], [1, 1, 9, 3], [2, np.nan, 3, 9.0]])
    groups = s.declared([("x", "initialisation", [0, 1]), ("y", "initialisation", [2, 3])], 4)
    groups += s.declared([("z", "architecture", [1, 3])], 4) + s.declared([("z2", "architecture", [0, 3])], 4)
    found = s.strategies(similarity, groups, FEW)
    whole = row_of(found, "initialisation")
    assert (whole.n_models, whole.n_pairs, whole.n_unknown, whole.mean_sat) == (4, 2, 0, 3.5)
    assert np.isnan(whole.ci_low)  # in more than one in twenty resamples neither of the two pairs is drawn
    assert whole.minus_architecture == 1.5
    assert row_of(found, "initialisation", "y").mean_sat == 3.0
    assert np.isnan(row_of(found, "initialisation", "y").ci_low)  # a single pair
    other = row_of(found, "architecture")
    assert (other.n_models, other.n_pairs, other.n_unknown, other.mean_sat) == (2, 1, 1, 2.0)
    assert np.isnan(row_of(found, "architecture", "z").mean_sat)
    assert np.isnan(other.p_value)
    assert [(row.kind, row.group) for row in found.rows] == [
        ("initialisation", "all"), ("initialisation", "x"), ("initialisation", "y"),
        ("architecture", "all"), ("architecture", "z"), ("architecture", "z2"),
    ]  # fmt: skip


def slow_test(similarity, pairs, reference, permutations):
    def difference(order):
        shuffled = similarity[np.ix_(order, order)]
        if not np.isfinite(shuffled[pairs]).any() or not np.isfinite(shuffled[reference]).any():
            return None
        return np.nanmean(shuffled[pairs]) - np.nanmean(shuffled[reference])

    # Where no similarity is known of a side, there is no difference.
    permutations = [order for order in permutations if difference(order) is not None]
    found = [difference(order) for order in permutations]
    arrangements = [(pairs[np.ix_(o, o)].tobytes(), reference[np.ix_(o, o)].tobytes()) for o in permutations]
    own = (pairs.tobytes(), reference.tobytes())
    smallest = np.mean([each == own for each in arrangements])
    return found[0], np.mean([abs(each) >= abs(found[0]) - 1e-9 for each in found]), smallest


@pytest.mark.parametrize("sizes", [(2, 1, 1), (2, 2, 1), (3, 2), (2, 2, 2), (1, 1, 1, 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_permutations_of_few_models_equal_the_slow_way(sizes, seed):
    groups, _ = s.derived(by_architecture(sizes), NAMES)
    n = sum(sizes)
    similarity = matrix(n, seed)
    if seed:
        similarity[0, 2] = similarity[2, 0] = np.nan
    same = np.any([g.pairs for g in groups if g.kind == "initialisation"], axis=0)
    other = next(g.pairs for g in groups if g.kind == "architecture")
    found = s.permutation_test(similarity, same, other, FEW, name="x")
    slow = slow_test(similarity, same, other, list(itertools.permutations(range(n))))
    assert found == pytest.approx(slow, abs=1e-12)


def test_models_that_are_in_neither_are_not_permuted_and_pairs_of_neither_count_for_none():
    similarity = matrix(6)
    pairs, reference = np.zeros((2, 6, 6), dtype=bool)
    pairs[1, 2] = pairs[2, 1] = True
    reference[2, 4] = reference[4, 2] = reference[1, 5] = reference[5, 1] = True
    used = [1, 2, 4, 5]
    own = np.ix_(used, used)
    found = s.permutation_test(similarity, pairs, reference, FEW, name="x")
    slow = slow_test(similarity[own], pairs[own], reference[own], list(itertools.permutations(range(4))))
    assert found == pytest.approx(slow)


def test_drawn_permutations_agree_with_all_of_them(monkeypatch):
    groups, _ = s.derived(by_architecture((3, 2, 1)), NAMES)
    similarity = matrix(6, seed=3)
    same = np.any([g.pairs for g in groups if g.kind == "initialisation"], axis=0)
    exact = s.permutation_test(similarity, same, groups[-1].pairs, FEW, name="x")
    monkeypatch.setattr(s, "_MOST_ENUMERATED", 0)
    monkeypatch.setattr(s, "_BLOCK", 100)
    drawn = s.permutation_test(similarity, same, groups[-1].pairs, s.Settings(permutations=4999), name="x")
    assert drawn[0] == pytest.approx(exact[0])
    assert drawn[1:] == pytest.approx(exact[1:], abs=0.03)


def test_a_planted_difference_is_found_and_its_size():
    groups, _ = s.derived(by_architecture((3, 3, 3, 3)), NAMES)
    similarity = matrix(12) + 1.0 * np.any([g.pairs for g in groups if g.kind == "initialisation"], axis=0)
    row = row_of(s.strategies(similarity, groups, FEW), "initialisation")
    assert row.p_value == pytest.approx(1 / 1000, abs=1e-3)
    assert row.minus_architecture == pytest.approx(1.0, abs=0.1)
    assert row.ci_low < 3.0 < row.ci_high
    assert row.n_pairs == 12


def test_where_there_is_no_difference_p_is_uniform_although_models_differ_in_level():
    """A test that permuted pairs would find something here half of the time."""
    groups, _ = s.derived(by_architecture((4, 1, 1, 1, 1, 1, 1, 1)), NAMES)
    same, other = groups[0].pairs, groups[-1].pairs
    p = [
        s.permutation_test(matrix(11, seed, level=1.0), same, other, s.Settings(permutations=199), name="x")[1]
        for seed in range(100)
    ]
    assert 0 <= np.mean(np.array(p) <= 0.05) <= 0.12
    assert 0.4 <= np.mean(np.array(p) <= 0.5) <= 0.6


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    whole = ~np.eye(20, dtype=bool)
    held = 0
    for seed in range(100):
        low, high = s.interval_of(matrix(20, seed, level=0.3, noise=0.4), whole, s.Settings(resamples=300), name="x")
        held += low <= 2.0 <= high
    assert 86 <= held <= 99


def test_few_models_are_told_to_be_of_no_power():
    groups, _ = s.derived(by_architecture((2, 1, 1)), NAMES)
    found = s.strategies(matrix(4) + groups[0].pairs, groups, FEW)
    row = row_of(found, "initialisation")
    # Of 24 permutations, 4 leave the pair where it is.
    assert row.p_smallest == row.p_value == pytest.approx(4 / 24)
    assert "p cannot be below 0.17: the test could find nothing" in found.notes[0]
    assert np.isnan(row.ci_low)


def test_one_kind_only_has_nothing_to_be_compared_with():
    groups, _ = s.derived(by_architecture((1,) * 12), NAMES)
    found = s.strategies(matrix(12), groups, FEW)
    assert len(found.rows) == 1
    assert found.notes == ["all pairs differ in architecture: there is nothing to compare them with"]
    groups, _ = s.derived(by_architecture((12,)), NAMES)
    found = s.strategies(matrix(12), groups, FEW)
    assert np.isnan(row_of(found, "initialisation").p_value)
    assert found.notes == ["no pair differs in architecture: there is nothing to compare the others with"]


def test_nothing_known_is_an_error():
    groups, _ = s.derived(by_architecture((1, 1)), NAMES)
    for similarity, given_groups in ((np.full((2, 2), np.nan), groups), (matrix(2), [])):
        with pytest.raises(AnalysisError, match="no pair of models with known similarity is of any kind"):
            s.strategies(similarity, given_groups, FEW)


def test_the_same_seed_gives_the_same_and_another_another():
    groups, _ = s.derived(by_architecture((3, 3, 3)), NAMES)
    one, again, other = (s.strategies(matrix(9), groups, s.Settings(seed=seed)) for seed in (0, 0, 1))
    assert repr(one) == repr(again)
    assert repr(one) != repr(other)


@given(st.integers(0, 1000), st.integers(2, 8))
def test_resampled_means_equal_means_over_the_models_drawn(seed, n):
    similarity = matrix(n, seed)
    which = np.random.default_rng(seed).random((n, n)) < 0.6
    which = np.triu(which, 1) | np.triu(which, 1).T
    weights = model_weights(n, 4, seed)
    for drawn, mean in zip(weights, pair_means(weights, similarity, which), strict=True):
        models = [k for k in range(n) for _ in range(int(drawn[k]))]
        values = [similarity[a, b] for a, b in itertools.combinations(models, 2) if which[a, b]]
        assert mean == pytest.approx(np.mean(values)) if values else np.isnan(mean)
