"""Other measures: against scikit-learn, scipy and images drawn again one by one; and how they are compared."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from simhpc.analysis import measures as me
from simhpc.analysis.similarity import PairCounts, count_pairs, pack_bits, sat_matrix
from simhpc.errors import AnalysisError

FEW = me.Settings(image_resamples=400, resamples=200, n_differing=3)


def answers(m=5, n=200, k=4, seed=0):
    """Classes of m models of falling accuracy, and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, k, n).astype(np.int32)
    shared = random.random(n)
    is_right = 0.5 * shared + 0.5 * random.random((m, n)) > np.linspace(0.2, 0.5, m)[:, None]
    wrong = (labels + random.integers(1, k, (m, n))) % k
    return np.where(is_right, labels, wrong).astype(np.int32), labels


def drawn_again(n, statistic, times=1500, seed=0):
    """Standard deviation of a statistic over images drawn with replacement, one resample after the other."""
    random = np.random.default_rng(seed)
    return np.std([statistic(random.integers(0, n, n)) for _ in range(times)])


def test_error_consistency_is_cohens_kappa_of_being_right():
    predicted, labels = answers()
    right = predicted == labels
    found = me.error_consistency(right, FEW)
    for a in range(5):
        for b in range(5):
            if a != b:
                assert found.value[a, b] == pytest.approx(cohen_kappa_score(right[a], right[b]))
    slowly = drawn_again(200, lambda images: cohen_kappa_score(right[0, images], right[3, images]), 400)
    assert found.std_error[0, 3] == pytest.approx(slowly, rel=0.12)
    assert found.is_similarity


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4))
def test_kappa_by_the_definition_of_geirhos_et_al(cells):
    n = sum(cells)
    if not n:
        return
    one, other = (cells[0] + cells[1]) / n, (cells[0] + cells[2]) / n
    expected = one * other + (1 - one) * (1 - other)
    found = me.kappa(np.array(cells, dtype=float))
    if math.isclose(expected, 1.0):
        assert math.isnan(found)
    else:
        assert found == pytest.approx(((cells[0] + cells[3]) / n - expected) / (1 - expected))
        assert -1.0 - 1e-9 <= found <= 1.0 + 1e-9


def test_models_that_never_err_have_no_error_consistency():
    found = me.error_consistency(np.ones((3, 10), dtype=bool), FEW)
    assert np.isnan(found.value).all()
    assert np.isnan(found.std_error).all()


def test_disagreement_by_counting():
    predicted, _ = answers()
    found = me.disagreement(predicted, FEW)
    for a in range(5):
        for b in range(5):
            assert found.value[a, b] == sum(predicted[a, i] != predicted[b, i] for i in range(200)) / 200
    slowly = drawn_again(200, lambda images: np.mean(predicted[1, images] != predicted[4, images]))
    assert found.std_error[1, 4] == pytest.approx(slowly, rel=0.08)


def stored(m, n, k, sharpness=3.0, seed=0):
    logits = sharpness * np.random.default_rng(seed).normal(size=(m, n, k))
    shifted = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (shifted / shifted.sum(axis=2, keepdims=True)).astype(np.float16)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 3.0, 30.0]))
@settings(max_examples=20)
def test_divergence_is_the_square_of_scipys_distance(seed, sharpness):
    probabilities = stored(4, 9, 6, sharpness, seed)
    found = me.divergence(np.split(probabilities, [4], axis=1), np.arange(9), FEW)
    exact = probabilities.astype(float)
    for a in range(4):
        for b in range(4):
            slowly = np.nan_to_num(jensenshannon(exact[a], exact[b], axis=1)) ** 2
            assert found.value[a, b] == pytest.approx(slowly.mean(), abs=2e-6)
            assert found.std_error[a, b] == pytest.approx(slowly.std() / 3, abs=2e-5)
    assert (found.value >= 0).all()
    assert (found.value <= math.log(2) + 1e-6).all()


def test_divergence_of_the_same_and_of_what_has_nothing_in_common():
    probabilities = np.zeros((3, 5, 4), dtype=np.float16)
    probabilities[:2, :, 0] = probabilities[2, :, 1] = 1.0
    found = me.divergence([probabilities], np.arange(5), FEW)
    assert found.value[0, 1] == pytest.approx(0.0, abs=1e-7)
    assert found.value[0, 2] == pytest.approx(math.log(2), abs=1e-6)


def test_divergence_of_some_images_wherever_blocks_end():
    probabilities, images = stored(3, 50, 5), np.array([0, 7, 8, 31, 49])
    alone = me.divergence([probabilities[:, images]], np.arange(5), FEW)
    for ends in ([], [8], [7, 8, 9, 40]):
        found = me.divergence(np.split(probabilities, ends, axis=1), images, FEW)
        np.testing.assert_array_equal(found.value, alone.value)
        np.testing.assert_array_equal(found.std_error, alone.std_error)
    assert found.n_images == 5


def test_all_images_or_where_that_takes_long_some_of_them():
    np.testing.assert_array_equal(me.divergence_images(10, 1497, 10, 0), np.arange(1497))
    some = me.divergence_images(69, 5000, 1000, 0)
    assert len(some) == 2131
    assert (np.diff(some) > 0).all()
    assert some[-1] < 5000
    np.testing.assert_array_equal(some, me.divergence_images(69, 5000, 1000, 0))
    assert (some != me.divergence_images(69, 5000, 1000, 1)).any()
    assert len(me.divergence_images(1000, 5000, 1000, 0)) == 200
    assert len(me.divergence_images(1000, 50, 1000, 0)) == 50


def fooling(m=4, n=150, seed=0):
    random = np.random.default_rng(seed)
    correct = random.random((m, n)) < 0.9
    fooled = (random.random((m, m, n)) < 0.3) & correct[:, None] & correct[None]
    counts = count_pairs(pack_bits(correct), pack_bits(fooled), np.ones((m, m), dtype=bool))
    return correct, fooled, counts


def test_standard_error_of_sat_is_that_of_images_of_x_ab():
    correct, fooled, counts = fooling()
    found = me.transferability(sat_matrix(counts, 0.01), counts, 0.01, me.Cost(2, 50, 2), 0.9, FEW)
    images = np.flatnonzero(correct[0] & correct[2])
    scores = (fooled[0, 2].astype(int) + fooled[2, 0])[images]
    slowly = drawn_again(len(images), lambda rows: math.log(max(0.01, 50 * scores[rows].mean())))
    assert found.std_error[0, 2] == pytest.approx(slowly, rel=0.1)
    np.testing.assert_array_equal(found.value, sat_matrix(counts, 0.01))
    assert found.reliability == 0.9


def test_pairs_without_a_number_have_no_error_either():
    _, _, counts = fooling()
    common, fooled, both = counts.common.copy(), counts.fooled.copy(), counts.both.copy()
    common[0, 1] = common[1, 0] = fooled[0, 1] = fooled[1, 0] = both[0, 1] = both[1, 0] = 0  # empty X_AB
    fooled[2, 3] = both[2, 3] = both[3, 2] = -1  # not measured
    changed = PairCounts(common, fooled, both)
    found = me.transferability(sat_matrix(changed, 0.01), changed, 0.01, me.Cost(), 0.9, FEW)
    assert np.isnan(found.std_error[[0, 1, 2, 3], [1, 0, 3, 2]]).all()
    assert np.isfinite(found.std_error[0, 2])


def measure(name, value, error=None, is_similarity=True, reliability=math.nan):
    return me.Measure(name, value, error, "unit", is_similarity, 100, me.Cost(), "", reliability)


def symmetric(m, seed):
    matrix = np.random.default_rng(seed).normal(size=(m, m))
    return matrix + matrix.T


def test_measures_that_say_the_same_and_one_that_says_nothing():
    sat = symmetric(14, 0)
    measures = [
        measure("sat", sat),
        measure("same", np.exp(sat)),
        measure("distance", -sat, is_similarity=False),
        measure("noise", symmetric(14, 1)),
    ]
    found = me.compare(measures, FEW)
    by = {(each.one, each.other): each for each in found.correlations}
    assert len(by) == 6
    assert by["sat", "same"].rho == pytest.approx(1.0)
    assert by["sat", "same"].ci_low == pytest.approx(1.0)
    assert by["sat", "distance"].rho == pytest.approx(-1.0)
    noise = by["sat", "noise"]
    assert noise.ci_low < 0 < noise.ci_high
    a, b = np.triu_indices(14, k=1)
    assert noise.rho == pytest.approx(spearmanr(sat[a, b], measures[3].value[a, b])[0])
    assert {each.n_pairs for each in found.correlations} == {91}
    same = [each for each in found.differing if each.measure in ("same", "distance")]
    assert all(each.rank == each.sat_rank for each in same)
    assert found.notes == []


def test_a_pair_that_is_ranked_otherwise_is_named():
    sat = symmetric(9, 0)
    other = sat.copy()
    other[2, 5] = other[5, 2] = -10.0
    sat[2, 5] = sat[5, 2] = 10.0
    first = me.compare([measure("sat", sat), measure("other", other)], FEW).differing[0]
    assert (first.a, first.b, first.sat_rank, first.rank, first.of_pairs) == (2, 5, 1.0, 36.0, 36)


def test_pairs_are_those_that_both_measures_are_known_of():
    sat, part, one_model = symmetric(8, 0), symmetric(8, 1), symmetric(8, 2)
    part[:3] = part[:, :3] = np.nan
    one_model[4] = one_model[:, 4] = np.nan
    found = me.compare([measure("sat", sat), measure("part", part), measure("one", one_model)], FEW)
    assert [each.n_pairs for each in found.correlations] == [10, 21, 6]
    both = np.isfinite(part) & np.isfinite(one_model) & np.triu(np.ones((8, 8), dtype=bool), k=1)
    assert found.correlations[2].rho == pytest.approx(spearmanr(part[both], one_model[both])[0])


def answers_of_families(n, seed, *, between=1.0):
    """Probabilities of 12 models of 3 families and labels; images differ in how hard they are for all."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n).astype(np.int32)
    shared = between * random.normal(size=(3, n, 4))[np.repeat(np.arange(3), 4)]
    logits = shared + random.normal(size=(12, n, 4))
    logits[:, np.arange(n), labels] += 8.0 * (random.random(n) < 0.5)
    unscaled = np.exp(logits)
    return (unscaled / unscaled.sum(axis=2, keepdims=True)).astype(np.float16), labels


def all_measures(probabilities, labels):
    predicted = probabilities.argmax(axis=2).astype(np.int32)
    return (
        me.error_consistency(predicted == labels, FEW),
        me.disagreement(predicted, FEW),
        me.divergence([probabilities], np.arange(len(labels)), FEW),
    )


def test_reliability_is_the_correlation_with_the_same_of_other_images():
    """What an image does to all pairs alike is in the standard errors, and changes the order of no pairs."""
    upper = np.triu_indices(12, k=1)
    ones, others = ([all_measures(*answers_of_families(400, seed + k)) for k in range(10)] for seed in (0, 100))
    for of_measure in zip(zip(*ones, strict=True), zip(*others, strict=True), strict=True):
        pairs = list(zip(*of_measure, strict=True))
        truth = np.mean([np.corrcoef(one.value[upper], other.value[upper])[0, 1] for one, other in pairs])
        found = np.mean([one.reliability for one, _ in pairs])
        by_errors = np.mean([1 - np.mean(one.std_error[upper] ** 2) / one.value[upper].var(ddof=1) for one, _ in pairs])
        assert found == pytest.approx(truth, abs=0.03), pairs[0][0].name
        assert by_errors < truth - 0.04


def test_models_that_differ_in_nothing_have_no_reliability():
    found = [all_measures(*answers_of_families(200, seed, between=0.0)) for seed in range(20)]
    for of_measure in zip(*found, strict=True):
        assert abs(np.mean([each.reliability for each in of_measure])) < 0.1


def test_low_reliability_is_told():
    matrix = symmetric(6, 0)
    rest = [measure(name, matrix, reliability=share) for name, share in (("x", 0.51), ("y", 0.49), ("z", math.nan))]
    assert me.compare([measure("sat", matrix), *rest], replace(FEW, resamples=20)).notes == [
        "y: more than half of its spread over pairs is sampling error of the images (reliability 0.49)"
    ]


def test_a_measure_of_one_value_and_too_few_models():
    found = me.compare([measure("sat", symmetric(5, 0)), measure("flat", np.ones((5, 5)), np.ones((5, 5)))], FEW)
    assert math.isnan(found.correlations[0].rho)
    assert math.isnan(found.correlations[0].ci_low)
    with pytest.raises(AnalysisError, match="three models, to compare measures; there are 2"):
        me.compare([measure("sat", symmetric(2, 0)), measure("other", symmetric(2, 1))], FEW)


def test_one_image():
    predicted, labels = answers(n=1)
    consistency = me.error_consistency(predicted == labels, FEW)
    assert np.isnan(consistency.value[0, 1:]).any()
    assert math.isnan(consistency.reliability)
    assert set(me.disagreement(predicted, FEW).std_error.ravel()) == {0.0}
    found = me.divergence([stored(5, 1, 4)], np.arange(1), FEW)
    assert (found.std_error == 0).all()


def test_the_same_seed_gives_the_same():
    predicted, labels = answers()
    one, two, other = (me.error_consistency(predicted == labels, replace(FEW, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.std_error, two.std_error)
    assert (one.std_error[0, 1:] != other.std_error[0, 1:]).any()
