"""How sure a matrix is: every number against a slow one, what is certain is found certain, and what is not is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from simhpc.analysis import reliability as r
from simhpc.analysis.similarity import PairCounts, bootstrap_intervals, count_pairs, pack_bits, sat_matrix
from simhpc.errors import AnalysisError

FEW = r.Settings(resamples=200, splits=20, cluster_resamples=20)
FLOOR = 0.01


def made(m, n, rate, seed=0, accuracy=0.8, measured=None):
    """Outcomes of M models whose pairs fool each other at these rates: (M, M)."""
    random = np.random.default_rng(seed)
    right = random.random((m, n)) < accuracy
    fooled = (random.random((m, m, n)) < rate[:, :, None]) & right[:, None] & right[None]
    measured = np.ones((m, m), dtype=bool) if measured is None else measured
    fooled &= measured[:, :, None]
    return right, fooled, r.Outcomes(n, pack_bits(right), pack_bits(fooled), measured)


def matrix_of(outcomes):
    return sat_matrix(count_pairs(outcomes.correct, outcomes.fooled, outcomes.measured), FLOOR)


def grouped(m, groups=2, inside=0.5, outside=0.1):
    group = np.arange(m) * groups // m
    return np.where(group[:, None] == group, inside, outside)


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 70))
def test_weighted_images_equal_counting_one_by_one(seed, m, n):
    random = np.random.default_rng(seed)
    measured = random.random((m, m)) < 0.9
    right, fooled, outcomes = made(m, n, random.random((m, m)), seed, accuracy=0.5, measured=measured)
    weights = random.integers(0, 3, (3, n))
    found = r.resampled_sat(outcomes, weights, FLOOR)
    for row, drawn in zip(weights, found, strict=True):
        images = np.repeat(np.arange(n), row)
        for a, b, value in zip(*np.triu_indices(m, 1), drawn, strict=True):
            common = [k for k in images if right[a, k] and right[b, k]]
            if not common or not measured[a, b] or not measured[b, a]:
                assert np.isnan(value)
                continue
            rate = np.mean([(fooled[a, b, k] + 0.0 + fooled[b, a, k]) / 2 for k in common])
            assert value == pytest.approx(np.log(max(FLOOR, 100 * rate)), abs=1e-5)


def test_all_images_once_are_the_matrix_in_blocks_of_any_size(monkeypatch):
    _, _, outcomes = made(6, 130, grouped(6))
    upper = matrix_of(outcomes)[np.triu_indices(6, 1)]
    for block in (1, 500, 1 << 20):
        monkeypatch.setattr(r, "_BLOCK", block)
        (found,) = r.resampled_sat(outcomes, np.ones((1, 130), dtype=int), FLOOR)
        np.testing.assert_allclose(found, upper, atol=1e-6)


def test_resamples_spread_as_the_intervals_of_the_pairs_say():
    """The program's intervals are within X_AB, these resample all images: with many images both are one."""
    _, _, outcomes = made(4, 1500, grouped(4))
    counts = count_pairs(outcomes.correct, outcomes.fooled, outcomes.measured)
    low, high = bootstrap_intervals(counts, floor_percent=FLOOR, confidence=0.95)
    drawn = r.resampled_sat(outcomes, r.resampled_weights(1500, 1000, 0), FLOOR)
    ends = np.quantile(drawn, [0.025, 0.975], axis=0)
    upper = np.triu_indices(4, 1)
    np.testing.assert_allclose(ends[1] - ends[0], (high - low)[upper], rtol=0.15)
    np.testing.assert_allclose(ends.mean(axis=0), ((high + low) / 2)[upper], atol=0.03)


def test_widths_fall_with_the_root_of_the_images():
    _, _, outcomes = made(6, 1600, grouped(6))
    found = r.widths(outcomes, FEW)
    assert [width.n_images for width in found] == [100, 200, 400, 800, 1600, 3200, 6400, 25600]
    assert [width.is_extrapolated for width in found] == [False] * 5 + [True] * 3
    assert all(width.n_pairs == 15 and width.p10 <= width.median <= width.p90 for width in found)
    product = [width.median * np.sqrt(width.n_images) for width in found]
    np.testing.assert_allclose(product, product[4], rtol=0.25)
    counts = count_pairs(outcomes.correct, outcomes.fooled, outcomes.measured)
    low, high = bootstrap_intervals(counts, floor_percent=FLOOR, confidence=0.95)
    assert found[4].median == np.median((high - low)[np.triu_indices(6, 1)])
    four = PairCounts(counts.common * 4, counts.fooled * 4, counts.both * 4)
    low, high = bootstrap_intervals(four, floor_percent=FLOOR, confidence=0.95)
    assert found[6].p90 == np.quantile((high - low)[np.triu_indices(6, 1)], 0.9)


def test_widths_of_few_images_and_of_nothing_known():
    _, _, outcomes = made(3, 25, grouped(3))
    assert [width.n_images for width in r.widths(outcomes, FEW)] == [12, 25, 50, 100, 400]
    _, _, outcomes = made(3, 25, grouped(3), measured=np.zeros((3, 3), dtype=bool))
    assert all(width.n_pairs == 0 and np.isnan(width.median) for width in r.widths(outcomes, FEW))


@pytest.mark.parametrize("n", [60, 61])
def test_halves_share_no_image_and_correlate_as_scipy_says(n):
    right, fooled, outcomes = made(5, n, grouped(5))
    one, two = r.halves(outcomes, FEW)
    assert one.shape == two.shape == (20, 10)
    random = np.random.default_rng(r.derive_seed(0, "reliability halves"))
    first = random.permutation(n)
    for half, images in ((one, first[: n // 2]), (two, first[n // 2 : 2 * (n // 2)])):
        part = r.Outcomes(len(images), pack_bits(right[:, images]), pack_bits(fooled[:, :, images]), outcomes.measured)
        np.testing.assert_allclose(half[0], matrix_of(part)[np.triu_indices(5, 1)], atol=1e-5)
    found = r.split_half(one, two)
    for name, function in (("pearson", pearsonr), ("spearman", spearmanr)):
        slow = [function(a, b)[0] for a, b in zip(one.astype(float), two.astype(float), strict=True)]
        assert found[name].mean == pytest.approx(np.mean(slow), abs=1e-6)
        assert [found[name].splits_low, found[name].splits_high] == pytest.approx(
            np.quantile(slow, [0.025, 0.975]), abs=1e-6
        )
        assert found[name].whole == pytest.approx(2 * np.mean(slow) / (1 + np.mean(slow)), abs=1e-6)


def test_a_matrix_of_groups_is_reliable_and_one_of_equals_is_not():
    _, _, outcomes = made(10, 800, grouped(10))
    assert r.split_half(*r.halves(outcomes, FEW))["pearson"].whole > 0.95
    # Equal but for chance; models of one accuracy share easy and hard images with nobody.
    _, _, outcomes = made(10, 800, np.full((10, 10), 0.3))
    found = r.split_half(*r.halves(outcomes, FEW))["pearson"]
    assert found.splits_low < 0.2
    assert abs(found.mean) < 0.35


def test_spearman_and_brown_by_hand():
    assert r.spearman_brown(0.5) == pytest.approx(2 / 3)
    assert r.spearman_brown(1.0) == 1.0
    assert r.spearman_brown(0.0) == 0.0
    assert np.isnan(r.spearman_brown(-1.0))


def test_too_few_pairs_for_halves():
    _, _, outcomes = made(2, 50, grouped(2))
    with pytest.raises(AnalysisError, match="3 pairs known in both halves of the images, there are 1"):
        r.split_half(*r.halves(outcomes, FEW))


def pairs(*rows):
    return np.array(rows, dtype=np.float32)


def square(values):
    m = int((1 + np.sqrt(1 + 8 * len(values))) / 2)
    found = np.full((m, m), 4.6)
    found[np.triu_indices(m, 1)] = values
    return np.minimum(found, found.T)


def test_neighbours_by_hand():
    # Pairs 01, 02, 12.
    whole = square([3.0, 2.0, 1.0])
    drawn = pairs([3, 2, 1], [3, 2, 1], [1, 2, 0], [2, 2, 1])
    found = r.neighbours(whole, drawn, 100)
    assert found.nearest.tolist() == [1, 0, 0]
    assert found.runner_up.tolist() == [2, 2, 1]
    # Model 0: kept twice, lost once, tied once; the others keep theirs each time.
    np.testing.assert_allclose(found.share, [2.5 / 4, 1.0, 1.0])
    np.testing.assert_allclose(found.rank_correlation, [(1 + 1 - 1 + 0) / 4, 1.0, 1.0])
    std = np.std([1.0, 1.0, -1.0, 0.0])
    assert found.images_needed[0] == np.ceil(100 * (1.6448536 * std / 1.0) ** 2)


def test_neighbours_with_ties_unknown_pairs_and_a_model_that_nothing_is_known_of():
    found = r.neighbours(square([2.0, 2.0, 1.0]), pairs([2, 2, 1]), 10)
    assert found.nearest[0] == 1
    assert found.share[0] == 0.5
    assert np.isnan(found.images_needed[0])
    nan = np.nan
    found = r.neighbours(square([nan, 2.0, nan, nan, nan, nan]), pairs([nan, 2, nan, nan, nan, nan]), 10)
    assert found.nearest.tolist() == [2, -1, 0, -1]
    assert found.runner_up.tolist() == [-1] * 4
    np.testing.assert_array_equal(found.share, [1.0, nan, 1.0, nan])
    assert np.isnan(found.images_needed).all()
    two = r.neighbours(square([2.0]), pairs([1.0], [3.0]), 10)
    assert (two.nearest.tolist(), two.share.tolist()) == ([1, 0], [1.0, 1.0])


def test_images_needed_would_do():
    """Where the truth is known: with as many images as it says, the nearest is the nearest in about 95 %."""
    rate = np.array([[0.9, 0.30, 0.27], [0.30, 0.9, 0.1], [0.27, 0.1, 0.9]])
    _, _, small = made(3, 400, rate, seed=1, accuracy=1.0)
    near = r.neighbours(matrix_of(small), r.resampled_sat(small, r.resampled_weights(400, 400, 0), FLOOR), 400)
    assert near.nearest[0] == 1
    assert near.share[0] < 0.95
    # As if the images were there k times: the same matrix, less noise.
    n = int(near.images_needed[0])
    weights = np.random.default_rng(0).multinomial(n, np.full(400, 1 / 400), size=400)
    again = r.neighbours(matrix_of(small), r.resampled_sat(small, weights, FLOOR), n)
    assert again.share[0] == pytest.approx(0.95, abs=0.03)


def test_clusters_that_are_there_stay_and_those_that_are_not_do_not():
    for rate, is_there in ((grouped(9, 3), True), (np.full((9, 9), 0.3), False)):
        _, _, outcomes = made(9, 400, rate)
        drawn = r.resampled_sat(outcomes, r.resampled_weights(400, 20, 0), FLOOR)
        labels = np.arange(9) * 3 // 9 + 1
        jaccard, rand = r.cluster_jaccard(labels, np.arange(9), drawn, 9, seed=0)
        assert jaccard.shape == (9,)
        assert rand.shape == (20,)
        if is_there:
            assert jaccard.tolist() == [1.0] * 9
            assert rand.tolist() == [1.0] * 20
        else:
            assert jaccard.max() < 0.75


def test_clusters_of_some_models_and_resamples_that_lack_a_pair():
    _, _, outcomes = made(7, 300, grouped(7))
    drawn = r.resampled_sat(outcomes, r.resampled_weights(300, 4, 0), FLOOR)
    drawn[1, 0] = np.nan  # the pair 0, 1
    kept = np.array([0, 1, 2, 4, 6])
    jaccard, rand = r.cluster_jaccard(np.array([1, 1, 1, 2, 2]), kept, drawn, 7, seed=0)
    assert jaccard.tolist() == [1.0] * 5
    assert np.isnan(rand).tolist() == [False, True, False, False]


def test_agreement_of_two_matrices():
    random = np.random.default_rng(0)
    one = square(random.normal(2, 1, 45))
    noisy = square(one[np.triu_indices(10, 1)] + random.normal(0, 0.5, 45))
    noisy[0, 1] = noisy[1, 0] = np.nan
    found = r.agreement(one, noisy, FEW)
    known = np.isfinite(noisy[np.triu_indices(10, 1)])
    x, y = (each[np.triu_indices(10, 1)][known] for each in (one, noisy))
    assert found.spearman == pytest.approx(spearmanr(x, y)[0])
    assert found.pearson == pytest.approx(pearsonr(x, y)[0])
    assert found.spearman_low < found.spearman < found.spearman_high
    assert (found.n_models, found.n_pairs) == (10, 44)
    same = r.agreement(one, np.exp(one), FEW)
    assert (same.spearman, same.same_nearest) == (pytest.approx(1.0), 1.0)
    other = r.agreement(one, square(random.normal(2, 1, 45)), FEW)
    assert other.spearman_low < 0.0 < other.spearman_high
    with pytest.raises(AnalysisError, match="3 pairs of models that are known in both, there are 1"):
        r.agreement(one[:2, :2], one[:2, :2], FEW)


def test_everything_random_comes_from_the_seed():
    _, _, outcomes = made(5, 100, grouped(5))
    np.testing.assert_array_equal(r.resampled_weights(9, 3, 1), r.resampled_weights(9, 3, 1))
    assert (r.resampled_weights(9, 3, 1) != r.resampled_weights(9, 3, 2)).any()
    one, again, other = (r.halves(outcomes, replace(FEW, seed=seed))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert r.widths(outcomes, FEW) == r.widths(outcomes, FEW)
