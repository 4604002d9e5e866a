"""Ensembles: each number against counting, planted diversity is found, and where there is none nothing is."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from analysis.test_averaging import collected, slowly_right, softmax

from simhpc.analysis import ensembles as e
from simhpc.errors import AnalysisError

FEW = e.Settings(sizes=(2, 3), samples=200, resamples=200)


def families(sizes=(5, 5, 5), n=400, k=6, shared=2.0, own=0.8, seed=0):
    """Models whose mistakes are their family's, in part; probabilities, labels, whose each model is."""
    random = np.random.default_rng(seed)
    family = np.repeat(np.arange(len(sizes)), sizes)
    labels = random.integers(0, k, n).astype(np.int32)
    logits = shared * random.normal(size=(len(sizes), n, k))[family] + own * random.normal(size=(len(family), n, k))
    logits[:, np.arange(n), labels] += 2.5
    return softmax(logits), labels, family


def similarity_of(family, inside=3.5, outside=1.5, noise=0.3, seed=1):
    random = np.random.default_rng(seed)
    matrix = np.where(family[:, None] == family, inside, outside) + random.normal(0, noise, (len(family),) * 2)
    return (matrix + matrix.T) / 2


def test_less_alike_members_gain_more_where_families_share_mistakes():
    probabilities, labels, family = families()
    found = e.ensembles(collected(probabilities, labels, 3), similarity_of(family), (family + 1).tolist(), FEW)
    trends = {(t.size, t.predictor, t.outcome): t for t in found.trends}
    for size in (2, 3):
        gain = trends[size, "mean_sat", "error_reduction"]
        assert gain.ci_high < -0.2
        assert gain.rho < -0.5
        assert gain.partial_ci_high < 0
        assert trends[size, "mean_sat", "all_wrong_share"].ci_low > 0.2
        assert trends[size, "n_clusters", "error_reduction"].ci_low > 0.2
    contrasts = {(c.size, c.outcome): c for c in found.contrasts}
    assert contrasts[2, "error_reduction"].ci_low > 0
    assert contrasts[2, "all_wrong_share"].ci_high < 0
    assert made_of(found, 3).n_unsure == 0
    assert (contrasts[2, "error_reduction"].n_same, contrasts[2, "error_reduction"].n_different) == (30, 75)
    assert found.notes == []


def made_of(found, size):
    (made,) = [made for made in found.of_size if made.size == size]
    return made


def test_too_few_of_a_kind_give_no_interval():
    probabilities, labels, family = families((2, 6, 6), n=100)
    clusters = [1, 1, *range(2, 14)]
    found = e.ensembles(collected(probabilities, labels, 2), similarity_of(family), clusters, replace(FEW, sizes=(2,)))
    assert found.contrasts[0].n_same == 1
    assert math.isfinite(found.contrasts[0].difference)
    assert math.isnan(found.contrasts[0].ci_low)
    assert found.notes == ["one cluster against different ones: too few ensembles to give an interval at size 2"]


def test_where_mistakes_are_independent_a_random_similarity_explains_nothing():
    crossed = 0
    for seed in range(6):
        probabilities, labels, _ = families(sizes=(1,) * 14, shared=0.0, own=2.0, n=200, seed=seed)
        group = np.repeat([1, 2], 7)
        matrix = similarity_of(group, seed=seed)
        found = e.ensembles(collected(probabilities, labels, 2), matrix, group.tolist(), replace(FEW, sizes=(2,)))
        (trend,) = [t for t in found.trends if (t.predictor, t.outcome) == ("mean_sat", "error_reduction")]
        contrast = found.contrasts[0]
        crossed += (trend.ci_low < 0 < trend.ci_high) and (contrast.ci_low < 0 < contrast.ci_high)
    assert crossed >= 5


def test_each_number_of_an_ensemble_by_counting():
    probabilities, labels, family = families((2, 2, 1), n=60)
    matrix, clusters = similarity_of(family), [1, 1, 2, 2, None]
    matrix[0, 4] = matrix[4, 0] = np.nan
    outputs = collected(probabilities, labels, 3)
    made = e.of_size(outputs, matrix, clusters, 3, FEW)
    assert made.n_possible == len(made.members) == 10
    assert made.members.tolist() == [list(row) for row in itertools.combinations(range(5), 3)]
    for row, members in enumerate(made.members.tolist()):
        alone = [slowly_right(probabilities, labels, [member]) for member in members]
        together = slowly_right(probabilities, labels, members)
        errors = [1 - right.mean() for right in alone]
        assert made.accuracy[row] == pytest.approx(together.mean())
        assert made.mean_member_accuracy[row] == pytest.approx(1 - np.mean(errors))
        assert made.best_member_accuracy[row] == pytest.approx(1 - min(errors))
        assert made.error_reduction[row] == pytest.approx(1 - (1 - together.mean()) / np.mean(errors))
        assert made.all_wrong_share[row] == pytest.approx(np.mean(~np.any(alone, axis=0)))
        inside = [matrix[a, b] for a, b in itertools.combinations(members, 2)]
        np.testing.assert_allclose(made.mean_sat[row], np.mean(inside))
        of_members = {clusters[member] for member in members}
        assert math.isnan(made.n_clusters[row]) if None in of_members else made.n_clusters[row] == len(of_members)


def test_equal_gains_are_equal_numbers_however_they_come_about():
    """Ranks must not be made of rounding: with ten images most ensembles share their gain with others."""
    random = np.random.default_rng(0)
    right, labels = random.random((8, 10)) < 0.7, np.zeros(10, dtype=np.int32)
    probabilities = np.where(right[..., None], np.array([0.8, 0.2]), np.array([0.2, 0.8])).astype(np.float16)
    made = e.of_size(collected(probabilities, labels, 3), np.zeros((8, 8)), [None] * 8, 3, FEW)
    alone = right.sum(axis=1)
    exact = []
    for row, members in enumerate(made.members.tolist()):
        of_members, together = int(alone[members].sum()), round(10 * float(made.accuracy[row]))
        exact.append((Fraction(3 * together - of_members, 30 - of_members), Fraction(of_members, 30)))
    assert made.error_reduction.tolist() == [float(gain) for gain, _ in exact]
    assert made.mean_member_accuracy.tolist() == [float(mean) for _, mean in exact]


def test_all_subsets_or_a_sample_of_them():
    assert e.subsets(5, 2, 10, 0).tolist() == [list(pair) for pair in itertools.combinations(range(5), 2)]
    for n, size, most in ((5, 2, 9), (30, 4, 100), (69, 5, 1000)):
        sample = e.subsets(n, size, most, 0)
        assert sample.shape == (most, size)
        assert len({tuple(row) for row in sample.tolist()}) == most
        assert (np.diff(sample, axis=1) > 0).all()
        assert sample.min() >= 0
        assert sample.max() < n
        np.testing.assert_array_equal(sample, e.subsets(n, size, most, 0))
        assert (sample != e.subsets(n, size, most, 1)).any()
    counts = np.bincount(e.subsets(20, 3, 1000, 2).ravel(), minlength=20)
    assert counts.min() > 100  # 150 each, on average


def test_the_same_seed_gives_the_same_and_another_one_does_not():
    probabilities, labels, family = families()
    outputs = collected(probabilities, labels, 3)
    args = outputs, similarity_of(family), family.tolist()
    sampled = replace(FEW, samples=50)
    one, two, other = (e.ensembles(*args, replace(sampled, seed=seed)) for seed in (1, 1, 2))
    assert one.trends == two.trends
    assert one.trends != other.trends


def test_two_models_and_what_is_unknown_of_them():
    probabilities, labels, family = families((1, 1), n=30)
    found = e.ensembles(collected(probabilities, labels, 2), similarity_of(family), [None, None], FEW)
    assert [made.size for made in found.of_size] == [2]
    assert "there are 2 models, so no ensembles of 3" in found.notes
    assert all(math.isnan(t.rho) and math.isnan(t.ci_low) and math.isnan(t.partial_ci_high) for t in found.trends)
    assert all(math.isnan(c.difference) and math.isnan(c.ci_low) for c in found.contrasts)


def test_models_that_never_err_and_unknown_similarities():
    labels = np.arange(6, dtype=np.int32) % 3
    sure = np.full((4, 6, 3), 0.01, dtype=np.float16)
    sure[:, np.arange(6), labels] = 0.98
    found = e.ensembles(collected(sure, labels, 3), np.full((4, 4), np.nan), [1, 1, 2, 2], FEW)
    for made in found.of_size:
        assert np.isnan(made.error_reduction).all()
        assert (made.all_wrong_share == 0).all()
        assert np.isnan(made.mean_sat).all()
    assert {t.n for t in found.trends} == {0, 6, 4}


def test_one_image():
    probabilities, labels, family = families((2, 2), n=1)
    found = e.ensembles(collected(probabilities, labels, 3), similarity_of(family), family.tolist(), FEW)
    assert [len(made.members) for made in found.of_size] == [6, 4]


def test_too_few_models_are_said():
    probabilities, labels, family = families((1,), n=10)
    with pytest.raises(AnalysisError, match="it takes 2 models with predictions of the same images, there are 1"):
        e.ensembles(collected(probabilities, labels, 1), similarity_of(family), [1], FEW)
