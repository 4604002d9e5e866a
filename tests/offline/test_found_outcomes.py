"""Per-image outcomes are read once, and again when a file has changed."""

from __future__ import annotations

import numpy as np
import pytest

from simhpc.offline import analyze, found_outcomes
from simhpc.offline.inputs import Settings, inputs_of_run


@pytest.fixture
def times(monkeypatch):
    """How often a run's predictions were gathered."""
    real, counted = found_outcomes.gather, []
    monkeypatch.setattr(found_outcomes, "gather", lambda *given: counted.append(1) or real(*given))
    return counted


def test_two_analyses_read_the_predictions_once(copied, times):
    inputs = inputs_of_run(copied, copied.dir)
    for name in ("reliability", "measures"):
        assert analyze.ANALYSES[name](inputs, copied.dir, Settings()).result
    assert len(times) == 1


def test_files_that_changed_are_read_again(copied, times):
    before = found_outcomes.gathered_of(copied)
    assert found_outcomes.gathered_of(copied) is before
    copied.dir.predictions("vit").unlink()
    after = found_outcomes.gathered_of(copied)
    keys = [model.key for model in copied.study.models]
    assert before.predicted.all()
    assert np.flatnonzero(~after.predicted).tolist() == [keys.index("vit")]
    copied.dir.adversarial("cnn").unlink()
    found_outcomes.gathered_of(copied)
    assert len(times) == 3
