"""Importance: what is planted is found, what is not there is not, and the numbers against slow versions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import KFold

from simhpc.analysis import importance as imp
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

FAST = imp.Settings(
    boosting=imp.Boosting(stages=60, max_depth=4, min_samples_split=4, learning_rate=0.1), repeats=5, resamples=400
)
COLUMNS = ["A", "B", "C", "D"]


def drawn_values(n, n_values=(3, 3, 2, 2), seed=0):
    random = np.random.default_rng(seed)
    return [[f"v{random.integers(v)}" for v in n_values] for _ in range(n)]


def symmetric(matrix):
    return (matrix + matrix.T) / 2


def planted(values, column, effect, noise=0.1, seed=1):
    own = np.array([row[column] for row in values])
    random = np.random.default_rng(seed)
    return symmetric(2.0 + effect * (own[:, None] == own) + random.normal(0, noise, (len(own), len(own))))


@pytest.mark.parametrize("encoding", ["same-different", "value-pairs"])
def test_a_planted_component_is_the_important_one(encoding):
    values = drawn_values(18)
    found = imp.importance(planted(values, 1, 2.0), values, COLUMNS, replace(FAST, encoding=encoding))
    for importance in (found.in_sample_mean, found.held_out_mean):
        assert np.argmax(importance) == 1
        assert importance[1] > 0.8
    assert (np.abs(np.delete(found.held_out_mean, 1)) < 0.1).all()
    assert found.r2_in_sample > 0.95
    assert found.r2_held_out > 0.9
    assert found.ci_low[1] < 2.0 < found.ci_high[1]
    assert found.ci_low[0] < 0.0 < found.ci_high[0]
    assert found.n_pairs == 18 * 17 / 2
    assert (found.n_same + found.n_different == found.n_pairs).all()
    assert found.notes == []


def test_an_effect_of_which_values_meet_is_seen_by_value_pairs_only():
    random = np.random.default_rng(0)
    kind = np.repeat([0, 1, 2], 6)
    level = np.array(
        [[3.0, 1.0, 5.0], [1.0, 3.0, 3.0], [5.0, 3.0, 3.0]]
    )  # unequal, and same is not more than different
    matrix = symmetric(level[kind[:, None], kind] + random.normal(0, 0.1, (18, 18)))
    values = [[f"k{each}"] for each in kind]
    found = {
        encoding: imp.importance(matrix, values, ["A"], replace(FAST, encoding=encoding)).r2_held_out
        for encoding in ("same-different", "value-pairs")
    }
    assert found["value-pairs"] > 0.9
    assert found["same-different"] < 0.2


def without_meaning(seed):
    """Models differ in how alike they are to all others, and components are drawn at random."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 1, 24)
    matrix = symmetric(level[:, None] + level + random.normal(0, 0.2, (24, 24)))
    return matrix, drawn_values(24, (4, 4, 4, 4), seed=seed + 50)


@pytest.mark.parametrize("seed", [3, 4])
def test_where_components_mean_nothing_they_explain_nothing_of_held_out_models(seed):
    matrix, values = without_meaning(seed)
    found = imp.importance(matrix, values, COLUMNS, FAST)
    assert found.r2_in_sample > 0.05
    assert found.r2_held_out < 0
    assert found.r2_both_held_out < 0
    assert found.held_out_mean.max() < 0.1
    assert any("do not predict the similarities of held-out models" in note for note in found.notes)
    assert imp.importance(matrix, values, COLUMNS, replace(FAST, encoding="value-pairs")).r2_both_held_out < 0


def test_holding_out_pairs_at_random_would_show_what_is_not_there():
    matrix, values = without_meaning(3)
    settings = replace(FAST, encoding="value-pairs")
    i, j = np.triu_indices(24, 1)
    features, target = imp.encode(imp.codes(values), i, j, "value-pairs"), matrix[i, j]
    predicted = np.empty(len(target))
    for fit, test in KFold(5, shuffle=True, random_state=0).split(features):
        predicted[test] = imp._Whole(settings).fit(features[fit], target[fit]).predict(features[test])
    assert slow_r2(target, predicted) > 0.3
    assert imp.importance(matrix, values, COLUMNS, settings).r2_held_out < 0.05


def slow_r2(target, predicted):
    mean = sum(target) / len(target)
    return 1 - sum((t - p) ** 2 for t, p in zip(target, predicted, strict=True)) / sum((t - mean) ** 2 for t in target)


def regressor():
    return GradientBoostingRegressor(
        n_estimators=60, max_depth=4, min_samples_split=4, learning_rate=0.1,
        random_state=derive_seed(0, "importance trees") % 2**32,
    )  # fmt: skip


def test_permutation_importance_is_the_mean_over_all_permutations():
    """Four models have six pairs, 720 permutations of a column."""
    values = [["a", "x", "p"], ["a", "y", "q"], ["b", "x", "q"], ["b", "y", "q"]]
    matrix = planted(values, 0, 1.0, noise=0.6)
    rows, target = [], []
    for a, b in itertools.combinations(range(4), 2):
        rows.append([float(u == v) for u, v in zip(values[a], values[b], strict=True)])
        target.append(matrix[a, b])
    rows = np.array(rows)
    fitted = regressor().fit(rows, target)
    whole = slow_r2(target, fitted.predict(rows))
    found = imp.importance(matrix, values, COLUMNS[:3], replace(FAST, repeats=400))
    assert found.r2_in_sample == pytest.approx(whole)
    for column in range(3):
        permuted = np.repeat(rows[None], 720, axis=0)
        permuted[:, :, column] = list(itertools.permutations(rows[:, column]))
        answers = fitted.predict(permuted.reshape(-1, 3)).reshape(720, 6)
        drops = [whole - slow_r2(target, answer) for answer in answers]
        error = 4 * np.std(drops) / np.sqrt(400) + 1e-12
        assert found.in_sample_mean[column] == pytest.approx(np.mean(drops), abs=error)
        assert found.in_sample_std[column] == pytest.approx(np.std(drops), rel=0.2, abs=1e-12)


def test_r2_held_out_is_of_pairs_of_models_that_were_not_fitted():
    values = drawn_values(11)
    matrix = planted(values, 0, 1.0, noise=0.4)
    fold_of = imp.folds_of_models(11, 5, 0)
    assert sorted(np.bincount(fold_of)) == [2, 2, 2, 2, 3]
    target, predicted, both = [], [], []
    for fold in range(5):
        fit, test = [], []
        for a, b in itertools.combinations(range(11), 2):
            (test if fold in (fold_of[a], fold_of[b]) else fit).append((a, b))
        assert not {m for pair in fit for m in pair} & set(np.flatnonzero(fold_of == fold))

        def features(pairs):
            return [[float(u == v) for u, v in zip(values[a], values[b], strict=True)] for a, b in pairs]

        fitted = regressor().fit(features(fit), [matrix[pair] for pair in fit])
        target += [matrix[pair] for pair in test]
        predicted += fitted.predict(features(test)).tolist()
        both += [fold_of[a] == fold_of[b] == fold for a, b in test]
    found = imp.importance(matrix, values, COLUMNS, FAST)
    assert found.r2_held_out == pytest.approx(slow_r2(target, predicted))
    assert sum(both) == 1 + 1 + 1 + 1 + 3
    known = [(t, p) for t, p, each in zip(target, predicted, both, strict=True) if each]
    assert found.r2_both_held_out == pytest.approx(slow_r2(*zip(*known, strict=True)))
    assert found.folds == 5


def test_bootstrap_equals_drawing_models_one_by_one():
    n, values = 7, [[*row, kind] for row, kind in zip(drawn_values(7, (2, 3)), ["rare", *6 * ["common"]], strict=True)]
    matrix = planted(values, 0, 1.0)
    matrix[0, 3] = matrix[3, 0] = np.nan
    settings = replace(FAST, resamples=60, confidence=0.8)
    weights = np.random.default_rng(derive_seed(0, "models")).multinomial(n, np.full(n, 1 / n), size=60)
    low, high = imp.bootstrap_difference(matrix, imp.codes(values), settings)
    unknown = []
    for column in range(3):
        differences = []
        for counts in weights:
            models = [m for m, count in enumerate(counts) for _ in range(count)]
            same, different = [], []
            for a, b in itertools.combinations(models, 2):
                if a != b and not np.isnan(matrix[a, b]):
                    (same if values[a][column] == values[b][column] else different).append(matrix[a, b])
            if same and different:
                differences.append(np.mean(same) - np.mean(different))
        unknown.append(len(differences) < 57)
        expected = [np.nan, np.nan] if unknown[-1] else np.quantile(differences, [0.1, 0.9])
        np.testing.assert_allclose([low[column], high[column]], expected)
    assert unknown == [False, False, True]


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """With effects of the models themselves, which an interval over pairs would take for knowledge."""
    covered, narrow = 0, 0
    values = [["a" if m % 2 else "b"] for m in range(20)]
    is_same = np.array([[x == y for (y,) in values] for (x,) in values])
    i, j = np.triu_indices(20, 1)
    for seed in range(120):
        random = np.random.default_rng(seed)
        own = random.normal(0, 1, (20, 2))
        matrix = is_same * 1.0 + own @ own.T + symmetric(random.normal(0, 0.1, (20, 20)))
        low, high = imp.bootstrap_difference(matrix, imp.codes(values), replace(FAST, confidence=0.9))
        covered += low[0] <= 1.0 <= high[0]
        # The interval that independent pairs would have.
        same, different = matrix[i, j][is_same[i, j]], matrix[i, j][~is_same[i, j]]
        error = 1.645 * np.sqrt(same.var() / len(same) + different.var() / len(different))
        narrow += abs(same.mean() - different.mean() - 1.0) <= error
    assert covered / 120 >= 0.82
    assert narrow < covered


def test_constant_and_all_different_components_are_named_and_harm_nothing():
    values = [[*row[:2], "one", f"unique {m}"] for m, row in enumerate(drawn_values(9))]
    found = imp.importance(planted(values, 0, 1.0), values, COLUMNS, FAST)
    assert found.in_sample_mean[2:].tolist() == [0.0, 0.0]
    assert found.in_sample_std[2:].tolist() == [0.0, 0.0]
    assert found.held_out_mean[2:].tolist() == [0.0, 0.0]
    assert np.isnan(found.difference[2:]).all()
    assert np.isnan(found.ci_low[2:]).all()
    assert found.n_values.tolist()[2:] == [1, 9]
    assert np.isnan(found.different_mean[2])
    assert np.isnan(found.same_mean[3])
    assert len(found.notes) == 1
    assert found.notes[0].endswith("nothing to compare: C")


def test_a_component_that_one_model_has_for_itself_gets_no_interval():
    """In more than a third of the resamples that model is not drawn, and nothing is different."""
    values = [[*row, "rare" if m == 0 else "common"] for m, row in enumerate(drawn_values(12, (2, 3)))]
    found = imp.importance(planted(values, 0, 1.0), values, ("A", "B", "C"), FAST)
    assert np.isfinite(found.difference).all()
    assert np.isfinite(found.ci_low).tolist() == [True, True, False]
    assert found.notes[-1].endswith("so same minus different has no interval: C")


def test_unknown_pairs_are_left_out_and_counted():
    values = drawn_values(12)
    matrix = planted(values, 0, 1.0)
    whole = imp.importance(matrix, values, COLUMNS, FAST)
    matrix[0, 1] = matrix[1, 0] = matrix[2, 5] = matrix[5, 2] = matrix[4, 4] = np.nan
    found = imp.importance(matrix, values, COLUMNS, FAST)
    assert (found.n_pairs, found.n_unknown) == (64, 2)
    assert found.notes == ["2 pair(s) of unknown similarity were left out"]
    assert (found.n_same + found.n_different == 64).all()
    np.testing.assert_allclose(found.difference, whole.difference, atol=0.2)
    # A model of which nothing is known is as if it were not there.
    matrix[11] = matrix[:, 11] = np.nan
    same = imp.importance(matrix[:11, :11], values[:11], COLUMNS, FAST)
    found = imp.importance(matrix, values, COLUMNS, FAST)
    np.testing.assert_array_equal(found.in_sample_mean, same.in_sample_mean)
    np.testing.assert_array_equal(found.difference, same.difference)


def test_few_models():
    values = drawn_values(5)
    matrix = planted(values, 0, 1.0)
    with pytest.raises(AnalysisError, match="it takes 3 pairs of models with known similarity, there are 1"):
        imp.importance(matrix[:2, :2], values[:2], COLUMNS, FAST)
    found = imp.importance(matrix[:3, :3], values[:3], COLUMNS, FAST)
    assert np.isnan(found.r2_held_out)
    assert np.isnan(found.held_out_mean).all()
    assert any("too few to hold some out" in note for note in found.notes)
    assert np.isfinite(imp.importance(matrix, values, COLUMNS, FAST).r2_held_out)


def test_equal_similarities_leave_nothing_to_explain():
    found = imp.importance(np.full((6, 6), 3.0), drawn_values(6), COLUMNS, FAST)
    assert np.isnan(found.r2_in_sample)
    assert found.in_sample_mean.tolist() == [0.0] * 4
    assert any("nothing to explain" in note for note in found.notes)


@given(st.data())
def test_a_pair_has_no_order_and_the_encodings_say_what_they_should(data):
    n, c = data.draw(st.integers(2, 6)), data.draw(st.integers(1, 3))
    values = data.draw(st.lists(st.lists(st.sampled_from("abc"), min_size=c, max_size=c), min_size=n, max_size=n))
    coded = imp.codes(values)
    i, j = np.triu_indices(n, 1)
    for encoding in ("same-different", "value-pairs"):
        encoded = imp.encode(coded, i, j, encoding)
        np.testing.assert_array_equal(encoded, imp.encode(coded, j, i, encoding))
    for column in range(c):
        same, pairs = (imp.encode(coded, i, j, encoding)[:, column] for encoding in ("same-different", "value-pairs"))
        named = [tuple(sorted((values[a][column], values[b][column]))) for a, b in zip(i, j, strict=True)]
        assert same.tolist() == [int(x == y) for x, y in named]
        for p, q in itertools.combinations(range(len(named)), 2):
            assert (pairs[p] == pairs[q]) == (named[p] == named[q])


def test_the_same_seed_gives_the_same_numbers():
    values = drawn_values(8)
    matrix = planted(values, 0, 0.5, noise=0.5)
    one, two, other = (imp.importance(matrix, values, COLUMNS, replace(FAST, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.held_out_mean, two.held_out_mean)
    np.testing.assert_array_equal(one.ci_low, two.ci_low)
    assert not np.array_equal(one.ci_low, other.ci_low)


def test_models_without_known_pairs_take_no_part_in_holding_out():
    """Five models of twenty-five, all of whose pairs have the first one: dealt with the others, no fold was of use."""
    values = drawn_values(25)
    matrix = np.full((25, 25), np.nan)
    star = [0, 5, 9, 14, 20]
    for k, other in enumerate(star[1:]):
        matrix[0, other] = matrix[other, 0] = 2.0 + k
    for seed in range(8):
        found = imp.importance(matrix, values, COLUMNS, replace(FAST, seed=seed, resamples=20, repeats=2))
        assert found.folds >= 1
        assert np.isfinite(found.r2_held_out)
