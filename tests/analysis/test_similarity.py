"""SAT against hand-worked cases, a slow independent version, and the properties that it must have."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from simhpc.analysis import similarity as s

FLOOR = 0.01


def from_flags(correct, fooled, measured=None):
    """correct (M, N), fooled (M, M, N) anywhere; only X_AB may be shown."""
    shown = correct[:, None] & correct[None]
    if measured is None:
        measured = np.ones(fooled.shape[:2], dtype=bool)
    return s.count_pairs(s.pack_bits(correct), s.pack_bits(fooled & shown), measured)


@st.composite
def outcomes(draw):
    m, n = draw(st.integers(1, 5)), draw(st.integers(1, 130))
    correct = draw(hnp.arrays(bool, (m, n)))
    fooled = draw(hnp.arrays(bool, (m, m, n)))
    return correct, fooled


def slow_sat(correct, fooled, a, b, floor):
    """The definition, an image at a time."""
    common = [i for i in range(correct.shape[1]) if correct[a][i] and correct[b][i]]
    if not common:
        return float("nan")
    ab = sum(bool(fooled[a][b][i]) for i in common) / len(common)
    ba = sum(bool(fooled[b][a][i]) for i in common) / len(common)
    return math.log(max(floor, 100 * 0.5 * (ab + ba)))


def test_three_models_and_four_images_by_hand():
    # Image:              0  1  2  3
    correct = np.array([[1, 1, 1, 1],  # A gets all right
                        [1, 1, 1, 0],  # B misses image 3
                        [0, 1, 1, 1]], dtype=bool)  # C misses image 0  # fmt: skip
    fooled = np.zeros((3, 3, 4), dtype=bool)
    fooled[0, 0] = [1, 1, 1, 0]  # A's attacks fool A on 3 of 4
    fooled[0, 1] = [1, 0, 0, 1]  # A -> B: image 0 of X_AB = {0, 1, 2}; image 3 must not count
    fooled[1, 0] = [1, 1, 0, 0]  # B -> A: images 0 and 1
    fooled[0, 2] = [0, 0, 0, 0]  # A -> C: none of X_AC = {1, 2, 3}
    fooled[2, 0] = [0, 0, 1, 0]  # C -> A: image 2
    counts = from_flags(correct, fooled)
    assert counts.common.tolist() == [[4, 3, 3], [3, 3, 2], [3, 2, 3]]
    assert counts.fooled.tolist() == [[3, 1, 0], [2, 0, 0], [1, 0, 0]]
    assert counts.both.tolist() == [[3, 1, 0], [1, 0, 0], [0, 0, 0]]
    matrix = s.sat_matrix(counts, FLOOR)
    assert matrix[0, 0] == pytest.approx(math.log(75))
    assert matrix[0, 1] == pytest.approx(math.log(100 * 0.5 * (1 / 3 + 2 / 3)))  # ln 50
    assert matrix[0, 2] == pytest.approx(math.log(100 * 0.5 * (1 / 3)))
    assert matrix[1, 2] == pytest.approx(math.log(FLOOR))
    assert s.floor_binds(counts, FLOOR).tolist() == [[False, False, False], [False, True, True], [False, True, True]]


@given(outcomes())
def test_equals_the_definition(outcome):
    correct, fooled = outcome
    matrix = s.sat_matrix(from_flags(correct, fooled), FLOOR)
    for a in range(len(correct)):
        for b in range(len(correct)):
            np.testing.assert_allclose(matrix[a, b], slow_sat(correct, fooled, a, b, FLOOR), rtol=1e-12)


@given(outcomes())
def test_symmetric_and_in_range(outcome):
    matrix = s.sat_matrix(from_flags(*outcome), FLOOR)
    np.testing.assert_array_equal(matrix, matrix.T)
    known = matrix[~np.isnan(matrix)]
    assert np.all(known >= math.log(FLOOR))
    assert np.all(known <= math.log(100) + 1e-12)


@given(outcomes(), st.integers(0, 2**32 - 1))
def test_order_of_models_and_images_does_not_matter(outcome, seed):
    correct, fooled = outcome
    random = np.random.default_rng(seed)
    models, images = random.permutation(correct.shape[0]), random.permutation(correct.shape[1])
    counts = from_flags(correct, fooled)
    permuted = from_flags(correct[models][:, images], fooled[np.ix_(models, models)][:, :, images])
    np.testing.assert_array_equal(s.sat_matrix(permuted, FLOOR), s.sat_matrix(counts, FLOOR)[np.ix_(models, models)])
    options = {"floor_percent": FLOOR, "confidence": 0.9}
    for end, permuted_end in zip(
        s.bootstrap_intervals(counts, **options), s.bootstrap_intervals(permuted, **options), strict=True
    ):
        np.testing.assert_array_equal(permuted_end, end[np.ix_(models, models)])


@given(outcomes())
def test_a_twin_is_as_similar_as_the_model_itself(outcome):
    correct, fooled = outcome
    twins = [*range(len(correct)), 0]  # model 0 once more, at the end
    matrix = s.sat_matrix(from_flags(correct[twins], fooled[np.ix_(twins, twins)]), FLOOR)
    np.testing.assert_array_equal(matrix[0, -1], matrix[0, 0])
    np.testing.assert_array_equal(matrix[0, :-1], matrix[-1, :-1])


def test_unmeasured_directions_and_empty_intersections_are_nan():
    correct = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]], dtype=bool)
    measured = np.ones((3, 3), dtype=bool)
    measured[0, 1] = False
    counts = from_flags(correct, np.ones((3, 3, 4), dtype=bool), measured)
    matrix = s.sat_matrix(counts, FLOOR)
    assert np.isnan(matrix[0, 1])
    assert np.isnan(matrix[1, 0])
    assert np.isnan(matrix[0, 2])  # X_AC is empty
    assert matrix[1, 2] == pytest.approx(math.log(100))
    low, high = s.bootstrap_intervals(counts, floor_percent=FLOOR, confidence=0.95)
    np.testing.assert_array_equal(np.isnan(low), np.isnan(matrix))
    np.testing.assert_array_equal(np.isnan(high), np.isnan(matrix))


def test_interval_agrees_with_resampling_the_images_one_by_one():
    random = np.random.default_rng(0)
    n = 400
    correct = np.ones((2, n), dtype=bool)
    fooled = np.zeros((2, 2, n), dtype=bool)
    fooled[0, 1] = random.random(n) < 0.3
    fooled[1, 0] = fooled[0, 1] ^ (random.random(n) < 0.2)
    low, high = s.bootstrap_intervals(from_flags(correct, fooled), floor_percent=FLOOR, confidence=0.95)
    scores = (fooled[0, 1].astype(float) + fooled[1, 0]) / 2
    naive = [np.log(100 * scores[random.integers(0, n, n)].mean()) for _ in range(20_000)]
    np.testing.assert_allclose([low[0, 1], high[0, 1]], np.quantile(naive, [0.025, 0.975]), atol=0.01)


@st.composite
def scores(draw):
    """Numbers of images that fool in no, one and both directions, not all alike."""
    counts = draw(st.tuples(*[st.integers(0, 12)] * 3).filter(lambda found: sum(k > 0 for k in found) > 1))
    scale = draw(st.sampled_from([1, 1, 7, 60]))
    return tuple(scale * count for count in counts)


def slow_interval(n_none, n_one, n_two, alpha):
    """Ends of half the mean score, by exact integers: how many of the n^n resamples have each sum."""
    n = n_none + n_one + n_two
    ways = [1]
    for _ in range(n):
        ways = [
            sum(count * ways[total - score] for score, count in enumerate((n_none, n_one, n_two))
                if 0 <= total - score < len(ways))
            for total in range(len(ways) + 2)
        ]  # fmt: skip
    allowed = alpha / 2 * n**n
    low = max(total for total in range(2 * n + 1) if sum(ways[:total]) < allowed)
    high = min(total for total in range(2 * n + 1) if sum(ways[total + 1 :]) < allowed)
    return float(low / (2 * n)), float(high / (2 * n))


def interval(n_none, n_one, n_two, confidence):
    n = n_none + n_one + n_two
    common, both = np.full((2, 2), n), np.full((2, 2), n_two)
    fooled = np.array([[n_two, n_two + n_one], [n_two, n_two]])
    ends = s.bootstrap_intervals(s.PairCounts(common, fooled, both), floor_percent=1e-9, confidence=confidence)
    return [float(np.exp(end[0, 1]) / 100) for end in ends]


@given(scores().filter(lambda found: sum(found) <= 40), st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.999]))
def test_interval_equals_counting_all_resamples(found, confidence):
    expected = np.maximum(slow_interval(*found, Fraction(1) - Fraction(str(confidence))), 1e-11)
    np.testing.assert_allclose(interval(*found, confidence), expected, rtol=1e-9)


def test_a_tie_is_left_inside_the_interval():
    # Two images of which one fools in one direction: sums 0, 1, 2 in one, two and one of four resamples.
    np.testing.assert_allclose(interval(1, 1, 0, 0.5), [1e-11, 0.5], rtol=1e-9)
    np.testing.assert_allclose(interval(1, 1, 0, 0.51), [1e-11, 0.5], rtol=1e-9)
    np.testing.assert_allclose(interval(1, 1, 0, 0.49), [0.25, 0.25], rtol=1e-9)


@given(scores(), st.sampled_from([0.5, 0.95, 0.9999]))
@settings(max_examples=50)
def test_interval_of_many_images_equals_repeated_convolution(found, confidence):
    n = sum(found)
    chances = np.ones(1)
    for _ in range(n):
        chances = np.convolve(chances, np.array(found) / n)
    low, high = interval(*found, confidence)
    below = np.cumsum(chances)
    at, tail = [round(end * 2 * n) for end in (low, high)], (1 - confidence) / 2
    assert at[0] == np.argmax(below >= tail - 1e-9)
    assert at[1] == np.argmax(below > 1 - tail + 1e-9)


def test_interval_does_not_depend_on_what_else_is_computed(monkeypatch):
    random = np.random.default_rng(5)
    correct = random.random((9, 700)) < 0.8
    fooled = random.random((9, 9, 700)) < random.random((9, 9, 1))
    counts, options = from_flags(correct, fooled), {"floor_percent": FLOOR, "confidence": 0.95}
    whole = s.bootstrap_intervals(counts, **options)
    monkeypatch.setattr(s, "_BLOCK", 1)  # one pair at a time
    for end, alone in zip(whole, s.bootstrap_intervals(counts, **options), strict=True):
        np.testing.assert_array_equal(end, alone)


@pytest.mark.parametrize("confidence", [1 - 1e-12, 1 - 1e-16])
def test_extreme_confidence_stays_between_nothing_and_everything(confidence):
    low, high = interval(5, 3, 2, confidence)
    assert low == pytest.approx(1e-11)
    assert high == pytest.approx(1.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        fooled = np.zeros((2, 2, 300), dtype=bool)
        fooled[0, 1], fooled[1, 0] = random.random(300) < 0.2, random.random(300) < 0.1
        low, high = s.bootstrap_intervals(
            from_flags(np.ones((2, 300), dtype=bool), fooled),
            floor_percent=FLOOR, confidence=0.9,
        )  # fmt: skip
        covered += low[0, 1] <= math.log(15) <= high[0, 1]
    assert 0.85 <= covered / 300 <= 0.95


@pytest.mark.parametrize(("fooling", "mean"), [((0, 0), 0.0), ((1, 1), 1.0), ((1, 0), 0.5)])
def test_interval_where_every_image_agrees_is_the_exact_binomial_bound(fooling, mean):
    n, alpha = 40, 0.05
    fooled = np.zeros((2, 2, n), dtype=bool)
    fooled[0, 1], fooled[1, 0] = fooling
    low, high = s.bootstrap_intervals(
        from_flags(np.ones((2, n), dtype=bool), fooled), floor_percent=FLOOR, confidence=1 - alpha
    )
    # At most `otherwise` of all images can differ: the chance to see none among n is then alpha / 2.
    otherwise = 1 - (alpha / 2) ** (1 / n)
    assert (1 - otherwise) ** n == pytest.approx(alpha / 2)
    assert low[0, 1] == pytest.approx(math.log(max(FLOOR, 100 * mean * (1 - otherwise))))
    assert high[0, 1] == pytest.approx(math.log(max(FLOOR, 100 * (mean + (1 - mean) * otherwise))))


@given(outcomes())
@settings(max_examples=50)
def test_interval_contains_the_estimate(outcome):
    counts = from_flags(*outcome)
    matrix = s.sat_matrix(counts, FLOOR)
    low, high = s.bootstrap_intervals(counts, floor_percent=FLOOR, confidence=0.95)
    known = ~np.isnan(matrix)
    assert np.all(low[known] <= matrix[known] + 1e-9)
    assert np.all(matrix[known] <= high[known] + 1e-9)


@given(hnp.arrays(bool, st.tuples(st.integers(1, 3), st.integers(0, 200))))
def test_packed_bits_count_the_flags(flags):
    np.testing.assert_array_equal(np.bitwise_count(s.pack_bits(flags)).sum(-1), flags.sum(-1))


def test_order_puts_planted_blocks_together():
    random = np.random.default_rng(0)
    group = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
    matrix = np.where(group[:, None] == group, 4.0, 1.0) + random.normal(0, 0.1, (9, 9))
    matrix = (matrix + matrix.T) / 2
    ordered = group[s.similarity_order(matrix)]
    assert np.count_nonzero(np.diff(ordered)) == 2
    matrix[0, 1] = matrix[1, 0] = np.nan
    assert sorted(s.similarity_order(matrix)) == list(range(9))
    assert s.similarity_order(np.full((4, 4), np.nan)).tolist() == [0, 1, 2, 3]
