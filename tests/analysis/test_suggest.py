"""Suggested ensembles: what is planted is chosen, and what is reported holds on images that nobody has seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from analysis.test_averaging import collected, slowly_right, softmax

from simhpc.analysis import suggest as s
from simhpc.errors import AnalysisError


def specialists(n=300, seed=0):
    """Six models: 0 and 1 each know half of the classes, 2 to 5 know a little of all and are wrong together."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, n).astype(np.int32)
    logits = 0.3 * random.normal(size=(6, n, 10))
    logits[2:] += 2.0 * random.normal(size=(n, 10))
    for model, known in ((0, labels < 5), (1, labels >= 5)):
        logits[model, known, labels[known]] += 4.0
    logits[2:, np.arange(n), labels] += 4.2
    return softmax(logits), labels


def alike(n=6):
    matrix = np.full((n, n), 3.0)
    matrix[0, 1] = matrix[1, 0] = 0.5
    return matrix


def by_rule(choices):
    return {choice.rule: choice for choice in choices}


def test_complementary_models_are_chosen_though_each_alone_is_worse():
    probabilities, labels = specialists()
    outputs = collected(probabilities, labels, 3)
    assert set(s.greedy(outputs, alike(), 3)) > {0, 1}
    found = by_rule(s.suggest(outputs, alike(), 3))
    greedy = found["greedy"]
    assert set(greedy.members) > {0, 1}
    assert all(set(half) > {0, 1} for half in greedy.halves)
    assert not {0, 1} & set(found["most_accurate"].members)
    assert len(found["best_single"].members) == 1
    for rule in ("most_accurate", "best_single"):
        assert found[rule].gain_ci_low > 0
        assert found[rule].gain == pytest.approx(greedy.accuracy - found[rule].accuracy)
    assert (greedy.gain, greedy.gain_ci_low, greedy.gain_ci_high) == (0.0, 0.0, 0.0)


def test_the_accuracy_is_of_the_other_halfs_choice():
    """By hand, for the halves that were drawn."""
    probabilities, labels = specialists(n=41)
    outputs = collected(probabilities, labels, 2)
    found = by_rule(s.suggest(outputs, alike(), 2, seed=4))["greedy"]
    first, second = (slowly_right(probabilities, labels, half) for half in found.halves)
    shuffled = np.random.default_rng(s.derive_seed(4, "suggest halves")).permutation(41)
    expected = second[shuffled[:20]].sum() + first[shuffled[20:]].sum()
    assert found.accuracy == pytest.approx(expected / 41)
    assert found.ci_low < found.accuracy <= found.ci_high


def test_what_is_reported_is_not_what_the_choice_looks_like_where_it_was_made():
    """40 models that all guess: choosing among them gains nothing, however it looks."""
    looks, reported = [], []
    for seed in range(8):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 2, 80).astype(np.int32)
        probabilities = softmax(random.normal(size=(40, 80, 2)))
        outputs = collected(probabilities, labels, 3)
        choices = s.suggest(outputs, np.ones((40, 40)), 3, seed=seed)
        looks.append(outputs.is_right(choices[0].members).mean())
        reported.append(choices[0].accuracy)
        assert all(choice.ci_low <= 0.5 + 0.1 for choice in choices)
    assert np.mean(looks) > 0.65
    assert np.mean(reported) == pytest.approx(0.5, abs=0.06)


def test_of_equally_good_models_the_least_alike_is_taken():
    labels = np.zeros(8, dtype=np.int32)
    probabilities = np.tile(np.array([0.9, 0.1], dtype=np.float16), (5, 8, 1))
    matrix = np.full((5, 5), 2.0)
    matrix[0, 3] = matrix[3, 0] = 1.0
    matrix[0, 4] = matrix[4, 0] = np.nan  # unknown is no reason to take one
    outputs = collected(probabilities, labels, 2)
    assert s.greedy(outputs, np.where(np.isnan(matrix), np.inf, matrix), 2) == [0, 3]
    assert by_rule(s.suggest(outputs, matrix, 2))["greedy"].members == [0, 3]


def test_least_similar_by_hand():
    matrix = np.array(
        [[0, 1.0, 3.0, 2.0], [1.0, 0, 2.9, 2.5], [3.0, 2.9, 0, 0.9], [2.0, 2.5, 0.9, 0]], dtype=np.float64
    )
    assert s.least_similar(matrix, 2) == [2, 3]
    assert s.least_similar(matrix, 3) == [2, 3, 0]  # mean 2.5 against 2.7
    assert s.least_similar(matrix, 3, [1]) == [1, 0, 3]
    assert s.least_similar(np.full((3, 3), np.inf), 2) == [0, 1]


def test_least_similar_pair_is_the_least_of_all():
    random = np.random.default_rng(0)
    matrix = random.normal(size=(9, 9))
    matrix = matrix + matrix.T
    best = min(itertools.combinations(range(9), 2), key=lambda pair: matrix[pair])
    assert s.least_similar(matrix, 2) == list(best)


def test_included_models_are_members_of_every_ensemble():
    probabilities, labels = specialists()
    found = by_rule(s.suggest(collected(probabilities, labels, 3), alike(), 3, include=[5, 2, 5]))
    for rule in ("greedy", "most_accurate", "least_similar"):
        assert found[rule].members[:2] == [5, 2]
        assert len(set(found[rule].members)) == 3
        assert all(half[:2] == [5, 2] for half in found[rule].halves)
    assert len(found["best_single"].members) == 1


@pytest.mark.parametrize(
    ("size", "include", "message"),
    [
        (1, [], "of 6 models an ensemble can have 2 to 6 members, not 1"),
        (7, [], "2 to 6 members, not 7"),
        (2, [0, 1, 2], "3 models are to be included, but the ensemble has 2"),
    ],
)
def test_impossible_wishes_are_said(size, include, message):
    probabilities, labels = specialists(n=20)
    with pytest.raises(AnalysisError, match=message):
        s.suggest(collected(probabilities, labels, 3), alike(), size, include=include)


def test_one_image_cannot_be_halved_and_two_can():
    probabilities, labels = specialists(n=2)
    with pytest.raises(AnalysisError, match="it takes two images"):
        s.suggest(collected(probabilities[:, :1], labels[:1], 2), alike(), 2)
    for choice in s.suggest(collected(probabilities, labels, 2), alike(), 2):
        assert 0 <= choice.ci_low <= choice.accuracy <= choice.ci_high <= 1


def test_the_bootstrap_of_a_mean_is_that_of_the_images():
    values = np.array([1] * 20 + [0] * 60 + [-1] * 10)
    low, high = s._bootstrap_mean(values, 0.95, 20_000, 0)
    random = np.random.default_rng(0)
    slowly = [random.choice(values, len(values)).mean() for _ in range(5000)]
    np.testing.assert_allclose((low, high), np.percentile(slowly, [2.5, 97.5]), atol=0.012)
    assert s._bootstrap_mean(np.zeros(5, dtype=np.int64), 0.95, 100, 0) == (0.0, 0.0)
    assert not math.isnan(low)
