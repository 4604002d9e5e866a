"""Distillation: correlations as others compute them, planted relations are found, and where there is none none is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simhpc.analysis import distillation as d
from simhpc.errors import AnalysisError

FAST = d.Settings(resamples=400)


def teachers(n=30, similarity=0.0, accuracy=0.0, noise=0.002, repeats=1, seed=0, same_slope=None):
    """N teachers whose students' accuracy follows their similarity and accuracy with these slopes, and noise."""
    random = np.random.default_rng(seed)
    x, z = random.normal(2.0, 0.5, n), random.normal(0.75, 0.03, n)
    same = (np.arange(n) % 2).astype(float)
    slope = np.where(same == 1, similarity if same_slope is None else same_slope, similarity)
    mean = 0.70 + slope * (x - 2.0) + accuracy * (z - 0.75)
    return d.Teachers(
        similarity=x,
        accuracy=z,
        distilled=mean[:, None] + random.normal(0, noise, (n, repeats)),
        same_base=same,
        undistilled=0.70 + random.normal(0, noise, repeats),
    )


def pick(result, group="all", name="similarity", given=None, method="pearson"):
    (found,) = [
        each
        for each in result.correlations
        if (each.group, each.property, each.given, each.method) == (group, name, given, method)
    ]
    return found


def by_residuals(x, y, z):
    """Partial correlation as it is defined: of what two regressions on z leave."""
    left = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    return np.corrcoef(*left)[0, 1]


def test_correlations_are_those_of_scipy_and_of_residuals():
    given = teachers(similarity=0.01, accuracy=0.2, seed=3)
    result = d.distillation(given, FAST)
    y, x, z = given.distilled[:, 0], given.similarity, given.accuracy
    assert pick(result).r == pytest.approx(stats.pearsonr(x, y).statistic)
    assert pick(result, method="spearman").r == pytest.approx(stats.spearmanr(x, y).statistic)
    assert pick(result, name="teacher_accuracy").r == pytest.approx(stats.pearsonr(z, y).statistic)
    assert pick(result, given="teacher_accuracy").r == pytest.approx(by_residuals(x, y, z))
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    assert pick(result, given="teacher_accuracy", method="spearman").r == pytest.approx(by_residuals(*ranks))
    same = given.same_base == 1
    assert pick(result, "same").r == pytest.approx(stats.pearsonr(x[same], y[same]).statistic)
    assert pick(result, "different").n == (~same).sum() == 15
    assert len(result.correlations) == 3 * 2 * 2 * 2


def test_by_hand():
    x, y, z = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3]), np.array([1.0, 1, 2, 2])
    # x: deviations -1.5 -.5 .5 1.5, y: -.5 -1.5 1.5 .5: (.75 + .75 + .75 + .75) / 5
    assert d.correlation(x, y, "pearson") == pytest.approx(0.6)
    # with z: 1 / sqrt(5 / 4 * 4)... r_xz = r_yz = 2 / sqrt(5), so (.6 - .8) / (1 - .8)
    assert d.correlation(x, y, "pearson", z) == pytest.approx(-1.0)
    assert np.isnan(d.correlation(x, np.ones(4), "pearson"))
    assert np.isnan(d.correlation(x, y, "pearson", x))


@given(st.integers(0, 2**32 - 1), st.integers(5, 12), st.floats(0.1, 50), st.floats(-5, 5))
def test_correlations_have_their_invariances(seed, n, scale, shift):
    random = np.random.default_rng(seed)
    x, y, z = random.normal(size=(3, n))
    for method in d.METHODS:
        for control in (None, z):
            r = d.correlation(x, y, method, control)
            if np.isnan(r):  # ranks that are those of z
                continue
            assert -1 <= r <= 1
            assert d.correlation(y, x, method, control) == pytest.approx(r, abs=1e-9)
            assert d.correlation(-x, y, method, control) == pytest.approx(-r, abs=1e-6)
            assert d.correlation(scale * x + shift, y, method, control) == pytest.approx(r, abs=1e-6)
    assert d.correlation(np.exp(x), y, "spearman") == pytest.approx(d.correlation(x, y, "spearman"))


def test_a_planted_relation_is_found_and_told_from_its_companion():
    """Accuracy of the teacher decides; similarity only goes along with it."""
    random = np.random.default_rng(0)
    accuracy = random.normal(0.75, 0.03, 40)
    given = d.Teachers(
        similarity=2 + 8 * (accuracy - 0.75) + random.normal(0, 0.15, 40),
        accuracy=accuracy,
        distilled=(0.7 + 0.3 * (accuracy - 0.75) + random.normal(0, 0.003, 40))[:, None],
        same_base=np.ones(40),
        undistilled=np.array([0.7]),
    )
    result = d.distillation(given)
    assert pick(result).ci_low > 0.3
    assert pick(result, name="teacher_accuracy", given="similarity").ci_low > 0.5
    partial = pick(result, given="teacher_accuracy")
    assert partial.ci_low < 0 < partial.ci_high


def test_a_relation_of_one_group_alone_is_found_there():
    result = d.distillation(teachers(n=40, similarity=0.0, same_slope=-0.02, noise=0.004), FAST)
    assert pick(result, "same").ci_high < -0.5
    assert pick(result, "different").ci_low < 0 < pick(result, "different").ci_high


def test_intervals_leave_nothing_out_too_often_where_there_is_nothing():
    missed = sum(
        not (found.ci_low <= 0 <= found.ci_high)
        for seed in range(40)
        for found in [pick(d.distillation(teachers(n=25, seed=seed), FAST))]
    )
    assert missed <= 6  # 2 expected of 40 at 95 %, some more because the interval is a percentile bootstrap


def test_gain_is_over_the_undistilled_and_has_the_interval_of_its_resamples():
    given = replace(teachers(n=12, repeats=3), undistilled=np.array([0.69, 0.71, np.nan]))
    result = d.distillation(given, FAST)
    gain, same, _ = result.gains
    assert (gain.group, gain.n, same.n) == ("all", 12, 6)
    assert gain.mean == pytest.approx(given.distilled.mean() - 0.70)
    assert gain.ci_low < gain.mean < gain.ci_high
    means = given.distilled.mean(axis=1)
    assert gain.ci_high - gain.ci_low == pytest.approx(2 * 1.96 * means.std() / np.sqrt(12), rel=0.2)


def test_chance_is_told_from_teachers():
    alike = d.distillation(teachers(repeats=4, noise=0.01), FAST)
    assert alike.std_between_repeats == pytest.approx(0.01, rel=0.2)
    assert any("hardly more" in note for note in alike.notes)
    apart = d.distillation(teachers(repeats=4, noise=0.001, similarity=0.02), FAST)
    assert not any("hardly more" in note for note in apart.notes)
    assert apart.notes == []
    once = d.distillation(teachers(repeats=1), FAST)
    assert np.isnan(once.std_between_repeats)
    assert any("nothing was repeated" in note for note in once.notes)


def test_repeats_that_are_missing_do_not_spoil_the_others():
    given = teachers(n=8, repeats=2, similarity=0.02)
    given.distilled[3, 1] = np.nan
    given.distilled[5] = np.nan
    result = d.distillation(given, FAST)
    assert pick(result).n == 7
    assert result.gains[0].n == 7
    assert any("1 teacher(s) have no student yet" in note for note in result.notes)
    assert any(note.startswith("7 teacher(s) are few") for note in result.notes)


def test_the_same_input_gives_the_same_numbers_and_order_does_not_matter():
    given = teachers(n=10, similarity=0.01)
    one, two = d.distillation(given, FAST), d.distillation(given, FAST)
    assert str(one) == str(two)  # NaN is not NaN
    order = np.random.default_rng(1).permutation(10)
    rows = {name: getattr(given, name)[order] for name in ("similarity", "accuracy", "distilled", "same_base")}
    turned = replace(given, **rows)
    for a, b in zip(one.correlations, d.distillation(turned, FAST).correlations, strict=True):
        assert a.r == pytest.approx(b.r, nan_ok=True)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_of_very_few_teachers_little_is_said(n):
    result = d.distillation(teachers(n=n), FAST)
    assert np.isfinite(pick(result).r) == (n >= 3)
    assert np.isfinite(pick(result, given="teacher_accuracy").r) == (n >= 4)
    assert all(np.isnan(each.ci_low) and np.isnan(each.ci_high) for each in result.correlations)
    assert result.gains[0].n == n
    assert any("few" in note for note in result.notes)


@pytest.mark.parametrize("n", [5, 6, 7, 12])
def test_an_interval_needs_nearly_all_resamples(n):
    """By the rule of all analyses. Draws of two teachers have a correlation, and no partial one: 10 % of those of 5."""
    values = teachers(n=n, seed=n)
    for other in (None, "teacher_accuracy"):
        for method in d.METHODS:
            found = pick(d.distillation(values, FAST), given=other, method=method)
            draws = d._resamples(n, FAST, "all")
            control = None if other is None else values.accuracy[draws]
            r = d.correlation(values.distilled[:, 0][draws], values.similarity[draws], method, control)
            is_enough = np.isfinite(r).mean() >= 0.95
            assert np.isfinite([found.ci_low, found.ci_high]).tolist() == [is_enough] * 2
            if n in (5, 12):
                assert is_enough == (other is None or n == 12)


def test_what_does_not_vary_or_is_unknown_has_no_correlation():
    flat = replace(teachers(n=9), distilled=np.full((9, 1), 0.7))
    assert np.isnan(pick(d.distillation(flat, FAST)).r)
    unknown = replace(
        teachers(n=9), similarity=np.full(9, np.nan), same_base=np.full(9, np.nan), undistilled=np.array([np.nan])
    )
    result = d.distillation(unknown, FAST)
    assert pick(result, name="teacher_accuracy").n == 0
    assert np.isnan(result.gains[0].mean)
    text = " ".join(result.notes)
    assert "9 teacher(s) are left out of correlations" in text
    assert "base architectures are unknown" in text
    assert "undistilled student is unknown" in text


def test_without_any_student_there_is_nothing_to_say():
    with pytest.raises(AnalysisError, match="no student has been distilled"):
        d.distillation(replace(teachers(n=5), distilled=np.full((5, 2), np.nan)))
