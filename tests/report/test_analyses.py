"""Figures and tables of importance and clusters, drawn of what the analyses give."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from simhpc.analysis import clusters as clustering
from simhpc.analysis import importance as regression
from simhpc.report import clusters as clusters_report
from simhpc.report import importance as importance_report
from simhpc.report import tables
from simhpc.report.families import styles
from simhpc.report.figure import write_svg_and_png

FAST = regression.Settings(boosting=regression.Boosting(stages=5, max_depth=2), repeats=2, resamples=50)
COLUMNS = ["Base architecture", "Normalization", "Constant"]


def inputs(m, seed=0):
    random = np.random.default_rng(seed)
    values = [[f"base {random.integers(3)}", f"norm {k % 2}", "one"] for k in range(m)]
    base = np.array([row[0] for row in values])
    noise = random.normal(0, 0.1, (m, m))
    return 2.0 + (base[:, None] == base) + (noise + noise.T) / 2, values, [f"model-{k}" for k in range(m)]


def families(m):
    return [("CNN", "Transformer", "mine")[k % 3] for k in range(m)]


def clustered(m, k=None, **changes):
    matrix, _, names = inputs(m)
    for position in changes.get("unknown", ()):
        matrix[position] = matrix[:, position] = np.nan
    return clustering.clusters(matrix, clustering.Settings(k=k, runs=5, most=5)), matrix, names


def test_importance_figure_has_every_component_and_both_scores():
    matrix, values, _ = inputs(9)
    found = regression.importance(matrix, values, COLUMNS, FAST)
    figure = importance_report.draw(found, COLUMNS, title="x", confidence=0.95)
    left, right = figure.axes
    order = [COLUMNS[c] for c in importance_report.ranking(found)]
    assert [label.get_text() for label in left.get_yticklabels()] == order
    assert order[0] == "Base architecture"
    assert left.yaxis_inverted()
    widths = [bar.get_width() for bar in left.patches]
    np.testing.assert_allclose(widths[:3], np.sort(found.in_sample_mean)[::-1])
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == [f"in sample (R² {found.r2_in_sample:.2f})", f"models held out (R² {found.r2_held_out:.2f})"]
    assert left.get_xlabel()
    assert right.get_xlabel()


def test_importance_without_held_out_models_can_be_drawn():
    matrix, values, _ = inputs(3)
    found = regression.importance(matrix, values, COLUMNS, FAST)
    figure = importance_report.draw(found, COLUMNS, title="x", confidence=0.95)
    assert figure.axes[0].get_legend().get_texts()[1].get_text() == "models held out (unknown)"


def test_importance_table_is_ranked_and_says_nan(tmp_path):
    matrix, values, _ = inputs(9)
    found = regression.importance(matrix, values, COLUMNS, FAST)
    importance_report.write_table(found, COLUMNS, tmp_path / "i.csv")
    rows = list(csv.DictReader((tmp_path / "i.csv").open()))
    assert tuple(rows[0]) == importance_report.HEADER
    assert [row["component"] for row in rows] == [COLUMNS[c] for c in importance_report.ranking(found)]
    means = [float(row["importance_mean"]) for row in rows]
    assert means == sorted(means, reverse=True)
    constant = next(row for row in rows if row["component"] == "Constant")
    assert (constant["n_values"], constant["n_pairs_same"], constant["n_pairs_different"]) == ("1", "36", "0")
    assert constant["sat_same_minus_different"] == constant["sat_different_mean"] == "nan"


@pytest.mark.parametrize(("m", "k"), [(3, 2), (9, None), (69, 10)])
def test_clusters_figure_is_ordered_framed_and_named(m, k):
    found, matrix, names = clustered(m, k)
    figure = clusters_report.draw(found, matrix, names, families(m), title="x")
    left, right = figure.axes[:2]
    order = clusters_report.order(found)
    rows = [label.get_text() for label in left.get_yticklabels()]
    assert rows == [f"{names[p]}  {found.labels[p]}" for p in order]
    assert rows == [label.get_text() for label in left.get_xticklabels()]
    assert (np.diff(found.labels[order]) >= 0).all()
    assert len(left.lines) == 2 * found.labels.max()
    np.testing.assert_array_equal(left.collections[0].get_array(), matrix[np.ix_(order, order)])
    assert sorted(label.get_text().split()[1] for label in right.get_yticklabels()) == sorted(names)
    of = styles(families(m))
    for texts in (left.get_xticklabels(), left.get_yticklabels(), right.get_yticklabels()):
        for text in texts:
            name = next(word for word in text.get_text().split() if word.startswith("model-"))
            assert text.get_color() == of[families(m)[names.index(name)]].text
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CNN", "mine", "Transformer"]
    assert sum(len(each.get_offsets()) for each in right.collections) == m
    assert len(right.lines) == m - 1
    joins = sorted(line.get_xdata().min() for line in right.lines)
    np.testing.assert_allclose(joins, np.sort(found.height_at_zero - found.tree[:, 2]))
    between = matrix[~np.eye(m, dtype=bool)]
    assert between.min() <= joins[0] <= joins[-1] == pytest.approx(between.max())


def test_one_cluster_and_left_out_models_can_be_drawn():
    matrix = np.full((4, 4), 3.0)
    matrix[3] = matrix[:, 3] = np.nan
    found = clustering.clusters(matrix, clustering.Settings(runs=2))
    figure = clusters_report.draw(found, matrix, list("abcd"), families(4), title="x")
    assert figure.get_suptitle() == "x: 1 cluster, mean stability 1.00"
    assert "d  1" not in [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_of_very_many_models_only_some_are_named():
    m = 201
    labels = np.ones(m, dtype=np.int64)
    tree = np.array([[0, 1, 0.1, 2], *[[m + k, k + 2, 0.1 + k, k + 3] for k in range(m - 2)]])
    found = clustering.Clusters(
        kept=np.arange(m), left_out=np.arange(0), labels=labels, stability=np.ones(m), coassignment=np.ones((m, m)),
        choices=[], p_value=np.nan, k_by_eigengap=1, k_by_silhouette=1, tree=tree, height_at_zero=4.0, n_clipped=0,
        notes=[],
    )  # fmt: skip
    figure = clusters_report.draw(found, np.eye(m), [f"m{k}" for k in range(m)], families(m), title="x")
    assert len(figure.axes[0].get_yticklabels()) == len(figure.axes[1].get_yticklabels()) == 101


def test_cluster_tables(tmp_path):
    found, _, names = clustered(9, 3, unknown=[4])
    clusters_report.write_table(found, names, tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert list(rows[0]) == ["model", "cluster", "stability"]
    assert {row["model"] for row in rows} == {*names} - {"model-4"}
    of = {names[p]: str(label) for p, label in zip(found.kept, found.labels, strict=True)}
    assert all(of[row["model"]] == row["cluster"] for row in rows)
    clusters_report.write_coassignment(found, names, tmp_path / "a.csv")
    header, *cells = csv.reader((tmp_path / "a.csv").open())
    assert header == ["model", *[row["model"] for row in rows]]
    assert [row[0] for row in cells] == header[1:]
    together = np.array([row[1:] for row in cells], dtype=float)
    np.testing.assert_array_equal(together, together.T)
    assert (np.diag(together) == 1.0).all()


def test_files_are_whole_the_same_each_time_and_need_no_network(tmp_path):
    found, matrix, names = clustered(9, 3)
    for name in ("one", "two"):
        figure = clusters_report.draw(found, matrix, names, families(9), title="x < y & z")
        write_svg_and_png(figure, tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
    for suffix in ("svg", "png"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 800
    root = ET.fromstring((tmp_path / "one.svg").read_text())
    assert root.tag.endswith("svg")
    links = [value for each in root.iter() for key, value in each.attrib.items() if key.endswith("href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)


def test_json_has_null_for_what_is_unknown(tmp_path):
    tables.write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1, {"c": float("inf")}], "d": "é"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.load(io.StringIO(text)) == {"a": None, "b": [1, {"c": None}], "d": "é"}
    assert "é" in text
