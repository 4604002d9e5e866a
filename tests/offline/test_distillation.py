"""What the analysis of a distillation is told of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny

from simhpc.offline import distillation as joined
from simhpc.offline.inputs import Inputs
from simhpc.stages import distill
from simhpc.study import parse_study

ACCURACIES = {"vit": 0.7, "vit-too": 0.71, "cnn": 0.9}


@pytest.mark.parametrize(("weights", "undistilled"), [("train", [0.7, 0.71]), ("pretrained:augreg_in1k", [0.7])])
def test_only_models_that_were_trained_here_are_other_initialisations(monkeypatch, weights, undistilled):
    """The same pretrained weights under a second key, as to teach itself, are no repeat that tells what is chance."""
    raw = tiny(("cnn", "vit"), distillations=[{"student": "vit", "teachers": ["cnn", "vit-too"]}])
    vit = {"timm": "vit_tiny_patch16_224", "weights": weights}
    raw["models"] = [raw["models"][0], {"key": "vit", **vit}, {"key": "vit-too", **vit}]
    study = parse_study(raw, base=Path("/base"), where="study.toml")
    monkeypatch.setattr(joined, "accuracies", lambda _: ACCURACIES)
    monkeypatch.setattr(distill, "accuracy", lambda *_: 0.8)
    sat = np.array([[4.0, 1.0, 2.0], [1.0, 4.0, 3.0], [2.0, 3.0, 4.0]])
    given = Inputs("t", ["cnn", "vit", "vit-too"], sat, run=SimpleNamespace(study=study))
    found = joined.teachers_of(given, study.distillations[0])
    assert found.undistilled.tolist() == undistilled
    assert found.similarity.tolist() == [1.5, 3.0]
    np.testing.assert_array_equal(found.distilled, [[0.8], [0.8]])
