"""Checkpoints and networks of one's own in a study beside timm's, from the study file to the matrix."""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import DATA, execute_all, tiny, write_study

from simhpc.errors import StudyError
from simhpc.stages import estimate, inputs
from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, image_set, predictions, similarity
from simhpc.study import load_study
from simhpc.zoo import build, weights
from simhpc.zoo.geometry import clean_view, to_pixels

NETWORK = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, num_classes=10, width=16):
            super().__init__()
            layers = [nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3)]
            self.body = nn.Sequential(*layers, nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(8 * width, num_classes)

        def forward(self, x):
            return self.head(self.body(x))

    def build(**args):
        return Net(**args)

    def ready(path):
        net = Net()
        net.load_state_dict(torch.load(path, weights_only=True))
        net.pretrained_cfg = dict(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3,
                                  interpolation="bicubic", crop_pct=1.0)
        return net
"""
COMPLETE = {**DATA, "interpolation": "bicubic"}
_numbers = itertools.count()


@pytest.fixture
def network(tmp_path, monkeypatch) -> str:
    """A package of one's own beside the study file, under a name that no other test has."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"our_lab_{next(_numbers)}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "models.py").write_text(textwrap.dedent(NETWORK))
    return f"{name}.models"


def study_of(tmp_path, models, **changes):
    raw = {**tiny(), **changes, "models": models}
    if not any(model.get("weights") == "train" for model in models):
        raw.pop("training")
    return load_study(write_study(tmp_path / "study.toml", raw))


def test_a_trained_checkpoint_that_was_moved_gives_the_same_predictions(finished, tmp_path):
    """Trained in one study, copied out under other names and wrappings, used by path in another."""
    models = tiny()["models"]
    for model in models:
        state, key = load_file(finished.dir.checkpoint(model["key"])), model["key"]
        path = tmp_path / "elsewhere" / f"renamed-{key}.pth"
        path.parent.mkdir(exist_ok=True)
        if key == "cnn":
            path = path.with_suffix(".safetensors")
            shutil.copy(finished.dir.checkpoint(key), path)
        elif key == "convnext":
            torch.save({"epoch": 6, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
        else:
            torch.save({"model": {}, "model_ema": {f"_orig_mod.{name}": held for name, held in state.items()}}, path)
        model["weights"] = f"checkpoint:elsewhere/{path.name}"
        model["args"] = {**model["args"], "num_classes": 10}
        model.pop("training", None)
    run = prepare(study_of(tmp_path, models), tmp_path / "run")
    assert {task.stage for task in execute_all(run)} == {"attack", "evaluate", "aggregate"}
    for model in run.study.models:
        ours, theirs = (predictions.load(each.dir.predictions(model.key)) for each in (run, finished))
        assert ours.provenance.weights_sha256 == theirs.provenance.weights_sha256
        np.testing.assert_array_equal(ours.clean_pred, theirs.clean_pred)
        np.testing.assert_array_equal(ours.clean_margin, theirs.clean_margin)
        np.testing.assert_array_equal(ours.clean_probabilities, theirs.clean_probabilities)
        np.testing.assert_array_equal(ours.adv_pred, theirs.adv_pred)
        attacked = (adversarial.load(each.dir.adversarial(model.key)).images for each in (run, finished))
        np.testing.assert_array_equal(*attacked)
    np.testing.assert_array_equal(similarity.load(run.dir.similarity).sat, similarity.load(finished.dir.similarity).sat)
    # And of the network by itself, no stage between.
    chosen = image_set.load(run.dir.images)
    for model in run.study.models:
        pixels = to_pixels(clean_view(chosen.images, model.data))
        answers = [
            build.load(entry, num_classes=10, trained=finished.dir.checkpoint(model.key)).classifier(pixels)
            for entry in (model, finished.study.model(model.key))
        ]
        assert torch.equal(*answers)


def test_networks_of_ones_own_beside_timms(finished, tmp_path, network):
    """Trained here, from a checkpoint, with weights of their own; and one of timm: all in one matrix."""
    trained = {"key": "trained", "module": f"{network}:build", "weights": "train", "data": COMPLETE}
    first = prepare(study_of(tmp_path, [trained]), tmp_path / "first")
    execute_all(first, ("train",))
    state = load_file(first.dir.checkpoint("trained"))
    torch.save(state, tmp_path / "net.pt")
    of_timm = copy.deepcopy(tiny(("cnn",))["models"][0])
    of_timm["args"]["num_classes"] = 10
    models = [
        {"key": "loaded", "module": f"{network}:build", "weights": "checkpoint:net.pt", "data": COMPLETE},
        {"key": "own", "module": f"{network}:ready", "args": {"path": str(tmp_path / "net.pt")}},
        {**of_timm, "weights": f"checkpoint:{finished.dir.checkpoint('cnn')}"},
    ]
    run = prepare(study_of(tmp_path, models), tmp_path / "run")
    facts = estimate.look(run)
    costs = estimate.count_costs(run.study, facts.num_classes)
    assert (
        costs["own"].parameters
        == costs["loaded"].parameters
        == sum(tensor.numel() for name, tensor in state.items() if "running" not in name and "batches" not in name)
    )
    assert estimate.estimate(run, facts, costs, accuracy=0.8).of_stage("attack")[0].flops > 0
    execute_all(run)
    matrix = similarity.load(run.dir.similarity)
    assert matrix.problems == []
    assert matrix.timm_names == [f"{network}:build", f"{network}:ready", "resnet18"]
    assert (matrix.clean_accuracy > 0.4).all()
    assert np.isfinite(matrix.sat).all()
    # One network by two ways in: another start of the attack, no other answer to a clean image.
    one, two = (predictions.load(run.dir.predictions(key)) for key in ("loaded", "own"))
    assert one.provenance.weights_sha256 == two.provenance.weights_sha256
    np.testing.assert_array_equal(one.clean_pred, two.clean_pred)
    assert "folded 1 of 1 batch norms" in one.provenance.engine
    assert execute_all(prepare(study_of(tmp_path, models), tmp_path / "run")) == []


def test_an_edited_source_contradicts_the_run_directory(tmp_path, network):
    torch.save({"unused": torch.ones(1)}, tmp_path / "net.pt")
    models = [{"key": "ours", "module": f"{network}:build", "weights": "train", "data": COMPLETE}]
    run = prepare(study_of(tmp_path, models), tmp_path / "run")
    source = tmp_path / network.partition(".")[0] / "models.py"
    assert run.study.models[0].module_folder == str(tmp_path)
    source.write_text(source.read_text().replace("nn.ReLU", "nn.GELU"))
    with pytest.raises(StudyError, match=r"models\.ours\.module_sha256: run directory has"):
        prepare(study_of(tmp_path, models), tmp_path / "run")


def test_tasks_read_the_folder_of_a_module(tmp_path, network):
    models = [{"key": "ours", "module": f"{network}:build", "weights": "train", "data": COMPLETE}]
    run = prepare(study_of(tmp_path, models), tmp_path / "run")
    for stage in ("train", "attack", "evaluate"):
        assert inputs.paths(run, stage, ["ours"]) == [tmp_path]
        assert inputs.paths(run, stage, ["other"]) == []
    assert inputs.paths(run, "aggregate", ["ours"]) == []
    # Installed in this Python, so to be installed in the image too: its folder holds everything else of ours as well.
    installed = run.study.models[0].model_copy(update={"module_folder": "/venv/lib/python3.11/site-packages"})
    elsewhere = type(run)(run.dir, run.study.model_copy(update={"models": (installed,)}))
    assert inputs.paths(elsewhere, "attack", ["ours"]) == []


def test_the_checkpoint_of_the_train_stage_says_where_it_comes_from(tmp_path, network):
    from simhpc.store import checkpoint

    models = [{"key": "ours", "module": f"{network}:build", "weights": "train", "data": COMPLETE}]
    run = prepare(study_of(tmp_path, models, training={"epochs": 1}), tmp_path / "run")
    execute_all(run, ("train",))
    metadata = checkpoint.metadata_of(run.dir.checkpoint("ours"))
    assert metadata["timm_name"] == f"{network}:build"
    assert json.loads(metadata["study_entry"])["module_sha256"] == run.study.models[0].module_sha256
    state = weights.read_trained(run.dir.checkpoint("ours"))
    assert state["head.weight"].shape == (10, 128)
