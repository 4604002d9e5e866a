"""The distillation figure and tables, drawn of what the analysis gives."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from simhpc.analysis import distillation as d
from simhpc.report import distillation as report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import plain

SETTINGS = d.Settings(resamples=100)


def distilled(n=8, repeats=2, name="vit", **changes):
    random = np.random.default_rng(0)
    similarity = random.normal(2, 0.5, n)
    given = {
        "similarity": similarity,
        "accuracy": random.normal(0.9, 0.02, n),
        "distilled": (0.8 + 0.05 * similarity)[:, None] + random.normal(0, 0.002, (n, repeats)),
        "same_base": (np.arange(n) % 2).astype(float),
        "undistilled": np.array([0.84, 0.86]),
        **changes,
    }
    teachers = d.Teachers(**given)
    bases = ["CNN" if k % 2 == 0 else "Transformer" for k in range(n)]
    result = d.distillation(teachers, SETTINGS)
    return report.Distilled(name, "student", [f"teacher-{k}" for k in range(n)], bases, teachers, result)


def test_figure_has_every_teacher_twice_and_says_how_sure():
    found = [distilled(), distilled(name="other")]
    figure = report.draw(found, ["CNN", "Transformer"], title="x")
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {f"teacher-{k}" for k in range(8)}
        assert axes.get_title().startswith("r = ")
        assert "8 teachers" in axes.get_title()
    of = next(of for of in found[0].result.correlations if of.property == "similarity")
    assert figure.axes[0].get_title() == f"r = {of.r:.2f} [{of.ci_low:.2f}, {of.ci_high:.2f}], 8 teachers"
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert legend == ["CNN", "Transformer"]
    assert figure.axes[0].get_ylabel().startswith("vit:")


def test_points_lie_where_the_numbers_are_and_are_filled_for_the_same_base():
    each = distilled()
    axes = report.draw([each], each.bases, title="x").axes[0]
    markers = [line for line in axes.lines if line.get_marker() not in ("None", "_", "|")]
    assert len(markers) == 8
    for k, line in enumerate(markers):
        assert line.get_xdata() == pytest.approx(each.teachers.similarity[k])
        assert line.get_ydata() == pytest.approx(100 * each.teachers.means[k])
        assert (line.get_markerfacecolor() != "white") == (each.teachers.same_base[k] == 1)


def test_unknown_numbers_can_be_drawn_and_written(tmp_path):
    unknown = np.full(8, np.nan)
    each = distilled(similarity=unknown, same_base=unknown, undistilled=np.array([np.nan]))
    figure = report.draw([each], each.bases, title="x")
    assert figure.axes[0].get_title() == "no correlation known, 0 teachers"
    write_svg_and_png(figure, tmp_path / "x.svg", tmp_path / "x.png")
    report.write_table([each], tmp_path / "x.csv")
    row = next(csv.DictReader((tmp_path / "x.csv").open()))
    assert (row["sat"], row["same_base_architecture"], row["distilled_minus_undistilled"]) == ("nan", "nan", "nan")


def test_tables_and_summary_have_all_of_it(tmp_path):
    found = [distilled(), distilled(name="other", repeats=1)]
    report.write_table(found, tmp_path / "d.csv")
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert tuple(rows[0]) == report.HEADER
    assert len(rows) == 16
    assert float(rows[0]["distilled_minus_undistilled"]) == pytest.approx(found[0].teachers.means[0] - 0.85)
    assert rows[0]["distilled_accuracy_std"] != "nan" == rows[8]["distilled_accuracy_std"]
    report.write_correlations(found, tmp_path / "c.csv")
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert tuple(rows[0]) == report.CORRELATIONS_HEADER
    assert len(rows) == 2 * 24
    assert {(row["property"], row["given"]) for row in rows} == {
        *(("similarity", ""), ("similarity", "teacher_accuracy")),
        *(("teacher_accuracy", ""), ("teacher_accuracy", "similarity")),
    }
    summary = report.summary(found, SETTINGS)
    json.dumps(plain(summary), allow_nan=False)
    assert summary["distillations"][0]["n_students"] == 16
    assert summary["distillations"][0]["undistilled_accuracy_mean"] == pytest.approx(0.85)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_svg_and_png(
            report.draw([distilled()], ["CNN"], title="x"), tmp_path / f"{name}.svg", tmp_path / f"{name}.png"
        )
    for suffix in ("svg", "png"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()
