from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from simhpc.report import heatmap
from simhpc.report.families import styles
from simhpc.store.similarity import SimilarityMatrix


def matrix(m, sat):
    counts = np.ones((m, m), dtype=np.int64)
    names = [f"model-{k}" for k in range(m)]
    return SimilarityMatrix(
        models=names, timm_names=names, sat=sat, ci_low=sat, ci_high=sat, n_common=counts, n_fooled=counts,
        n_both=counts, clean_accuracy=np.ones(m), n_images=1, floor_percent=0.01, confidence=0.95,
        inputs_sha256="", problems=[], notes=[],
    )  # fmt: skip


@pytest.mark.parametrize("m", [1, 2, 3, 25])
@pytest.mark.parametrize("kind", ["numbers", "constant", "unknown", "holes"])
def test_any_matrix_can_be_drawn(tmp_path, m, kind):
    sat = np.random.default_rng(0).normal(2, 1, (m, m))
    sat = (sat + sat.T) / 2
    if kind == "constant":
        sat[:] = 3.0
    if kind == "unknown":
        sat[:] = np.nan
    if kind == "holes":
        sat[0] = sat[:, 0] = np.nan
    heatmap.write(matrix(m, sat), tmp_path / "figures" / "h.png", title="x")
    with Image.open(tmp_path / "figures" / "h.png") as picture:
        assert picture.width > 400


def test_rows_and_columns_are_ordered_alike_and_labelled():
    group = np.array([0, 1, 0, 1, 0, 1])
    sat = np.where(group[:, None] == group, 4.0, 1.0) + np.eye(6)
    axes = heatmap.draw(matrix(6, sat), title="x").axes[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [label.get_text() for label in axes.get_xticklabels()]
    drawn = group[[int(name.removeprefix("model-")) for name in rows]]
    assert np.count_nonzero(np.diff(drawn)) == 1
    shown = axes.collections[0].get_array()
    assert (np.diag(shown) == 5.0).all()


def test_of_many_models_only_some_are_named_and_that_is_said():
    sat = np.random.default_rng(0).normal(2, 1, (310, 310))
    axes = heatmap.draw(matrix(310, (sat + sat.T) / 2), title="x").axes[0]
    assert len(axes.get_yticklabels()) == len(axes.get_xticklabels()) == 155
    assert axes.get_xlabel() == "one in 2 of the 310 models is named"


def test_unknown_cells_are_grey_and_the_rest_has_its_colour(tmp_path):
    sat = np.array([[4.0, 1.0, np.nan], [1.0, 4.0, 2.0], [np.nan, 2.0, 4.0]])
    heatmap.write(matrix(3, sat), tmp_path / "h.png", title="x")
    with Image.open(tmp_path / "h.png") as picture:
        colours = {colour: count for count, colour in picture.getcolors(1 << 20)}
        cell = picture.width * picture.height // 30
    assert colours[191, 191, 191] > cell  # 0.75 grey
    assert colours[0, 34, 78] > cell  # cividis at its lower end
    assert colours[254, 232, 56] > cell  # and at its upper


def test_names_have_the_colours_of_their_families():
    sat = np.where(np.equal.outer([0, 1, 0, 1], [0, 1, 0, 1]), 4.0, 1.0)
    families = ["CNN", "Transformer", "CNN", "unknown"]
    figure = heatmap.draw(matrix(4, sat), title="x", families=families)
    of = styles(families)
    for texts in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels()):
        assert {text.get_text(): text.get_color() for text in texts} == {
            f"model-{k}": of[family].text for k, family in enumerate(families)
        }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["CNN", "Transformer", "unknown"]
    assert not heatmap.draw(matrix(4, sat), title="x", families=["CNN"] * 4).legends
    assert not heatmap.draw(matrix(4, sat), title="x").legends
