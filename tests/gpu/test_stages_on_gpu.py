"""Whole stages on a CUDA device, against the CPU, against themselves, and through the command line."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from tiny import execute_all, tiny, write_study

from simhpc.offline.verify import verify
from simhpc.stages import progress, stage_module, stages_of
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Task
from simhpc.stages.timing import measure
from simhpc.store import adversarial, checkpoint, predictions, similarity
from simhpc.study import load_study
from simhpc.zoo.resolve import resolve_model

pytestmark = pytest.mark.gpu

STUDENTS = [
    {"student": "vit", "teachers": ["cnn"], "training": {"epochs": 2}},
    {"name": "soft", "student": "vit", "teachers": ["cnn"], "kind": "soft", "training": {"epochs": 2}},
]


def gpu_study(folder, finished=None, keys=("cnn", "convnext", "vit"), **changes):
    """The tiny study on the GPU; with a finished run, of that run's trained models."""
    raw = tiny(keys, **changes)
    raw["resources"] = {**raw["resources"], "device": "cuda"}
    if finished is not None:
        for model in raw["models"]:
            model["weights"] = f"checkpoint:{finished.dir.checkpoint(model['key'])}"
            model.pop("training", None)
            model["args"] = {**model["args"], "num_classes": 10}
    return write_study(folder / "study.toml", raw)


def begun(folder, finished=None, **changes):
    return prepare(load_study(gpu_study(folder, finished, **changes)), folder / "run")


def execute(run, stage, model, report=lambda *_: None):
    return stage_module(stage).execute(run, Task(stage, model), report)


def identities(run):
    keys = [model.key for model in run.study.models]
    found = {key: adversarial.header(run.dir.adversarial(key)).content_sha256 for key in keys}
    found |= {f"answers of {key}": predictions.header(run.dir.predictions(key)).content_sha256 for key in keys}
    found |= {f"weights of {key}": checkpoint.metadata_of(run.dir.checkpoint(key))["weights_sha256"] for key in keys}
    return found


def test_a_whole_study_gives_the_same_each_time(tmp_path):
    runs = []
    for name in ("one", "two"):
        run = begun(tmp_path / name, distillations=STUDENTS)
        execute_all(run, (*stages_of(run.study), "representations"))
        runs.append(run)
    one, two = runs
    assert identities(one) == identities(two)
    assert len(one.study.students) == 2
    for student in one.study.students:
        sums = [checkpoint.metadata_of(run.dir.checkpoint(student.key))["weights_sha256"] for run in runs]
        assert sums[0] == sums[1]
    for key in ("cnn", "vit"):
        with h5py.File(one.dir.representations(key)) as ours, h5py.File(two.dir.representations(key)) as theirs:
            assert np.array_equal(ours["features/values"], theirs["features/values"])
            # Of the stored images: through a resize, whose gradient is added in any order.
            np.testing.assert_allclose(ours["gradients/values"][:], theirs["gradients/values"][:], atol=2e-3)
    origin = adversarial.header(one.dir.adversarial("cnn")).provenance
    assert origin.device == torch.cuda.get_device_name(0)
    assert origin.engine.endswith("; CUDA graph")
    assert np.isfinite(similarity.load(one.dir.similarity).sat).all()


def test_the_same_models_are_as_alike_as_on_the_cpu(finished, tmp_path):
    run = begun(tmp_path, finished)
    execute_all(run, ("attack", "evaluate", "aggregate"))
    here, there = similarity.load(run.dir.similarity), similarity.load(finished.dir.similarity)
    assert ((here.sat >= there.ci_low) & (here.sat <= there.ci_high))[~np.eye(3, dtype=bool)].all()
    for model in run.study.models:
        one, other = (adversarial.load(r.dir.adversarial(model.key)) for r in (run, finished))
        assert np.array_equal(one.index, other.index)
        assert (one.images != other.images).mean() < 0.05
        assert abs(one.n_fooled - other.n_fooled) <= 1
    assert verify(run, deep=True).findings == []


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precision_is_a_setting_of_the_study(finished, tmp_path, precision):
    run = begun(tmp_path, finished, precision=precision)
    execute_all(run, ("attack", "evaluate"))
    held = adversarial.load(run.dir.adversarial("vit"))
    other = adversarial.load(finished.dir.adversarial("vit"))
    assert held.provenance.precision == precision
    assert not np.array_equal(held.images, other.images)
    assert abs(held.n_fooled - other.n_fooled) <= 3


def test_a_resize_inside_the_model_is_said_to_have_no_deterministic_gradient(finished, tmp_path, capsys):
    run = begun(tmp_path, finished, keys=("cnn",), attack={"grid": "canonical"})
    execute(run, "attack", "cnn")
    said = capsys.readouterr().out
    assert "cnn: not the same bits each time on this device: " in said
    assert adversarial.header(run.dir.adversarial("cnn")).n_fooled > 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_attacks_and_evaluations_are_the_same_ones(finished, tmp_path, mode):
    plain = begun(tmp_path / "plain", finished, keys=("cnn", "vit"))
    run = begun(tmp_path / "compiled", finished, keys=("cnn", "vit"), resources={"compile": mode})
    for each in (plain, run):
        execute_all(each, ("attack", "evaluate"))
    for key in ("cnn", "vit"):
        one, other = (adversarial.load(r.dir.adversarial(key)) for r in (run, plain))
        assert f"; compiled ({mode})" in one.provenance.engine
        assert ("CUDA graph" in one.provenance.engine) == (mode == "default")
        assert (one.images != other.images).mean() < 0.05
        assert abs(one.n_fooled - other.n_fooled) <= 1
        answers = [predictions.load(r.dir.predictions(key)).adv_pred for r in (run, plain)]
        assert (answers[0] != answers[1]).mean() < 0.05


def test_memory_that_runs_out_halves_the_batch_and_is_remembered(finished, tmp_path, capsys):
    run = begun(tmp_path, finished, keys=("convnext",), resources={"batch_size": 4096})
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 5e8) / total)
        execute(run, "attack", "convnext")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    held = json.loads(run.dir.batch_size("attack", "convnext").read_text())
    assert held["wanted"] == 4096
    assert held["fits"] < 4096
    assert held["device"] == torch.cuda.get_device_name(0)
    assert "out of memory; going on with" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_training_that_is_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch, precision):
    recipe = {"epochs": 2, "precision": precision, "mixup_alpha": 0.2, "ema_decay": 0.9, "drop_path_rate": 0.1}
    whole, broken = (
        begun(tmp_path / name, keys=("cnn",), images={"n": 1297}, training=recipe, resources={"save_every_s": 0})
        for name in ("whole", "broken")
    )
    execute(whole, "train", "cnn")

    def stop(done, *_):
        if done >= 5:
            progress.interrupt()

    monkeypatch.setattr(progress, "_is_interrupted", False)
    with pytest.raises(Interrupted):
        execute(broken, "train", "cnn", stop)
    monkeypatch.setattr(progress, "_is_interrupted", False)
    execute(broken, "train", "cnn")
    sums = [checkpoint.metadata_of(run.dir.checkpoint("cnn"))["weights_sha256"] for run in (whole, broken)]
    assert sums[0] == sums[1]


def test_the_forecast_measures_the_gpu(tmp_path):
    study = load_study(gpu_study(tmp_path, keys=("cnn",)))
    speed = measure(resolve_model(study.models[0], 10), study, 10, import_s=1.0)
    # A forward pass of so small a model is all launching, and only a gradient is recorded.
    assert 0 < speed.forward_s < 0.1
    assert 0 < speed.gradient_s < 0.1
    assert speed.training_s > 0


@pytest.mark.timeout(300)  # six processes, one after the other, beside those of other tests
def test_the_command_line_runs_a_study_on_the_gpu(simhpc, tmp_path):
    path = gpu_study(tmp_path, keys=("cnn", "vit"))
    code, out, err = simhpc("run", path, "--out", tmp_path / "run")
    assert code == 0, err
    origin = adversarial.header(tmp_path / "run" / "adversarial" / "cnn.h5").provenance
    assert origin.device == torch.cuda.get_device_name(0)
    code, out, err = simhpc("plan", path, "--json", "--measure")
    assert code == 0, err
    assert json.loads(out)
