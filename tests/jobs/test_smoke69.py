"""The 69 architectures of the paper, through every stage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import execute_all

from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, similarity
from simhpc.study import load_study

STUDY = Path(__file__).parents[2] / "jobs" / "smoke69.toml"

# Of those that are quickly built and checked: a CNN and a transformer.
FEW = ("efficientnet_b2", "pit_s_224")


def check(run):
    keys = [model.key for model in run.study.models]
    matrix = similarity.load(run.dir.similarity)
    assert list(matrix.models) == keys
    assert matrix.sat.shape == (len(keys), len(keys))
    assert np.isfinite(matrix.sat).all()
    for key in keys:
        assert adversarial.header(run.dir.adversarial(key)).n_attacked > 0


def test_a_few_of_the_69(tmp_path):
    study = load_study(STUDY)
    few = study.model_copy(
        update={
            "models": tuple(study.model(key) for key in FEW),
            "images": study.images.model_copy(update={"n": 2}),
            "attack": study.attack.model_copy(update={"steps": 1}),
        }
    )
    run = prepare(few, tmp_path / "run")
    assert len(execute_all(run)) == 2 * len(FEW) + 1
    check(run)
    # The same random weights in every process: nothing is left to do.
    assert execute_all(run) == []


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_all_69(tmp_path):
    """An hour on two cores."""
    command = [
        sys.executable,
        "-c",
        "from simhpc.cli.app import main; main()",
        "run",
        str(STUDY),
        "--out",
        str(tmp_path / "run"),
    ]
    subprocess.run(command, check=True)
    run = prepare(load_study(STUDY), tmp_path / "run")
    assert len(run.study.models) == 69
    check(run)
