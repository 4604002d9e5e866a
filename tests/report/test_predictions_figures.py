"""Figures of ensembles and measures: every point is there, and what is unknown is drawn as such."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from matplotlib.collections import PathCollection

from simhpc.analysis import ensembles as ensembling
from simhpc.analysis import measures as measuring
from simhpc.report import ensembles as ensembles_report
from simhpc.report import measures as measures_report


def of_size(size=2, m=6, seed=0):
    members = np.array(list(itertools.combinations(range(m), size)))
    random, e = np.random.default_rng(seed), len(members)
    return ensembling.OfSize(
        size=size, n_possible=e, members=members, accuracy=random.random(e), mean_member_accuracy=random.random(e),
        best_member_accuracy=random.random(e), error_reduction=random.random(e), all_wrong_share=random.random(e),
        mean_sat=random.random(e), n_clusters=np.minimum(size, 1.0 + np.arange(e) % 3), n_unsure=0,
    )  # fmt: skip


def trend(size, outcome, rho=0.5):
    return ensembling.Trend(size, "mean_sat", outcome, 15, rho, 0.1, 0.9, -0.2, -0.4, math.nan)


def ensembles(sizes=(2, 3), rho=0.5):
    trends = [trend(size, outcome, rho) for size in sizes for outcome in ensembling.OUTCOMES]
    return ensembling.Ensembles([of_size(size) for size in sizes], trends, [], [])


def points(axes):
    return np.concatenate([each.get_offsets() for each in axes.collections if isinstance(each, PathCollection)])


def test_every_ensemble_is_drawn_once_in_both_rows():
    found = ensembles()
    figure = ensembles_report.draw(found, title="x")
    top, bottom = figure.axes[:2], figure.axes[2:4]
    for column, made in enumerate(found.of_size):
        for axes, values in ((top[column], made.error_reduction), (bottom[column], made.all_wrong_share)):
            drawn = points(axes)
            expected = np.stack([made.mean_sat, 100 * values], axis=1)
            np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
            assert axes.get_title().startswith("ρ 0.50 [0.10, 0.90]\ngiven accuracy -0.20, no interval")
    assert len(figure.legends[0].get_texts()) == 3


def test_unknown_clusters_and_correlations_can_be_drawn():
    made = of_size()
    found = ensembles((2,), math.nan)
    unknown = replace(made, n_clusters=np.full(15, np.nan), mean_sat=np.full(15, np.nan))
    figure = ensembles_report.draw(replace(found, of_size=[unknown]), title="x")
    assert figure.axes[0].get_title() == "rank correlation unknown (n = 15)"


def measures(m=6, unknown=False):
    made = []
    for number, name in enumerate(("sat", "error_consistency", "disagreement", "js_divergence", "my_own")):
        value = np.random.default_rng(number).normal(size=(m, m))
        value = value + value.T
        if unknown and number:
            value[:] = np.nan
        made.append(measuring.Measure(name, value, None, "unit", True, 10, measuring.Cost()))
    return made, measuring.compare(made, measuring.Settings(resamples=20))


def test_every_pair_of_every_measure_is_drawn_against_sat():
    made, found = measures()
    figure = measures_report.draw(made, found, ["a", "a", "b", "b", "c", "c"], title="x")
    heatmap, *scatters = figure.axes
    assert [label.get_text() for label in heatmap.get_xticklabels()] == [
        "SAT", "error consistency", "disagreement", "JS divergence", "my own",
    ]  # fmt: skip
    assert len(heatmap.texts) == 25
    assert len(scatters) == 4
    a, b = np.triu_indices(6, k=1)
    for axes, measure in zip(scatters, made[1:], strict=True):
        drawn = points(axes)
        expected = np.stack([made[0].value[a, b], measure.value[a, b]], axis=1)
        np.testing.assert_allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])


def test_measures_that_are_unknown_can_be_drawn():
    made, found = measures(unknown=True)
    figure = measures_report.draw(made, found, ["a"] * 6, title="x")
    assert [text.get_text() for text in figure.axes[0].texts].count("?") == 20
    assert [axes.get_title() for axes in figure.axes[1:]] == ["ρ unknown; 0 pairs"] * 4
