"""The representations stage: against torch and timm alone, resumed, damaged, with networks of one's own."""

from __future__ import annotations

import importlib
import itertools
import json
import shutil
import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch
from damage import reseal
from safetensors.torch import load_file
from tiny import DATA, MODELS, execute_all, tiny, write_study
from torch.nn import functional

from simhpc.attacks import input_gradients
from simhpc.errors import BadFileError, ModelError
from simhpc.rundir import Run, RunDir, open_run
from simhpc.stages import OPTIONAL_STAGES, estimate, inputs
from simhpc.stages import representations as stage
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Task, execute_task
from simhpc.store import adversarial, hdf5, image_set
from simhpc.store import representations as store
from simhpc.study import load_study
from simhpc.zoo.geometry import clean_view, fit_pixels
from simhpc.zoo.timm_import import timm

N, GRADIENTS = 70, 12


@pytest.fixture(scope="module")
def stored(finished, tmp_path_factory):
    """The finished run with the stage done; read only."""
    root = tmp_path_factory.mktemp("stored")
    shutil.copytree(finished.dir.root, root / "run")
    raw = tiny(representations={"n_gradients": GRADIENTS})
    run = prepare(load_study(write_study(root / "study.toml", raw)), root / "run")
    assert len(execute_all(run, OPTIONAL_STAGES)) == 3
    return run


@pytest.fixture
def mine(stored, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(stored.dir.root, tmp_path / "mine")
    return open_run(tmp_path / "mine")


def plain_network(run, model):
    args = {**model.args, **({"img_size": 16} if "vit" in model.timm else {})}
    network = timm.create_model(model.timm, num_classes=10, **args)
    network.load_state_dict(load_file(run.dir.checkpoint(model.key)))
    return network.eval()


def test_other_results_do_not_hang_on_its_settings(finished, stored):
    assert stored.study.settings_sha256() == finished.study.settings_sha256()
    assert stored.study.representations.n_gradients == GRADIENTS
    assert open_run(stored.dir.root).study == stored.study


def test_features_are_those_of_the_clean_view(stored):
    chosen = image_set.load(stored.dir.images)
    for model in stored.study.models:
        network = plain_network(stored, model)
        pixels = (torch.from_numpy(clean_view(chosen.images, model.data)).float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
            logits = network.get_classifier()(expected)
        features = store.load_features(stored.dir.representations(model.key))
        assert features.shape == (N, network.num_features)
        np.testing.assert_allclose(features, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))
        # With the last layer they give what the attack stage saw.
        clean = adversarial.load(stored.dir.adversarial(model.key)).clean_pred
        np.testing.assert_array_equal(logits.argmax(1), clean)


def test_gradients_are_those_at_the_stored_image(stored):
    chosen = image_set.load(stored.dir.images)
    for model in stored.study.models:
        network, path = plain_network(stored, model), stored.dir.representations(model.key)
        small, gradients = store.load_gradients(path), list(store.iterate_gradients(path))
        for i, norm, gradient in zip(small.index, small.norms, gradients, strict=True):
            pixels = (torch.from_numpy(chosen.images[i : i + 1]).float() / 255).requires_grad_(True)
            logits = network((fit_pixels(pixels, model.data) - 0.5) / 0.5)
            functional.cross_entropy(logits, torch.tensor([int(chosen.labels[i])])).backward()
            assert gradient.shape == chosen.images.shape[1:]
            assert norm == pytest.approx(float(pixels.grad.norm()), rel=1e-4)
            np.testing.assert_allclose(gradient, pixels.grad[0] / pixels.grad.norm(), atol=2e-3)


def test_the_images_are_the_same_for_all_models_and_of_all_classes(stored):
    of = [store.load_gradients(stored.dir.representations(model.key)).index for model in stored.study.models]
    assert all(np.array_equal(of[0], each) for each in of)
    labels = image_set.load(stored.dir.images).labels
    assert len(of[0]) == GRADIENTS
    assert len(set(labels[of[0]].tolist())) == 10


def test_the_file_says_where_it_comes_from(stored):
    header = store.header(stored.dir.representations("vit"))
    assert header.features_from == "timm's forward_head(pre_logits=True)"
    assert (header.n_images, header.n_features, header.n_gradients, header.size_px) == (N, 32, GRADIENTS, 8)
    assert (header.forward_passes, header.gradient_passes) == (N, 3 * GRADIENTS)
    assert json.loads(header.settings) == {"n_gradients": GRADIENTS, "noise_std_255": 1.0}
    assert header.provenance == adversarial.header(stored.dir.adversarial("vit")).provenance


def test_again_it_is_done_and_gives_the_same_bytes(mine):
    path = mine.dir.representations("cnn")
    before = path.read_bytes()
    assert execute_all(mine, OPTIONAL_STAGES) == []
    path.unlink()
    assert execute_all(mine, OPTIONAL_STAGES) == [Task("representations", "cnn")]
    assert path.read_bytes() == before


def test_other_settings_are_another_file(mine, tmp_path):
    raw = tiny(representations={"n_gradients": GRADIENTS, "noise_std_255": 8.0})
    run = prepare(load_study(write_study(tmp_path / "other.toml", raw)), mine.dir.root)
    with pytest.raises(BadFileError, match=r"was made with .*1\.0.* now is .*8\.0.*run the representations stage"):
        stage.usable_header(run, run.study.model("cnn"))
    before = store.load_gradients(run.dir.representations("cnn"))
    assert len(execute_all(run, OPTIONAL_STAGES)) == 3
    after = store.load_gradients(run.dir.representations("cnn"))
    np.testing.assert_array_equal(before.norms, after.norms)
    assert after.noise_cosines.mean() < before.noise_cosines.mean()


def test_more_gradients_than_images_are_all_of_them(mine, tmp_path):
    raw = tiny(representations={"n_gradients": 1000})
    run = prepare(load_study(write_study(tmp_path / "other.toml", raw)), mine.dir.root)
    execute_all(run, OPTIONAL_STAGES)
    np.testing.assert_array_equal(store.load_gradients(run.dir.representations("cnn")).index, np.arange(N))


def test_a_retrained_model_is_done_again(mine):
    shutil.copy(mine.dir.checkpoint("cnn"), mine.dir.root / "kept")
    mine.dir.checkpoint("cnn").unlink()
    shutil.copy(mine.dir.checkpoint("vit"), mine.dir.checkpoint("cnn"))
    assert not stage.is_done(mine, Task("representations", "cnn"))
    assert stage.is_done(mine, Task("representations", "vit"))


def test_an_interrupted_task_leaves_nothing_and_says_so(mine):
    path, said = mine.dir.representations("cnn"), []
    path.unlink()

    def report(done, total, unit):
        said.append((done, total, unit))
        if done > N:
            raise Interrupted

    with pytest.raises(Interrupted):
        stage.execute(mine, Task("representations", "cnn"), report)
    assert not list(path.parent.glob("cnn*"))
    assert said[0] == said[-1] == (0, N + GRADIENTS, "image")
    assert said[-2][0] == N + GRADIENTS


def test_as_a_job_it_keeps_a_progress_file(mine):
    mine.dir.representations("cnn").unlink()
    summary = execute_task(str(mine.dir.root), "representations", "cnn")
    assert summary == {"images": N, "gradients": GRADIENTS, "features": 16}
    held = json.loads(mine.dir.progress("representations", "cnn").read_text())
    assert (held["state"], held["done"], held["total"]) == ("finished", N + GRADIENTS, N + GRADIENTS)


def test_less_memory_is_smaller_batches(mine, monkeypatch):
    sizes, real = [], input_gradients.InputGradient.__call__

    def call(self, pixels, labels):
        sizes.append(len(pixels))
        if len(pixels) > 8:
            raise torch.OutOfMemoryError("none left")
        return real(self, pixels, labels)

    monkeypatch.setattr(input_gradients.InputGradient, "__call__", call)
    before = store.load_gradients(mine.dir.representations("cnn"))
    mine.dir.representations("cnn").unlink()
    execute_all(mine, OPTIONAL_STAGES)
    assert (max(sizes), min(sizes)) == (32, 8)
    assert store.header(mine.dir.representations("cnn")).provenance.batch_size == 8
    after = store.load_gradients(mine.dir.representations("cnn"))
    np.testing.assert_array_equal(before.index, after.index)
    np.testing.assert_allclose(before.norms, after.norms, rtol=1e-4)


@pytest.fixture
def in_chunks(mine, monkeypatch):
    """A file whose gradients are in several chunks."""
    monkeypatch.setattr(hdf5, "_CHUNK_BYTES", 4000)
    path = mine.dir.representations("cnn")
    path.unlink()
    execute_all(mine, OPTIONAL_STAGES)
    return path


@pytest.mark.parametrize("most_bytes", [1, 10_000, 1 << 24])
def test_gradients_of_many_models_are_gone_through_with_no_file_open(in_chunks, most_bytes):
    path = in_chunks
    with h5py.File(path) as file:
        whole = file["gradients/values"][:]
        assert 1 < file["gradients/values"].chunks[0] < len(whole)
    seen = []
    for several in zip(*(store.iterate_gradients(path, most_bytes) for _ in range(40)), strict=True):
        assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
        assert all(np.array_equal(each, several[0]) for each in several)
        seen.append(several[0])
    np.testing.assert_array_equal(np.stack(seen), whole)


def test_another_file_in_the_place_of_gradients_is_an_error(mine, in_chunks):
    begun = store.iterate_gradients(in_chunks, 1)
    next(begun)
    in_chunks.write_bytes(mine.dir.representations("vit").read_bytes())
    with pytest.raises(BadFileError, match="was replaced while it was being read"):
        list(begun)


def test_damage_is_found(mine):
    path = mine.dir.representations("cnn")
    with h5py.File(path, "r+") as file:
        values = file["gradients/values"][:]
        values[0, 0, 0, 0] += 1
        file["gradients/values"][:] = values
    reseal(path)
    with pytest.raises(BadFileError, match=r"cnn\.h5: the data of 'gradients/values' do not match their checksum"):
        list(store.iterate_gradients(path))
    with h5py.File(path, "r+") as file:
        file["features/scale"][0] = 3.0
    reseal(path)
    with pytest.raises(BadFileError, match="'features/scale' do not match"):
        store.load_features(path)
    path.write_bytes(path.read_bytes()[:3000])
    assert not stage.is_done(mine, Task("representations", "cnn"))
    assert execute_all(mine, OPTIONAL_STAGES) == [Task("representations", "cnn")]
    list(store.iterate_gradients(path))


def test_a_file_without_a_dataset_and_of_another_version(mine):
    path = mine.dir.representations("cnn")
    with h5py.File(path, "r+") as file:
        del file["gradients/norm"]
    reseal(path)
    with pytest.raises(BadFileError, match=r"cnn\.h5: the dataset 'gradients/norm' is missing"):
        store.header(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
    reseal(path)
    with pytest.raises(BadFileError, match="simhpc-representations version 2; this simhpc .* reads version 1"):
        store.header(path)


def test_features_that_are_not_finite_are_refused(mine, monkeypatch):
    mine.dir.representations("cnn").unlink()
    monkeypatch.setattr(stage, "_features", lambda *_: (torch.full((N, 2), torch.inf), "somewhere"))
    with pytest.raises(ModelError, match="model 'cnn': its features are NaN or infinite"):
        stage.execute(mine, Task("representations", "cnn"), lambda *_: None)


@pytest.mark.parametrize("largest", [1e-20, 3e-3, 1.0, 65504.0, 1e30])
def test_features_of_any_size_fit_into_16_bits(largest):
    scale = stage._scale(largest)
    assert 2**14 <= largest / scale < 2**15 * (1 + 1e-12)
    assert np.isfinite(np.float16(largest / scale))
    assert stage._scale(0.0) == 1.0


OWN = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(6 * 36, 10)

        def forward(self, x):
            return self.head(self.body(x))

    def linear():
        torch.manual_seed(1)
        return Net()

    def convolutional():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.Conv2d(6, 10, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""
_numbers = itertools.count()


def test_networks_of_ones_own_and_of_other_input_sizes(tmp_path, monkeypatch):
    """Gradients lie on the stored images' grid, whatever the networks' input is; one has no features to compare."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"our_representations_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(OWN))
    larger = {**DATA, "interpolation": "bilinear", "input_size_px": 24, "crop_pct": 0.75}
    raw = tiny(("cnn",), images={"n": 20}, representations={"n_gradients": 5}, attack={"steps": 1})
    raw["models"] = [
        {"key": key, "module": f"{name}:{key}", "weights": "own", "data": larger, "expected_top1_percent": 0.0}
        for key in ("linear", "convolutional")
    ]
    raw["models"].append({"key": "timms", "timm": "resnet18", "weights": "random", "data": DATA, **MODELS["cnn"]})
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    execute_all(run, OPTIONAL_STAGES)
    linear, convolutional, timms = (store.header(run.dir.representations(model.key)) for model in run.study.models)
    assert (linear.features_from, linear.n_features) == ("the input of its last linear layer, head", 216)
    assert (convolutional.features_from, convolutional.n_features) == (
        "none: it runs no linear layer (torch.nn.Linear)",
        0,
    )
    assert convolutional.forward_passes == 0
    assert (timms.features_from, timms.n_features) == ("timm's forward_head(pre_logits=True)", 16)
    chosen = image_set.load(run.dir.images)
    network = importlib.import_module(name).linear().eval()
    small = store.load_gradients(run.dir.representations("linear"))
    for i, gradient in zip(small.index, store.iterate_gradients(run.dir.representations("linear")), strict=True):
        pixels = (torch.from_numpy(chosen.images[i : i + 1]).float() / 255).requires_grad_(True)
        # 24 / 0.75 = 32 px, of which the middle 24 are looked at.
        resized = functional.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False, antialias=True)
        logits = network((resized[..., 4:28, 4:28] - 0.5) / 0.5)
        functional.cross_entropy(logits, torch.tensor([int(chosen.labels[i])])).backward()
        np.testing.assert_allclose(gradient, pixels.grad[0] / pixels.grad.norm(), atol=2e-3)
    for key in ("convolutional", "timms"):
        assert all(each.shape == (3, 8, 8) for each in store.iterate_gradients(run.dir.representations(key)))


def test_what_it_reads_from_outside(tmp_path):
    raw = tiny(("cnn",))
    model = raw["models"][0]
    del raw["training"]
    model |= {"weights": "checkpoint:/elsewhere/cnn.safetensors"}
    study = load_study(write_study(tmp_path / "study.toml", raw))
    run = Run(RunDir(tmp_path / "run"), study)
    assert [str(path) for path in inputs.paths(run, "representations", ["cnn"])] == ["/elsewhere/cnn.safetensors"]


def test_its_size_is_what_plan_says_at_most(stored):
    for model in stored.study.models:
        header = store.header(stored.dir.representations(model.key))
        size = stored.dir.representations(model.key).stat().st_size
        most = estimate.representations_bytes(N, GRADIENTS, 8)
        spare = N * 2 * (estimate._MOST_FEATURES - header.n_features)
        assert size <= most
        assert size == pytest.approx(most - spare, rel=0.4)
