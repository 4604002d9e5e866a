"""Training strategies of a study's entries and of timm's names: who is in which group, and what is written."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from tiny import DATA, MODELS, tiny

from simhpc.analysis import strategies as analysis
from simhpc.analysis.strategies import derived
from simhpc.offline.inputs import Inputs, Settings, made_from
from simhpc.offline.strategies import analyze_strategies, origin_of, origins
from simhpc.report import strategies as report
from simhpc.rundir import Run, RunDir
from simhpc.study import Model, parse_study

CNN = {**MODELS["cnn"], "weights": "train", "data": DATA}


def study(tmp_path, models, **changes):
    return parse_study(tiny(models=models, **changes), base=tmp_path, where="study.toml")


def kinds(names, given):
    """The kind of each pair, by names."""
    groups, _ = derived(origins(names, given), names)
    return {(names[a], names[b]): group.kind for group in groups for a, b in np.argwhere(np.triu(group.pairs)).tolist()}


def test_entries_of_a_study(tmp_path):
    wider = {**CNN, "args": {**CNN["args"], "stem_width": 16}}
    given = study(
        tmp_path,
        [
            {**CNN, "key": "a"},
            {**CNN, "key": "again"},
            {**CNN, "key": "lr", "training": {"lr": 1e-4}},
            {**CNN, "key": "dropped", "args": {**CNN["args"], "drop_path_rate": 0.1}},
            {**CNN, "key": "mean", "data": {**DATA, "mean": [0.4, 0.4, 0.4]}},
            {**CNN, "key": "elsewhere", "training": {"images": "folder:/other"}},
            {**CNN, "key": "fresh", "weights": "random"},
            {**CNN, "key": "wider", **wider},
            {**CNN, "key": "larger", "data": {**DATA, "input_size_px": 32}},
            {**CNN, "key": "theirs", "weights": "checkpoint:w.pth"},
        ],
    )
    found = kinds([model.key for model in given.models], given)
    assert found["a", "again"] == "initialisation"
    for other in ("lr", "dropped", "mean"):
        assert found["a", other] == "hyper-parameters"
    for other in ("elsewhere", "fresh"):
        assert found["a", other] == "regime"
    for other in ("wider", "larger"):
        assert found["a", other] == "architecture"
    assert ("a", "theirs") not in found
    assert found["wider", "theirs"] == "architecture"


def test_pretrained_tags_of_a_study(tmp_path):
    base = {"timm": "resnet18", "data": DATA}
    given = study(
        tmp_path,
        [
            {**base, "key": "a1", "weights": "pretrained:a1_in1k"},
            {**base, "key": "a2", "weights": "pretrained:a2_in1k", "data": {**DATA, "crop_pct": 0.9}},
            {**base, "key": "a1-cropped", "weights": "pretrained:a1_in1k", "data": {**DATA, "crop_pct": 0.9}},
            {**base, "key": "here", "weights": "train"},
        ],
    )
    names = [model.key for model in given.models]
    found = kinds(names, given)
    for pair in (("a1", "a2"), ("a1", "here"), ("a2", "a1-cropped")):
        assert found[pair] == "regime"
    assert ("a1", "a1-cropped") not in found
    assert derived(origins(names, given), names)[1] == ["the same weights, so of no kind: a1 / a1-cropped"]


def test_a_network_of_ones_own_that_brings_its_weights():
    own = [
        Model.model_validate({"key": key, "module": "m:f", "weights_sha256": sha256, "args": {"w": width}})
        for key, sha256, width in (("a", "0" * 64, 1), ("b", "0" * 64, 1), ("c", "1" * 64, 1), ("d", "2" * 64, 2))
    ]
    one, same, other, wide = (origin_of(model, "x") for model in own)
    assert one == same
    assert one.regime is None
    assert other.weights != one.weights
    assert one.architecture != wide.architecture


def test_names_of_timm_without_a_study():
    names = ["resnet50.a1_in1k", "resnet50.tv_in1k", "resnet50", "vit_b.augreg"]
    found = kinds(names, None)
    assert [found[names[a], names[b]] for a, b in ((0, 1), (0, 2), (1, 2))] == ["regime"] * 3
    assert {found[names[a], names[3]] for a in range(3)} == {"architecture"}


def planted(tmp_path, **changes):
    """Nine models of three networks; pairs that differ in the initialisation only are more alike."""
    models = [
        {**CNN, "key": f"net{k // 3}-{k % 3}", "args": {**CNN["args"], "stem_width": 8 * (k // 3 + 1)}}
        for k in range(9)
    ]
    given = study(tmp_path, models, **changes)
    same = np.equal.outer(np.arange(9) // 3, np.arange(9) // 3)
    noise = np.random.default_rng(0).normal(0, 0.1, (9, 9))
    sat = 2.0 + same + (noise + noise.T) / 2
    return Inputs("planted", [m.key for m in given.models], sat, run=Run(RunDir(tmp_path), given))


def test_derived_groups_are_written(tmp_path):
    inputs = planted(tmp_path)
    outcome = analyze_strategies(inputs, RunDir(tmp_path), Settings())
    assert {path.name for path in outcome.files} == {f"strategies.{end}" for end in ("csv", "json", "svg", "png")}
    rows = list(csv.DictReader((tmp_path / "analysis" / "strategies.csv").open()))
    assert tuple(rows[0]) == report.HEADER
    assert [(row["kind"], row["group"], row["n_pairs"]) for row in rows] == [
        ("initialisation", "all", "9"),
        ("initialisation", "resnet18 (net0-0)", "3"),
        ("initialisation", "resnet18 (net1-0)", "3"),
        ("initialisation", "resnet18 (net2-0)", "3"),
        ("architecture", "all", "27"),
    ]
    assert float(rows[0]["p_value"]) < 0.05
    assert float(rows[0]["minus_architecture"]) == pytest.approx(1.0, abs=0.1)
    assert rows[1]["p_value"] == "nan"
    result = json.loads((tmp_path / "analysis" / "strategies.json").read_text())
    assert result["groups_are"] == "derived"
    assert made_from(inputs).items() <= result.items()
    assert result["kinds"]["initialisation"]["n_models"] == 9
    assert result["groups"][1] == {
        "name": "resnet18 (net1-0)", "kind": "initialisation", "models": ["net1-0", "net1-1", "net1-2"],
    }  # fmt: skip
    assert outcome.notes == ["intervals of fewer than 12 models are too narrow: initialisation, architecture"]


def test_declared_groups_come_before_derived_ones(tmp_path):
    strategies = [
        {"name": "few", "differs": "regime", "models": ["net0-0", "net0-1"]},
        {"name": "nets", "differs": "architecture", "models": ["net0-0", "net1-0", "net2-0"]},
    ]
    outcome = analyze_strategies(planted(tmp_path, strategies=strategies), RunDir(tmp_path), Settings())
    assert outcome.result["groups_are"] == "declared"
    assert {kind: row["n_pairs"] for kind, row in outcome.result["kinds"].items()} == {"regime": 1, "architecture": 3}
    assert any("the test could find nothing" in note for note in outcome.notes)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for root in ("one", "two"):
        analyze_strategies(planted(tmp_path), RunDir(tmp_path / root), Settings(seed=3))
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_the_figure_has_a_row_per_group_and_a_dot_per_pair(tmp_path):
    inputs = planted(tmp_path)
    inputs.sat[0, 1] = inputs.sat[1, 0] = np.nan
    groups, _ = derived(origins(inputs.names, inputs.run.study), inputs.names)
    found = analysis.strategies(inputs.sat, groups, analysis.Settings(permutations=99))
    (axes,) = report.draw(found, groups, inputs.sat, title="x").axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels[0].startswith("initialisation (9 models, 8 pairs), p = ")
    assert labels[1] == "resnet18 (net0-0) (3 models, 2 pairs)"
    dots = [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "."]
    assert dots == [8, 2, 3, 3, 27]
