"""Aggregation: offline, and honest about what is missing."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from simhpc.errors import SimhpcError
from simhpc.report import heatmap, tables
from simhpc.stages import aggregate
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import Interrupted
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


def test_a_model_that_stands_for_one_of_the_papers_is_noted(make_study, tmp_path):
    models = [
        {"key": key, "timm": "xception65", "weights": "pretrained:tf_in1k", "data": {"input_size_px": 32}}
        for key in ("gluon_xception65", "mine")
    ]
    run = prepare(make_study(models=models), tmp_path / "run")
    (note,) = aggregate.aggregate(run, lambda *_: None).notes
    assert note.startswith("gluon_xception65 is xception65.tf_in1k here: timm no longer carries")


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
        (lambda path: os.truncate(path, 3000), "is truncated, damaged or was edited"),
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


def saved(path, found, **changes):
    predictions.PredictionSet(**{**vars(found), **changes}).save(path)


def matrices(run):
    found = similarity.load(run.dir.similarity)
    return {name: value for name, value in vars(found).items() if isinstance(value, np.ndarray)}


def test_counts_are_those_of_the_predictions_one_by_one(finished):
    matrix = similarity.load(finished.dir.similarity)
    seen = [predictions.load(finished.dir.predictions(key)) for key in matrix.models]
    for a, of in enumerate(seen):
        for b, by in enumerate(seen):
            x_ab = [i for i, label in enumerate(of.labels) if of.clean_pred[i] == label == by.clean_pred[i]]
            there = by.adv_pred[by.sources.index(matrix.models[a])]
            back = of.adv_pred[of.sources.index(matrix.models[b])]
            assert matrix.n_common[a, b] == len(x_ab)
            assert matrix.n_fooled[a, b] == sum(there[i] != of.labels[i] for i in x_ab)
            assert matrix.n_both[a, b] == sum(there[i] != of.labels[i] != back[i] for i in x_ab)


@pytest.mark.parametrize("readers", [1, 2, 7])
def test_neither_threads_nor_slices_nor_the_order_of_sources_matter(copied, monkeypatch, readers):
    whole = similarity.load(copied.dir.similarity)
    monkeypatch.setattr(aggregate, "_readers", lambda: readers)
    monkeypatch.setattr("simhpc.store.hdf5._CHUNK_BYTES", 300)  # a row of 70 images per slice
    for key in whole.models:
        found = predictions.load(copied.dir.predictions(key))
        back = slice(None, None, -1)
        # A model that is no longer asked about stands there too.
        saved(
            copied.dir.predictions(key), found,
            sources=[*found.sources[back], "gone"], source_sha256=[*found.source_sha256[back], "0" * 64],
            adv_pred=np.vstack([found.adv_pred[back], found.adv_pred[:1]]),
            adv_margin=np.vstack([found.adv_margin[back], found.adv_margin[:1]]),
        )  # fmt: skip
    assert execute(copied)["problems"] == []
    for name, value in matrices(copied).items():
        np.testing.assert_array_equal(value, getattr(whole, name))


def test_a_flipped_bit_in_the_answers_is_named_and_the_whole_file_counts_for_nothing(copied, monkeypatch):
    path = copied.dir.predictions("vit")
    monkeypatch.setattr("simhpc.store.hdf5._CHUNK_BYTES", 300)
    saved(path, predictions.load(path))
    with h5py.File(path, "r") as file:
        answers = file["adversarial/pred"]
        last = answers.id.get_chunk_info(answers.id.get_num_chunks() - 1)
    damaged = bytearray(path.read_bytes())
    damaged[last.byte_offset + 5] ^= 4
    path.write_bytes(damaged)
    problems = execute(copied)["problems"]
    assert len(problems) == 1
    assert str(path) in problems[0]
    matrix = similarity.load(copied.dir.similarity)
    assert np.isnan(matrix.sat[2]).all()
    assert np.isnan(matrix.clean_accuracy[2])
    assert (matrix.n_common[2] == -1).all()
    assert np.isfinite(matrix.sat[:2, :2]).all()


def test_a_file_replaced_while_it_is_read_is_not_mixed_in(copied, monkeypatch):
    path, original = copied.dir.predictions("vit"), predictions.iterate_adversarial
    found = predictions.load(path)

    def replaced(opened, of):
        if opened == path:
            saved(path, found, clean_pred=(found.clean_pred + 1) % 10)
        return original(opened, of)

    monkeypatch.setattr(predictions, "iterate_adversarial", replaced)
    assert execute(copied)["problems"] == [f"{path} was replaced while it was being read: run again"]
    assert np.isnan(similarity.load(copied.dir.similarity).sat[2]).all()
    assert not aggregate.is_done(copied, Task("aggregate", ALL))


@pytest.mark.parametrize(
    ("name", "write", "most"),
    [
        ("pairs_csv", tables.write_pairs, 1),
        ("models_csv", tables.write_models, 3),
        ("heatmap", lambda matrix, path: heatmap.write(matrix, path, title="other"), 1),
        ("similarity_csv", tables.write_similarity, 99),
    ],
)
def test_two_aggregations_at_once_do_not_mix_their_tables(copied, monkeypatch, name, write, most):
    """An evaluation ended in between. The other one writes its table right before this one saves its matrix."""
    found, other = predictions.load(copied.dir.predictions("vit")), similarity.load(copied.dir.similarity)
    saved(copied.dir.predictions("vit"), found, adv_pred=np.where(found.adv_pred == -1, -1, found.labels))
    table, save, disturbances = getattr(copied.dir, name), similarity.SimilarityMatrix.save, []

    def disturbed(matrix, path):
        if len(disturbances) < most:
            disturbances.append(write(other, table))
        save(matrix, path)

    with monkeypatch.context() as patch:
        patch.setattr(similarity.SimilarityMatrix, "save", disturbed)
        if most > 10:
            with pytest.raises(SimhpcError, match="others write its matrix too"):
                execute(copied)
            return
        execute(copied)
    assert len(disturbances) == most
    assert aggregate.is_done(copied, Task("aggregate", ALL))
    held = table.read_bytes()
    table.unlink()
    execute(copied)
    assert table.read_bytes() == held


def test_an_interruption_waits_for_no_file_that_was_not_begun(copied, monkeypatch):
    begun, is_cancelled, original = [], threading.Event(), predictions.iterate_adversarial

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            is_cancelled.set()
            super().shutdown(wait=wait)

    def second_waits(path, of):
        begun.append(path)
        if len(begun) == 2:
            is_cancelled.wait()
        return original(path, of)

    def report(done, total, unit):
        if done == 1:
            raise Interrupted

    monkeypatch.setattr(aggregate, "_readers", lambda: 1)
    monkeypatch.setattr(aggregate, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(predictions, "iterate_adversarial", second_waits)
    with pytest.raises(Interrupted):
        aggregate.aggregate(copied, report)
    assert len(begun) < 3


def test_many_models_that_are_not_covered_are_not_all_named():
    models = [type("Named", (), {"key": f"m{k}"}) for k in range(13)]
    assert aggregate._names(models, np.arange(13) < 0) == ""
    assert aggregate._names(models, np.arange(13) > 10) == "m11, m12"
    assert aggregate._names(models, np.arange(13) > 0).endswith("m9, m10 and 2 more models")
