"""Aggregation: offline, and honest about what is missing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from simhpc.stages import aggregate
from simhpc.stages.task import ALL, Task
from simhpc.store import predictions, similarity


def execute(run):
    return aggregate.execute(run, Task("aggregate", ALL), lambda *_: None)


def test_needs_neither_torch_nor_images_nor_checkpoints(copied):
    for path in (copied.dir.images, copied.dir.similarity):
        path.unlink()
    for key in ("cnn", "convnext", "vit"):
        copied.dir.adversarial(key).unlink()
        copied.dir.checkpoint(key).unlink()
    before = copied.dir.similarity_csv.read_bytes()
    program = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = sys.modules['submitit'] = None\n"
        "from simhpc.cli.app import main; sys.argv = ['simhpc', 'aggregate', sys.argv[1]]; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, copied.dir.root], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert copied.dir.similarity_csv.read_bytes() == before


def test_missing_predictions_are_listed_and_leave_nan(copied):
    whole = similarity.load(copied.dir.similarity)
    copied.dir.predictions("convnext").unlink()
    summary = execute(copied)
    matrix = similarity.load(copied.dir.similarity)
    assert any("predictions/convnext.h5 does not exist" in problem for problem in summary["problems"])
    assert summary["pairs"] == 3
    assert np.isnan(matrix.sat[1]).all()
    assert np.isnan(matrix.sat[:, 1]).all()
    np.testing.assert_array_equal(matrix.sat[[0, 2]][:, [0, 2]], whole.sat[[0, 2]][:, [0, 2]])
    rows = {(row["a"], row["b"]): row for row in csv.DictReader(copied.dir.pairs_csv.open())}
    assert rows["cnn", "convnext"]["sat"] == rows["cnn", "convnext"]["n_common"] == "nan"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: os.truncate(path, 3000), "may be truncated or damaged"),
        (lambda path: path.write_bytes(b"x" * 5000), "cannot be read as HDF5"),
        (lambda path: path.write_bytes(path.with_name("cnn.h5").read_bytes()), "model is cnn, this run's is vit"),
    ],
)
def test_invalid_predictions_are_listed_and_leave_nan(copied, damage, expected):
    damage(copied.dir.predictions("vit"))
    summary = execute(copied)
    assert any(expected in problem for problem in summary["problems"])
    assert np.isnan(similarity.load(copied.dir.similarity).sat[2]).all()


def test_an_uncovered_source_leaves_its_pairs_unknown(copied):
    path = copied.dir.predictions("vit")
    found = predictions.load(path)
    keep = [row for row, key in enumerate(found.sources) if key != "cnn"]
    predictions.PredictionSet(
        **{
            **vars(found),
            "sources": [found.sources[row] for row in keep],
            "source_sha256": [found.source_sha256[row] for row in keep],
            "adv_pred": found.adv_pred[keep],
            "adv_margin": found.adv_margin[keep],
        }
    ).save(path)
    summary = execute(copied)
    matrix = similarity.load(copied.dir.similarity)
    assert any("does not cover cnn" in problem for problem in summary["problems"])
    assert np.isnan(matrix.sat[0, 2])
    assert np.isfinite(matrix.sat[[0, 1, 2], [1, 2, 2]]).all()


def test_predictions_of_an_older_attack_are_not_mixed_in(copied):
    path = copied.dir.predictions("vit")
    found = predictions.load(path)
    hashes = ["0" * 64 if key == "cnn" else sha for key, sha in zip(found.sources, found.source_sha256, strict=True)]
    predictions.PredictionSet(**{**vars(found), "source_sha256": hashes}).save(path)
    assert any("covers an older attack of cnn" in problem for problem in execute(copied)["problems"])
    assert np.isnan(similarity.load(copied.dir.similarity).sat[0, 2])


def test_predictions_that_skip_an_image_are_refused(copied):
    path = copied.dir.predictions("vit")
    found = predictions.load(path)
    pred = found.adv_pred.copy()
    row = found.sources.index("cnn")
    pred[row, np.flatnonzero(pred[row] != predictions.NOT_SHOWN)[0]] = predictions.NOT_SHOWN
    predictions.PredictionSet(**{**vars(found), "adv_pred": pred}).save(path)
    assert any("are not X_AB" in problem for problem in execute(copied)["problems"])


def test_tables_and_matrix_say_the_same(finished):
    matrix = similarity.load(finished.dir.similarity)
    with finished.dir.similarity_csv.open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["model", *matrix.models]
    assert [row[0] for row in rows] == matrix.models
    np.testing.assert_array_equal(np.array([[float(cell) for cell in row[1:]] for row in rows]), matrix.sat)
    with finished.dir.pairs_csv.open() as file:
        pairs = list(csv.DictReader(file))
    assert list(pairs[0]) == ["a", "b", "n_common", "rate_ab", "rate_ba", "sat", "ci_low", "ci_high"]
    assert len(pairs) == 6
    for pair in pairs:
        a, b = matrix.models.index(pair["a"]), matrix.models.index(pair["b"])
        assert int(pair["n_common"]) == matrix.n_common[a, b]
        assert float(pair["rate_ab"]) == matrix.n_fooled[a, b] / matrix.n_common[a, b]
        assert float(pair["rate_ba"]) == matrix.n_fooled[b, a] / matrix.n_common[b, a]
        assert float(pair["sat"]) == matrix.sat[a, b]
        assert float(pair["ci_low"]) <= float(pair["sat"]) <= float(pair["ci_high"])
    with finished.dir.models_csv.open() as file:
        models = list(csv.DictReader(file))
    assert [float(row["clean_accuracy"]) for row in models] == matrix.clean_accuracy.tolist()


def test_pairs_at_the_floor_are_named(copied):
    """Predictions in which nothing transfers from cnn to vit or back: the number is the floor's, and said so."""
    for target, source in (("vit", "cnn"), ("cnn", "vit")):
        path = copied.dir.predictions(target)
        found = predictions.load(path)
        pred, row = found.adv_pred.copy(), found.sources.index(source)
        pred[row] = np.where(pred[row] == predictions.NOT_SHOWN, pred[row], found.labels)
        predictions.PredictionSet(**{**vars(found), "adv_pred": pred}).save(path)
    summary = execute(copied)
    assert summary["problems"] == []
    assert summary["notes"] == ["the floor of 0.01 % stands for a lower fooling rate: cnn / vit"]
    assert similarity.load(copied.dir.similarity).sat[0, 2] == np.log(0.01)
