"""The train stage around the loop: the whole recipe on a real model, its log, and what happens when it diverges."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny, write_study

from simhpc.errors import ImageSourceError
from simhpc.rundir import open_run
from simhpc.stages import progress, train
from simhpc.stages.prepare import prepare
from simhpc.stages.task import Task
from simhpc.store import checkpoint, step_log
from simhpc.study import load_study
from simhpc.zoo.training import States, TrainingDivergedError

RECIPE = {
    "epochs": 3,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "ema_decay": 0.9,
    "clip_grad_norm": 5.0,
    "drop_path_rate": 0.1,
    "auto_augment": "rand-m3-mstd0.5",
    "accumulation": 2,
    "loss": "bce",
}


def begun(tmp_path, training, **resources):
    # 500 images are left to train on: 7 whole batches of 64.
    raw = tiny(("cnn",), images={"n": 1297}, training=training, resources={"save_every_s": 0, **resources})
    return prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")


def execute(run, report=lambda *_: None):
    return train.execute(run, Task("train", "cnn"), report)


def test_a_whole_recipe_is_interrupted_logged_and_shown(tmp_path, monkeypatch):
    shown = {}

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            shown.setdefault("opened", []).append((folder, purge_step))

        def add_scalar(self, name, value, step):
            shown[name, step] = value

        def close(self):
            shown["closed"] = shown.get("closed", 0) + 1

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    monkeypatch.setattr(progress, "_is_interrupted", False)
    run, seen = begun(tmp_path, RECIPE), []
    assert not train.is_done(run, Task("train", "cnn"))

    def stop_in_step_10(done, total, unit):
        seen.append((done, total, unit))
        if done == 10:
            progress.interrupt()  # as a signal would: heeded when the next step is over

    with pytest.raises(progress.Interrupted):
        execute(run, stop_in_step_10)
    assert seen[0] == (0, 21, "step")
    assert seen[-1] == (11, 21, "step")
    monkeypatch.setattr(progress, "_is_interrupted", False)
    seen.clear()
    summary = execute(run, lambda *reading: seen.append(reading))
    assert seen[0] == (11, 21, "step")
    rows = step_log.read(run.dir.training_log("cnn"))
    assert [row["step"] for row in rows] == list(range(1, 22))
    assert [row["epoch"] for row in rows] == [1] * 7 + [2] * 7 + [3] * 7
    assert summary["loss"] == pytest.approx(sum(row["loss_nats"] for row in rows[14:]) / 7)
    assert rows[0]["loss_nats"] > rows[-1]["loss_nats"]
    assert all(row["grad_norm"] > 0 and row["images_per_s"] > 0 for row in rows)
    assert shown["loss_nats", 21] == rows[-1]["loss_nats"]
    assert shown["opened"] == [(str(run.dir.tensorboard("cnn")), 1), (str(run.dir.tensorboard("cnn")), 12)]
    assert shown["closed"] == 2
    # The average is what was saved.
    assert train.is_done(run, Task("train", "cnn"))
    assert checkpoint.metadata_of(run.dir.checkpoint("cnn"))["processes"] == "1"
    assert not run.dir.training_states("cnn").exists()
    assert open_run(run.dir.root).study == run.study


@pytest.mark.parametrize("n_removed", [1, 2])
def test_a_state_that_another_copy_removes_before_it_is_loaded(tmp_path, monkeypatch, n_removed):
    monkeypatch.setattr(progress, "_is_interrupted", False)
    run, real, asked, seen = begun(tmp_path, {"epochs": 2}), States.load, [], []
    with pytest.raises(progress.Interrupted):
        execute(run, lambda done, *_: progress.interrupt() if done == 5 else None)
    monkeypatch.setattr(progress, "_is_interrupted", False)

    def load(states, step):
        asked.append(step)
        if len(asked) <= n_removed:
            states._path(step).unlink()
        return real(states, step)

    monkeypatch.setattr(States, "load", load)
    execute(run, lambda *reading: seen.append(reading[0]))
    newest, older = asked  # two are kept
    assert newest == 6 > older
    assert seen[0] == (older if n_removed == 1 else 0)
    assert train.is_done(run, Task("train", "cnn"))


def test_where_it_diverges_the_last_good_state_is_named_and_kept(tmp_path):
    run = begun(tmp_path, {"lr": 1000.0, "optimizer": "sgd", "warmup_epochs": 2, "epochs": 3})
    with pytest.raises(TrainingDivergedError, match="lower training.lr; the last good state is ") as caught:
        execute(run)
    path = str(caught.value).rpartition(" ")[2]
    assert path.startswith(str(run.dir.training_states("cnn")))
    assert path.endswith(".pt")
    never = begun(tmp_path / "never", {"lr": 1000.0, "optimizer": "sgd", "epochs": 3}, save_every_s=1e6)
    with pytest.raises(TrainingDivergedError, match="no state had been saved before"):
        execute(never)


@pytest.mark.parametrize(("precision", "grid"), [("float32", "native"), ("tf32", "canonical"), ("bfloat16", "native")])
def test_accuracy_is_measured_as_that_of_models_in_the_matrix(tmp_path, monkeypatch, precision, grid):
    """In the study's precision, whatever it was trained in: students are compared with undistilled models."""
    from simhpc.attacks import batches

    real, seen = batches.predict, {}

    def predict(target, shown, *arguments):
        seen.update(target=target, shown=shown, tf32=torch.backends.cuda.matmul.allow_tf32)
        return real(target, shown, *arguments)

    monkeypatch.setattr(batches, "predict", predict)
    trained_in = {"float32": "tf32", "tf32": "float32", "bfloat16": "float32"}[precision]
    raw = tiny(("cnn",), images={"n": 1697}, training={"epochs": 1, "precision": trained_in}, precision=precision)
    raw["attack"]["grid"] = grid
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    execute(run)
    assert seen["tf32"] == (precision == "tf32")
    assert seen["target"].classifier.in_bfloat16 == (precision == "bfloat16")
    assert seen["target"].classifier.fits_inside == (grid == "canonical")
    assert seen["shown"].shape == (1697, 3, *((8, 8) if grid == "canonical" else (16, 16)))


def test_no_image_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("simhpc.images.training_positions", lambda *_: [])
    with pytest.raises(ImageSourceError, match="none is left to train on"):
        execute(begun(tmp_path, {}))
