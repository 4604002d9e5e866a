"""Linear CKA and gradient cosines against slow definitions and planted structure, and what is said of their noise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simhpc.analysis import representations as analysis
from simhpc.analysis.representations import Measure, gradient_cosines, linear_cka, mean_cosine, noise
from simhpc.errors import AnalysisError


def slow_hsic(x, y):
    """HSIC_1 of linear kernels, as Song et al. write it in matrices."""
    k, q = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0.0)
    np.fill_diagonal(q, 0.0)
    n, one = len(k), np.ones(len(k))
    trace = np.trace(k @ q)
    return (trace + (one @ k @ one) * (one @ q @ one) / ((n - 1) * (n - 2)) - 2 * (one @ k @ q @ one) / (n - 2)) / (
        n * (n - 3)
    )


def u_statistic(x, y):
    """The same as a mean over all ordered quadruples of different images: nothing to do with matrices."""
    k, q = x @ x.T, y @ y.T
    found = [k[s, t] * (q[s, t] + q[u, v] - 2 * q[s, u]) for s, t, u, v in itertools.permutations(range(len(x)), 4)]
    return np.mean(found)


def slow_cka(x, y, batches):
    def mean_hsic(a, b):
        return np.mean([slow_hsic(a[part], b[part]) for part in batches])

    return mean_hsic(x, y) / math.sqrt(mean_hsic(x, x) * mean_hsic(y, y))


def related(n, widths, seed=0):
    random = np.random.default_rng(seed)
    shared = random.normal(size=(n, 4))
    return [shared @ random.normal(size=(4, d)) + random.normal(size=(n, d)) for d in widths]


def test_the_slow_hsic_is_the_u_statistic():
    x, y = related(7, (3, 5))
    assert slow_hsic(x, y) == pytest.approx(u_statistic(x, y))


def test_cka_is_the_slow_one():
    features = related(15, (3, 8, 40))
    found = linear_cka(features, 0)
    for a, b in itertools.product(range(3), repeat=2):
        assert found.values[a, b] == pytest.approx(slow_cka(features[a], features[b], [np.arange(15)]), abs=1e-5)
    np.testing.assert_array_equal(np.diag(found.values).round(6), 1.0)
    assert found.n_images == 15


@pytest.mark.parametrize("n", [5, 19, 20, 39, 40, 79, 139, 500, 2001, 5000])
def test_halves_of_the_batches_are_halves_of_the_images(n):
    """Of three batches one and one would be two thirds of the images, and the formula for twice as many wrong."""
    batches = analysis._batches(n, analysis.BATCH, 0)
    assert len(batches) == 1 or len(batches) % 2 == 0
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == 1 or 20 <= min(sizes) <= max(sizes) <= 1.5 * analysis.BATCH
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))


@pytest.mark.parametrize(("n", "batch"), [(16, 250), (47, 12)])
def test_batches_and_the_jackknife_are_the_slow_ones(n, batch):
    x, y = related(n, (6, 30))
    batches = analysis._batches(n, batch, 5)
    found = linear_cka([x, y], 5, batch=batch)
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert len(batches) == -(-n // batch)
    assert found.values[0, 1] == pytest.approx(slow_cka(x, y, batches), abs=1e-5)
    left_out = [slow_cka(x, y, [part[part != image] for part in batches]) for image in range(n)]
    expected = math.sqrt((n - 1) * np.var(left_out))
    assert found.std_errors[0, 1] == pytest.approx(expected, rel=1e-3)
    assert found.std_errors[0, 0] == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.integers(1, 6))
def test_rotation_scale_and_shift_change_nothing(seed, scale, width):
    x, y = related(24, (width, 5), seed)
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(width, width)))
    changed = scale * (x @ rotation + random.normal(size=width))
    one, two = linear_cka([x, y], seed), linear_cka([changed, y], seed)
    np.testing.assert_allclose(one.values, two.values, atol=2e-4)
    np.testing.assert_allclose(one.std_errors, two.std_errors, atol=2e-3)


def test_a_stretched_axis_does_change_it():
    """It is not invariant to any linear map, or it would say nothing of more features than images."""
    x, y = related(60, (5, 5))
    assert abs(linear_cka([x * [10, 1, 1, 1, 1], y], 0).values[0, 1] - linear_cka([x, y], 0).values[0, 1]) > 0.05


def test_a_known_population_value():
    """Y is 2 of the 8 independent features of X: CKA is tr(C_xy C_yx) / (|C_x| |C_y|) = 2 / sqrt(8 * 2) = 1/2."""
    x = np.random.default_rng(3).normal(size=(2000, 8))
    found = linear_cka([x, x[:, :2]], 0)
    assert found.values[0, 1] == pytest.approx(0.5, abs=4 * found.std_errors[0, 1])
    assert 0.0 < found.std_errors[0, 1] < 0.02


def test_unrelated_features_are_at_0_where_the_biased_estimator_is_not():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 100, 500))
    a, b = x - x.mean(0), y - y.mean(0)
    biased = np.square(b.T @ a).sum() / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert biased > 0.7
    assert abs(linear_cka([x, y], 0).values[0, 1]) < 0.1


def test_the_standard_error_is_how_far_other_images_would_lead():
    found = [linear_cka(related_twice(60, seed), 0) for seed in range(40)]
    seen = np.std([each.values[0, 1] for each in found])
    told = np.sqrt(np.mean([each.std_errors[0, 1] ** 2 for each in found]))
    assert 0.7 < told / seen < 1.5


def related_twice(n, seed):
    """The same two networks at other images."""
    weights = np.random.default_rng(99)
    first, second = weights.normal(size=(2, 4, 10))
    random = np.random.default_rng(seed)
    shared = random.normal(size=(n, 4))
    return [shared @ first + random.normal(size=(n, 10)), shared @ second + random.normal(size=(n, 10))]


def test_huge_and_tiny_features_in_16_bits():
    x, y = related(40, (6, 6))
    expected = linear_cka([x, y], 0).values[0, 1]
    for scale in (1e-3, 1e3):
        assert linear_cka([(scale * x).astype(np.float16), y], 0).values[0, 1] == pytest.approx(expected, abs=5e-3)
    assert linear_cka([(1e30 * x).astype(np.float32), (1e-30 * y).astype(np.float32)], 0).values[0, 1] == pytest.approx(
        expected, abs=1e-4
    )


def test_models_without_features_or_with_constant_ones_are_unknown():
    x, y = related(30, (4, 4))
    found = linear_cka([x, np.empty((30, 0)), np.full((30, 3), 7.5), y], 0)
    assert np.isnan(found.values[1]).all()
    assert np.isnan(found.values[2]).all()
    assert found.values[0, 3] == pytest.approx(linear_cka([x, y], 0).values[0, 1], abs=1e-6)
    assert np.isfinite(found.std_errors[0, 3])


def test_too_few_images():
    with pytest.raises(AnalysisError, match="5 images at least, there are 4"):
        linear_cka(related(4, (2, 2)), 0)
    assert np.isfinite(linear_cka(related(5, (2, 2)), 0).values).all()
    with pytest.raises(AnalysisError, match="1 image"):
        mean_cosine(np.ones((1, 2, 2), dtype=np.float32), 0)


def test_cosines_by_hand():
    one = [np.array([[3.0, 0.0]], dtype=np.float16), np.array([[2.0, 2.0]], dtype=np.float16), np.zeros((1, 2))]
    two = [np.array([[0.0, 1.0]]), np.array([[0.0, -5.0]]), np.array([[1.0, 0.0]])]
    found = gradient_cosines([one, two])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(found[0, :2, :2], [[1, half], [half, 1]], atol=1e-6)
    assert np.isnan(found[0, 2]).all()
    np.testing.assert_allclose(found[1], [[1, -1, 0], [-1, 1, 0], [0, 0, 1]], atol=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_cosines_know_no_length(seed):
    random = np.random.default_rng(seed)
    gradients = random.normal(size=(3, 3, 4, 4)).astype(np.float32)
    scales = random.uniform(1e-3, 1e3, size=(3, 1, 1, 1)).astype(np.float32)
    found, scaled = gradient_cosines([gradients]), gradient_cosines([gradients * scales])
    np.testing.assert_allclose(found, scaled, atol=1e-5)
    a, b = gradients[0].ravel().astype(float), gradients[1].ravel().astype(float)
    assert found[0, 0, 1] == pytest.approx(a @ b / math.sqrt((a @ a) * (b @ b)), abs=1e-5)
    assert np.abs(found).max() <= 1.0


def test_mean_and_standard_error_over_the_images_that_a_pair_has():
    random = np.random.default_rng(0)
    cosines = random.uniform(-1, 1, size=(20, 3, 3)).astype(np.float32)
    cosines[:6, 0, 1] = np.nan
    cosines[:, 1, 2] = np.nan
    cosines[1:, 2, 0] = np.nan
    found = mean_cosine(cosines, 0)
    seen = cosines[6:, 0, 1].astype(float)
    assert found.values[0, 1] == pytest.approx(seen.mean())
    assert found.std_errors[0, 1] == pytest.approx(seen.std(ddof=1) / math.sqrt(14))
    assert np.isnan(found.values[1, 2])
    assert found.values[2, 0] == pytest.approx(cosines[0, 2, 0])
    assert np.isnan(found.std_errors[2, 0])


def planted(n, spread, noise_std, m=24, seed=0):
    """Cosines of single images: one value per pair of models, and noise of the image and the pair."""
    random = np.random.default_rng(seed)
    true = 0.3 + spread * random.normal(size=(m, m))
    found = (np.triu(true, 1) + np.triu(true, 1).T) + np.zeros((n, 1, 1))
    errors = noise_std * random.normal(size=(n, m, m))
    return (found + np.triu(errors, 1) + np.triu(errors, 1).transpose(0, 2, 1)).astype(np.float32)


def test_reliability_is_the_share_of_the_variance_that_is_not_noise():
    found = noise(mean_cosine(planted(50, spread=0.02, noise_std=0.1), 0))
    expected = 0.02**2 / (0.02**2 + 0.1**2 / 50)
    assert found.reliability == pytest.approx(expected, abs=0.06)
    assert found.error == pytest.approx(0.1 / math.sqrt(50), rel=0.05)
    assert found.spread == pytest.approx(math.sqrt(0.02**2 + 0.1**2 / 50), rel=0.1)
    assert (found.n_pairs, found.n_images) == (24 * 23 // 2, 50)
    # 0.95 = 0.02^2 / (0.02^2 + 0.1^2 / n)
    assert found.images_for_95 == pytest.approx(19 * 0.1**2 / 0.02**2, rel=0.35)


def test_pairs_that_differ_by_noise_alone_have_no_reliability():
    found = [noise(mean_cosine(planted(40, spread=0.0, noise_std=0.1, seed=seed), 0)) for seed in range(5)]
    assert np.mean([each.reliability for each in found]) < 0.2
    assert all(each.images_for_95 > 1000 for each in found)
    assert all(each.error / each.spread == pytest.approx(1.0, abs=0.15) for each in found)


def test_what_an_image_does_to_all_pairs_alike_is_error_but_not_unreliable():
    cosines = planted(50, spread=0.02, noise_std=0.001)
    cosines += np.random.default_rng(1).normal(0, 0.2, size=(50, 1, 1)).astype(np.float32)
    found = noise(mean_cosine(cosines, 0))
    assert found.error == pytest.approx(0.2 / math.sqrt(50), rel=0.2)
    assert found.reliability > 0.99


def test_two_models_have_no_reliability_to_speak_of():
    found = noise(mean_cosine(planted(10, 0.1, 0.1, m=2), 0))
    assert found.n_pairs == 1
    assert math.isnan(found.reliability)
    assert math.isnan(found.images_for_95)
    assert math.isnan(found.spread)
    nothing = noise(Measure(np.full((3, 3), np.nan), np.full((3, 3), np.nan), 9, np.empty((0, 2, 3, 3))))
    assert nothing.n_pairs == 0
    assert math.isnan(nothing.mean)


def test_the_same_seed_gives_the_same_numbers():
    features = related(120, (4, 6, 9))
    one, two, other = (linear_cka(features, seed, batch=30) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.halves, two.halves)
    assert not np.array_equal(one.values, other.values)
    np.testing.assert_allclose(one.values, other.values, atol=4 * one.std_errors.max())


def test_halves_share_no_image():
    for n in (2, 7, 30):
        for one, two in analysis.halves(n, 0):
            assert len(one) == len(two) == n // 2
            assert len({*one, *two}) == 2 * (n // 2)
    assert analysis.halves(1, 0) == []
