"""How sure a run's matrix is: what is written, beside another run, and what stands in the way."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from simhpc.analysis import reliability as analysis
from simhpc.analysis.similarity import count_pairs, pack_bits, sat_matrix
from simhpc.errors import AnalysisError
from simhpc.offline import reliability as stage
from simhpc.offline.inputs import Inputs, Other, Settings, made_from
from simhpc.report import reliability as report
from simhpc.rundir import RunDir
from simhpc.stages import aggregate
from simhpc.store import similarity
from simhpc.study import Similarity, Study


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    few = analysis.Settings(resamples=60, splits=10, cluster_resamples=5)
    monkeypatch.setattr(stage.analysis, "Settings", lambda **options: replace(few, **options))


class FakeRun:
    """What the stage takes of a run, without models to build."""

    def __init__(self, names):
        self.study = Study.model_construct(
            similarity=Similarity(), models=tuple(type("M", (), {"key": n, "timm_name": n}) for n in names)
        )


@pytest.fixture
def inputs(monkeypatch):
    """Eight models in two groups, 200 images; the first of them hardly differs in how alike it is to two others."""
    m, n = 8, 200
    random = np.random.default_rng(0)
    group = np.arange(m) * 2 // m
    right = random.random((m, n)) < 0.9
    rate = np.where(group[:, None] == group, 0.6, 0.1)
    fooled = (random.random((m, m, n)) < rate[:, :, None]) & right & right[:, None]
    everything = np.ones((m, m), dtype=bool)
    gathered = aggregate.Gathered(n, pack_bits(right), pack_bits(fooled), everything, everything[0], [])
    monkeypatch.setattr(stage, "gathered_of", lambda run: gathered)
    names = [f"model-{k}" for k in range(m)]
    counts = count_pairs(gathered.correct, gathered.fooled, everything)
    return Inputs("made", names, sat_matrix(counts, 0.01), run=FakeRun(names))


def test_everything_is_written(inputs, tmp_path):
    outcome = stage.analyze_reliability(inputs, RunDir(tmp_path), Settings())
    assert {path.name for path in outcome.files} == {
        "reliability.csv", "reliability_widths.csv", "reliability.json", "reliability.svg", "reliability.png",
    }  # fmt: skip
    assert all(path.exists() for path in outcome.files)
    rows = list(csv.DictReader((tmp_path / "analysis" / "reliability.csv").open()))
    assert tuple(rows[0]) == report.HEADER
    assert [row["model"] for row in rows] == inputs.names
    for k, row in enumerate(rows):
        others = np.where(np.arange(8) == k, -np.inf, inputs.sat[k])
        assert row["nearest"] == inputs.names[int(others.argmax())]
        assert float(row["sat_nearest"]) == others.max()
        assert 0.0 <= float(row["nearest_share"]) <= 1.0
        assert float(row["cluster_jaccard"]) == 1.0
    assert len({row["cluster"] for row in rows}) == 2
    result = json.loads((tmp_path / "analysis" / "reliability.json").read_text())
    assert made_from(inputs).items() <= result.items()
    assert result["n_images"] == 200
    assert result["split_half"]["spearman"]["whole"] > 0.7
    assert len(result["nearest_is_sure"]) + len(result["nearest_is_not_sure"]) == 8
    unsure = len(result["nearest_is_not_sure"])
    assert unsure > 4  # within a group all are equally near but for chance
    assert f"with 200 images, the nearest of {unsure} of 8 model(s) is not certain at 95 %: " in outcome.notes[0]
    assert " images)" in outcome.notes[0]
    widths = list(csv.DictReader((tmp_path / "analysis" / "reliability_widths.csv").open()))
    assert [row["n_images"] for row in widths] == ["12", "25", "50", "100", "200", "400", "800", "3200"]
    assert [row["is_extrapolated"] for row in widths] == ["no"] * 5 + ["yes"] * 3


def test_beside_other_runs(inputs, tmp_path):
    order = [3, 1, 0, 5, 7]
    names = [inputs.names[k] for k in order]
    differs = ["attack.eps_255: here 8, there 4"]
    same = Other("same", [*names, "another"], np.full((6, 6), np.nan), differs)
    same.sat[:5, :5] = inputs.sat[np.ix_(order, order)]
    outcome = stage.analyze_reliability(replace(inputs, against=(same,)), RunDir(tmp_path), Settings())
    (found,) = outcome.result["against"]
    assert (found["run"], found["differences"]) == ("same", differs)
    assert found["agreement"]["spearman"] == pytest.approx(1.0)
    assert (found["agreement"]["n_models"], found["agreement"]["n_pairs"]) == (5, 10)
    (row,) = csv.DictReader((tmp_path / "analysis" / "against.csv").open())
    assert (row["run"], row["same_nearest_share"], row["differences"]) == ("same", "1.0", differs[0])
    stage.analyze_reliability(inputs, RunDir(tmp_path), Settings())
    assert not (tmp_path / "analysis" / "against.csv").exists()
    none = Other("none", ["x"], np.ones((1, 1)), [])
    with pytest.raises(AnalysisError, match="--against none: it takes 3 pairs of models that are known in both"):
        stage.analyze_reliability(replace(inputs, against=(none,)), RunDir(tmp_path), Settings())


def test_predictions_of_another_time_are_told(inputs, tmp_path, monkeypatch):
    with pytest.raises(AnalysisError, match="other predictions than lie here now: run `simhpc aggregate`"):
        stage.analyze_reliability(replace(inputs, sat=inputs.sat + 0.1), RunDir(tmp_path), Settings())
    empty = aggregate.Gathered(0, *[np.zeros((8, 0))] * 4, ["model-0.h5 does not exist"])
    monkeypatch.setattr(stage, "gathered_of", lambda run: empty)
    with pytest.raises(AnalysisError, match="it takes the predictions of the run: model-0.h5 does not exist"):
        stage.analyze_reliability(inputs, RunDir(tmp_path), Settings())


def test_the_same_seed_gives_the_same_bytes(inputs, tmp_path):
    for root in ("one", "two"):
        stage.analyze_reliability(inputs, RunDir(tmp_path / root), Settings())
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_a_real_run_and_itself(simhpc, copied):
    code, out, err = simhpc("analyze", copied.dir.root, "--against", copied.dir.root)
    assert code == 0, err
    assert "strategies: mean SAT of pairs that differ in architecture" in out
    assert "reliability: " in out
    assert "rank correlation 1.00" in out
    found = json.loads(copied.dir.analysis("reliability.json").read_text())
    assert found["n_images"] == 70
    assert found["against"][0]["differences"] == []
    assert similarity.load(copied.dir.similarity).models == ["cnn", "convnext", "vit"]
