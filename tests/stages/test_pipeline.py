"""The whole study: against a slow independent computation, twice, resumed, extended, and on one's own checkpoints."""

from __future__ import annotations

import itertools
import json
import math
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import DATA, MODELS, execute_all, tiny, write_study

from simhpc.errors import BadFileError
from simhpc.rundir import open_run
from simhpc.stages import STAGES, stage_module
from simhpc.stages.prepare import prepare
from simhpc.stages.task import ALL, Task
from simhpc.store import adversarial, image_set, predictions, similarity
from simhpc.study import load_study
from simhpc.zoo.timm_import import timm


def test_matrix_equals_a_slow_independent_computation(finished):
    """From the raw files with h5py and timm alone: no code of ours between the images and the matrix."""
    root, keys = finished.dir.root, [model.key for model in finished.study.models]
    networks = {}
    for model in finished.study.models:
        network = timm.create_model(
            model.timm, num_classes=10, **model.args, **({"img_size": 16} if "vit" in model.timm else {})
        )
        network.load_state_dict(load_file(root / "checkpoints" / f"{model.key}.safetensors"))
        networks[model.key] = network.eval()

    def answer(key, image_u8):
        with torch.no_grad():
            pixels = torch.tensor(image_u8[None].astype(np.float32)) / 255
            return int(networks[key]((pixels - 0.5) / 0.5).argmax())

    with h5py.File(root / "images.h5") as file:
        labels = file["labels"][:]
    stored = {}
    for key in keys:
        with h5py.File(root / "adversarial" / f"{key}.h5") as file:
            stored[key] = dict(zip(file["index"][:].tolist(), file["images"][:], strict=True))
            clean = file["clean_pred"][:]
        assert sorted(stored[key]) == [i for i in range(len(labels)) if clean[i] == labels[i]]
    right = {key: set(stored[key]) for key in keys}
    matrix = similarity.load(finished.dir.similarity)
    for a, b in itertools.product(keys, keys):
        common = right[a] & right[b]
        ab = sum(answer(b, stored[a][i]) != labels[i] for i in common) / len(common)
        ba = sum(answer(a, stored[b][i]) != labels[i] for i in common) / len(common)
        expected = math.log(max(finished.study.similarity.floor_percent, 100 * 0.5 * (ab + ba)))
        assert matrix.sat[keys.index(a), keys.index(b)] == pytest.approx(expected, abs=1e-12)


def test_models_learned_and_attacks_work(finished):
    matrix = similarity.load(finished.dir.similarity)
    assert (matrix.clean_accuracy > 0.4).all()  # of ten classes, after a few seconds of training
    rates = np.diag(matrix.n_fooled) / np.diag(matrix.n_common)
    assert (rates > 0.5).all()
    assert np.isfinite(matrix.sat).all()
    assert matrix.problems == []


def test_adversarial_images_are_within_eps_of_the_clean_view(finished):
    from simhpc.zoo.geometry import clean_view

    chosen = image_set.load(finished.dir.images)
    for model in finished.study.models:
        found = adversarial.load(finished.dir.adversarial(model.key))
        clean = clean_view(chosen.images, model.data)[found.index]
        assert 0 < np.abs(found.images.astype(int) - clean.astype(int)).max() <= 32
        np.testing.assert_array_equal(found.clean_pred[found.index], chosen.labels[found.index])
        assert found.n_fooled == np.count_nonzero(found.adv_pred != chosen.labels[found.index])


def test_self_fooling_of_the_attack_is_that_of_the_evaluation(finished):
    chosen = image_set.load(finished.dir.images)
    for model in finished.study.models:
        attacked = adversarial.load(finished.dir.adversarial(model.key))
        seen = predictions.load(finished.dir.predictions(model.key))
        row = seen.sources.index(model.key)
        np.testing.assert_array_equal(seen.adv_pred[row][attacked.index], attacked.adv_pred)
        wrong = seen.adv_pred[row] != chosen.labels
        shown = seen.adv_pred[row] != predictions.NOT_SHOWN
        assert (seen.adv_margin[row][shown & wrong] <= 0).all()
        assert (seen.adv_margin[row][shown & ~wrong] >= 0).all()
        assert np.isnan(seen.adv_margin[row][~shown]).all()


def test_probabilities_are_of_the_clean_images_in_both_files(finished):
    for model in finished.study.models:
        attacked = adversarial.load(finished.dir.adversarial(model.key))
        seen = predictions.load(finished.dir.predictions(model.key))
        assert seen.clean_probabilities.tobytes() == attacked.clean_probabilities.tobytes()
        assert seen.clean_probabilities.shape == (70, 10)
        exact = seen.clean_probabilities.astype(float)
        np.testing.assert_allclose(exact.sum(axis=1), 1.0, atol=5e-4 + 10 * 3e-8)
        # In the same order as the images, and of the same answers: the chosen class is the likeliest, and the margin of
        # the logits is the logarithm of a quotient of probabilities.
        of_chosen = exact[np.arange(70), seen.clean_pred]
        np.testing.assert_array_equal(of_chosen, exact.max(axis=1))
        true = exact[np.arange(70), seen.labels]
        others = exact.copy()
        others[np.arange(70), seen.labels] = 0.0
        is_normal = np.minimum(true, others.max(axis=1)) > 1e-4
        assert is_normal.any()
        margins = np.log(true[is_normal] / others.max(axis=1)[is_normal])
        np.testing.assert_allclose(margins, seen.clean_margin[is_normal].astype(float), atol=0.01)


def test_every_file_says_where_it_comes_from(finished):
    for key in ("cnn", "vit"):
        for path in (finished.dir.adversarial(key), finished.dir.predictions(key)):
            with h5py.File(path) as file:
                attributes = dict(file.attrs)
            assert attributes["model"] == key
            assert attributes["timm"] == timm.__version__
            assert attributes["torch"] == torch.__version__
            assert attributes["seed"] == 7
            assert json.loads(attributes["attack"])["eps_255"] == 32
            assert attributes["images_sha256"] == image_set.identity(finished.dir.images)
            for name in ("weights_sha256", "study_sha256", "content_sha256", "created_by", "precision", "container"):
                assert attributes[name]


def test_the_same_study_twice_is_byte_identical(finished, tmp_path):
    again = prepare(load_study(write_study(tmp_path / "study.toml", tiny())), tmp_path / "run")
    execute_all(again)
    for key in ("cnn", "convnext", "vit"):
        one, two = adversarial.load(finished.dir.adversarial(key)), adversarial.load(again.dir.adversarial(key))
        assert one.images.tobytes() == two.images.tobytes()
        np.testing.assert_array_equal(one.index, two.index)
    assert finished.dir.similarity_csv.read_bytes() == again.dir.similarity_csv.read_bytes()
    assert finished.dir.pairs_csv.read_bytes() == again.dir.pairs_csv.read_bytes()
    assert finished.dir.heatmap.read_bytes() == again.dir.heatmap.read_bytes()


def test_batch_size_does_not_change_what_is_attacked(finished, tmp_path):
    raw = tiny(resources={"batch_size": 17})
    shutil.copytree(finished.dir.root / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.copy(finished.dir.images, tmp_path / "run" / "images.h5")
    shutil.copy(finished.dir.frozen, tmp_path / "run" / "frozen.json")
    shutil.copy(finished.dir.study, tmp_path / "run" / "study.toml")
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    assert run.study.resources.batch_size == 17
    assert {task.stage for task in execute_all(run, ("train", "attack"))} == {"attack"}
    for key in ("cnn", "convnext", "vit"):
        one, two = adversarial.load(finished.dir.adversarial(key)), adversarial.load(run.dir.adversarial(key))
        np.testing.assert_array_equal(one.index, two.index)
        np.testing.assert_array_equal(one.clean_pred, two.clean_pred)
        # Rounding differs with the shape of a batch; a few gradients near zero change their sign.
        assert np.mean(one.images != two.images) < 0.02


def test_nothing_is_done_twice(copied):
    assert execute_all(copied) == []


def test_an_added_model_costs_its_own_row_and_column(copied, tmp_path):
    before = {path: path.read_bytes() for path in copied.dir.root.rglob("adversarial/*.h5")}
    old = similarity.load(copied.dir.similarity)
    study = load_study(write_study(tmp_path / "more.toml", tiny(("cnn", "convnext", "vit", "cnn-again"))))
    run = prepare(study, copied.dir.root)
    executed = []
    for module in map(stage_module, STAGES):
        todo = [task for task in module.tasks(run) if not module.is_done(run, task)]
        executed += [(task, module.execute(run, task, lambda *_: None)) for task in todo]
    tasks = [task for task, _ in executed]
    assert [task for task in tasks if task.stage in ("train", "attack")] == [
        Task("train", "cnn-again"),
        Task("attack", "cnn-again"),
    ]
    n_new = adversarial.header(run.dir.adversarial("cnn-again")).n_attacked
    for task, summary in executed:
        if task.stage == "evaluate" and task.model != "cnn-again":
            assert 0 < summary["shown"] <= n_new  # the new model's images only
    assert {path: path.read_bytes() for path in before} == before
    new = similarity.load(run.dir.similarity)
    assert new.models == ["cnn", "convnext", "vit", "cnn-again"]
    np.testing.assert_array_equal(new.sat[:3, :3], old.sat)
    assert np.isfinite(new.sat).all()
    assert execute_all(run) == []


@pytest.mark.parametrize(
    ("lost", "redone"),
    [
        ("checkpoint", {"train"}),
        ("adversarial", {"attack"}),
        ("predictions", {"evaluate"}),
        ("similarity", {"aggregate"}),
        ("heatmap", {"aggregate"}),
    ],
)
def test_a_lost_file_is_made_again_and_nothing_else(copied, lost, redone):
    path = getattr(copied.dir, lost)
    path = path if lost in ("similarity", "heatmap") else path("cnn")
    before = path.read_bytes()
    path.unlink()
    # Made again byte for byte, so that nothing downstream is out of date.
    assert {task.stage for task in execute_all(copied)} == redone
    if lost == "checkpoint":
        assert load_file(path).keys()
    if lost == "heatmap":
        assert path.read_bytes() == before


@pytest.mark.parametrize("lost", ["checkpoint", "adversarial", "predictions"])
def test_a_truncated_file_is_made_again(copied, lost):
    path = getattr(copied.dir, lost)("cnn")
    path.write_bytes(path.read_bytes()[:-100])
    stages = {task.stage for task in execute_all(copied)}
    assert {"checkpoint": "train", "adversarial": "attack", "predictions": "evaluate"}[lost] in stages
    assert execute_all(copied) == []


def test_a_valid_file_of_another_model_is_not_taken_for_this_ones(copied):
    shutil.copy(copied.dir.adversarial("cnn"), copied.dir.adversarial("vit"))
    assert not stage_module("attack").is_done(copied, Task("attack", "vit"))
    shutil.copy(copied.dir.checkpoint("cnn"), copied.dir.checkpoint("vit"))
    assert not stage_module("train").is_done(copied, Task("train", "vit"))


def test_retrained_weights_make_what_came_from_the_old_ones_out_of_date(copied):
    from simhpc.store import checkpoint
    from simhpc.store.checkpoint import metadata_of

    path = copied.dir.checkpoint("cnn")
    weights = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    weights["fc.weight"] = weights["fc.weight"][::-1]
    metadata = {name: value for name, value in metadata_of(path).items() if not name.startswith(("simhpc", "weights"))}
    checkpoint.save(path, weights, metadata)
    executed = execute_all(copied)
    assert Task("train", "cnn") not in executed
    assert Task("attack", "cnn") in executed
    assert {Task("evaluate", key) for key in ("cnn", "convnext", "vit")} <= set(executed)


def test_another_clean_answer_shows_other_images_again(copied):
    """Attacked anew elsewhere, one borderline image may change sides: what was shown before is then not X_AB."""
    path = copied.dir.adversarial("vit")
    found = adversarial.load(path)
    lost = int(found.index[0])
    clean_pred = found.clean_pred.copy()
    clean_pred[lost] = (clean_pred[lost] + 1) % 10
    changed = {
        "images": found.images[1:],
        "index": found.index[1:],
        "adv_pred": found.adv_pred[1:],
        "clean_pred": clean_pred,
    }
    adversarial.AdversarialSet(**{**vars(found), **changed}).save(path)
    executed = execute_all(copied)
    assert Task("attack", "vit") not in executed
    assert Task("evaluate", "vit") in executed
    matrix = similarity.load(copied.dir.similarity)
    assert matrix.problems == []
    assert np.isfinite(matrix.sat).all()


def test_a_damaged_adversarial_set_costs_only_its_own_column(copied):
    path = copied.dir.adversarial("vit")
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(0)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + 5] ^= 1
    path.write_bytes(damaged)
    for key in ("cnn", "convnext", "vit"):
        copied.dir.predictions(key).unlink()
    for key in ("cnn", "convnext"):
        with pytest.raises(
            BadFileError, match=r"adversarial/vit\.h5: .*delete it and run again; all other sources are done"
        ):
            stage_module("evaluate").execute(copied, Task("evaluate", key), lambda *_: None)
        assert predictions.load(copied.dir.predictions(key)).sources == ["cnn", "convnext"]
    path.unlink()
    execute_all(copied)
    assert np.isfinite(similarity.load(copied.dir.similarity).sat).all()


def make_class_indexed_folder(root, size=8):
    """Real digits as PNGs in folders named by class index: 2, 5 and 7 of the model's ten classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for label in (2, 5, 7):
        (root / str(label)).mkdir(parents=True)
        for k in np.flatnonzero(bunch.target == label)[:30]:
            Image.fromarray(np.rint(bunch.images[k] * 255 / 16).astype(np.uint8)).save(root / str(label) / f"{k}.png")
    return root


def test_own_checkpoints_over_a_class_indexed_folder(finished, tmp_path):
    folder = make_class_indexed_folder(tmp_path / "images")
    models = []
    for key in ("cnn", "convnext"):
        # Moved out of the run, as a plain state dict: what a group would bring.
        path = tmp_path / f"{key}.safetensors"
        save_file(load_file(finished.dir.checkpoint(key)), path)
        entry = {name: value for name, value in MODELS[key].items() if name != "training"}
        entry["args"] = {**entry["args"], "num_classes": 10}
        models.append({"key": key, "weights": f"checkpoint:{path}", "data": DATA, **entry})
    raw = tiny(images={"source": f"folder:{folder}", "n": 45, "labels": "index", "size_px": 8}, models=models)
    del raw["training"]
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    executed = execute_all(run)
    assert "train" not in {task.stage for task in executed}
    matrix = similarity.load(run.dir.similarity)
    assert (matrix.clean_accuracy > 0.5).all()
    assert np.isfinite(matrix.sat).all()
    assert set(image_set.load(run.dir.images).labels.tolist()) == {2, 5, 7}


def test_training_on_class_folders(tmp_path):
    """Training images from one folder of PNGs, the image set from another, as CIFAR-10 is laid out."""
    test, train = make_class_indexed_folder(tmp_path / "test"), make_class_indexed_folder(tmp_path / "train")
    raw = tiny(
        ("convnext",),
        images={"source": f"folder:{test}", "n": 12, "size_px": 8},
        training={"images": f"folder:{train}", "epochs": 4},
    )
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    summaries = [stage_module("train").execute(run, task, lambda *_: None) for task in stage_module("train").tasks(run)]
    # The 12 shown images lie in the training folder too, as equal files: they are left out there.
    assert summaries[0]["images"] == 90 - 12
    execute_all(run)
    matrix = similarity.load(run.dir.similarity)
    assert matrix.sat.shape == (1, 1)
    assert matrix.clean_accuracy[0] > 0.34  # three classes


def test_canonical_grid_attacks_the_stored_pixels(finished, tmp_path):
    raw = tiny(("cnn", "convnext"), attack={"grid": "canonical"})
    root = tmp_path / "run"
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), root)
    execute_all(run)
    chosen = image_set.load(run.dir.images)
    found = adversarial.load(run.dir.adversarial("cnn"))
    assert found.images.shape[1:] == (3, 8, 8)
    assert np.abs(found.images.astype(int) - chosen.images[found.index].astype(int)).max() <= 32
    assert np.isfinite(similarity.load(run.dir.similarity).sat).all()


def test_models_of_different_sizes_see_each_others_images(tmp_path):
    raw = tiny(("cnn", "convnext"))
    raw["models"][1]["data"] = {**DATA, "input_size_px": 24, "crop_pct": 0.9}
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    execute_all(run)
    assert adversarial.header(run.dir.adversarial("cnn")).size_px == 16
    assert adversarial.header(run.dir.adversarial("convnext")).size_px == 24
    assert np.isfinite(similarity.load(run.dir.similarity).sat).all()


def test_evaluating_before_attacking_says_what_to_do(tmp_path, finished):
    shutil.copytree(finished.dir.root, tmp_path / "run")
    run = open_run(tmp_path / "run")
    run.dir.adversarial("vit").unlink()
    with pytest.raises(Exception, match=r"adversarial/vit\.h5 does not exist"):
        stage_module("evaluate").execute(run, Task("evaluate", "vit"), lambda *_: None)
    assert stage_module("aggregate").tasks(run) == [Task("aggregate", ALL)]


def test_a_model_that_gets_nothing_right(tmp_path, finished):
    """An accuracy of zero leaves nothing to attack: unknown similarities, and a reason for them."""
    state = load_file(finished.dir.checkpoint("cnn"))
    state["fc.weight"], state["fc.bias"] = torch.zeros(10, 16), torch.tensor([0.0] * 9 + [1.0])
    save_file(state, tmp_path / "nine.safetensors")
    folder = make_class_indexed_folder(tmp_path / "images")
    entry = {"timm": "resnet18", "data": DATA, "args": {**MODELS["cnn"]["args"], "num_classes": 10}}
    good = tmp_path / "good.safetensors"
    save_file(load_file(finished.dir.checkpoint("cnn")), good)
    raw = tiny(
        images={"source": f"folder:{folder}", "n": 20, "labels": "index", "size_px": 8},
        models=[
            {"key": "nine", "weights": f"checkpoint:{tmp_path / 'nine.safetensors'}", **entry},
            {"key": "good", "weights": f"checkpoint:{good}", **entry},
        ],
    )
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    execute_all(run)
    matrix = similarity.load(run.dir.similarity)
    assert np.isnan(matrix.sat[0]).all()
    assert np.isfinite(matrix.sat[1, 1])
    assert matrix.problems == []
    assert "no image is classified correctly by both" in matrix.notes[0]
    assert "nine / nine, nine / good" in matrix.notes[0]
