"""What makes the stages fast changes no result."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import execute_all, tiny, write_study
from zoo.norms import with_statistics

from simhpc.attacks import batches, determinism, method
from simhpc.attacks.attack import attack_images
from simhpc.attacks.batches import predict
from simhpc.attacks.gradient import InputGradient
from simhpc.seeds import derive_seed
from simhpc.stages import batch_size, runtime, stage_module
from simhpc.stages.method import settings_of
from simhpc.stages.prepare import prepare
from simhpc.stages.task import Task
from simhpc.store import adversarial, image_set, predictions, similarity
from simhpc.study import DataConfig, load_study
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.geometry import resize_to_input
from simhpc.zoo.timm_import import timm


def begun(finished, tmp_path, **changes):
    """A run of the same models, trained already."""
    raw = tiny(**changes)
    for model in raw["models"]:
        model["weights"] = f"checkpoint:{finished.dir.checkpoint(model['key'])}"
        model.pop("training", None)
        model["args"] = {**model["args"], "num_classes": 10}
    return prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")


def execute(run, stage, model, log=None):
    steps = [] if log is None else log
    return stage_module(stage).execute(run, Task(stage, model), lambda *progress: steps.append(progress))


def test_skipping_what_cannot_count_changes_no_number(finished):
    """The whole study again, slowly: all images attacked, all shown to all, X_A and X_AB applied at the end."""
    run = finished
    chosen, n = image_set.load(run.dir.images), run.study.images.n
    device = runtime.set_up_torch(run.study)
    keys = [model.key for model in run.study.models]
    labels = torch.from_numpy(chosen.labels).long()
    size = run.study.resources.batch_size
    targets, correct, attacked = {}, {}, {}
    for model in run.study.models:
        victim = runtime.load_fast(run, model, chosen, device)
        clean = torch.from_numpy(runtime.to_be_attacked(run, model, chosen.images))
        seeds = [derive_seed(run.study.seed, "noise", model.key, position) for position in range(n)]
        targets[model.key] = victim.target
        correct[model.key] = (predict(victim.target, clean, labels, size)[0] == labels).numpy()
        attacked[model.key] = attack_images(
            victim.target, clean, labels, [seeds], settings_of(run.study.attack),
            batch_size=size, finished={}, on_batch=lambda first, images: None,
        )  # fmt: skip
    wrong = {
        (a, b): (
            predict(
                targets[b],
                attacked[a],
                labels,
                size,
                lambda pixels, b=b: resize_to_input(pixels, run.study.model(b).data),
            )[0]
            != labels
        ).numpy()
        for a in keys
        for b in keys
    }
    held = similarity.load(run.dir.similarity)
    for i, a in enumerate(keys):
        stored = adversarial.load(run.dir.adversarial(a))
        assert np.array_equal(stored.images, attacked[a][torch.from_numpy(correct[a])].numpy())
        for j, b in enumerate(keys):
            common = correct[a] & correct[b]
            rates = [wrong[a, b][common].mean(), wrong[b, a][common].mean()]
            expected = np.log(max(run.study.similarity.floor_percent, 100 * np.mean(rates)))
            np.testing.assert_allclose(held.sat[i, j], expected, rtol=1e-12)


class LittleMemory(torch.nn.Module):
    """A device that is out of memory from so many images on."""

    def __init__(self, classifier, most):
        super().__init__()
        self.classifier, self.most, self.largest = classifier, most, 0

    def forward(self, pixels):
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.largest = max(self.largest, len(pixels))
        return self.classifier(pixels)


def test_a_batch_size_that_does_not_fit_is_halved_and_remembered(finished, tmp_path, monkeypatch, capsys):
    run = begun(finished, tmp_path)
    load_fast, made = runtime.load_fast, []

    def with_little_memory(*arguments):
        victim = load_fast(*arguments)
        made.append(LittleMemory(victim.target.classifier, 10))
        return runtime.replace(victim, target=runtime.replace(victim.target, classifier=made[-1]))

    monkeypatch.setattr(runtime, "load_fast", with_little_memory)
    execute(run, "attack", "cnn")
    assert made[0].largest == 8
    held = json.loads(run.dir.batch_size("attack", "cnn").read_text())
    assert held == {"wanted": 32, "fits": 8, "device": "cpu"}
    assert "attack cnn: out of memory; going on with 8 image(s) at once" in capsys.readouterr().out
    # The next attempt begins with what fits.
    whole = adversarial.header(run.dir.adversarial("cnn")).content_sha256
    run.dir.adversarial("cnn").unlink()
    execute(run, "attack", "cnn")
    assert "out of memory" not in capsys.readouterr().out
    assert adversarial.header(run.dir.adversarial("cnn")).content_sha256 == whole
    # Evaluation goes on from where it was.
    execute(run, "attack", "vit")
    shown = execute(run, "evaluate", "cnn")["shown"]
    assert made[-1].largest == 8
    monkeypatch.setattr(runtime, "load_fast", load_fast)
    run.dir.batch_size("evaluate", "cnn").unlink()
    little = predictions.load(run.dir.predictions("cnn"))
    run.dir.predictions("cnn").unlink()
    assert execute(run, "evaluate", "cnn")["shown"] == shown
    assert np.array_equal(predictions.load(run.dir.predictions("cnn")).adv_pred, little.adv_pred)


def test_a_remembered_size_is_of_one_wish_and_one_device(finished, tmp_path):
    run, task, cpu = begun(finished, tmp_path), Task("attack", "cnn"), torch.device("cpu")
    assert batch_size.first_try(run, task, cpu) == 32
    batch_size.remember(run, task, cpu, 4)
    assert batch_size.first_try(run, task, cpu) == 4
    path = run.dir.batch_size("attack", "cnn")
    for change in ({"wanted": 64}, {"device": "NVIDIA H100"}):
        path.write_text(json.dumps({"wanted": 32, "fits": 4, "device": "cpu", **change}))
        assert batch_size.first_try(run, task, cpu) == 32
    path.write_text("{")
    assert batch_size.first_try(run, task, cpu) == 32


def test_evaluation_reads_ahead_and_shows_whole_batches(finished, tmp_path, monkeypatch):
    """Of every set all batches but the last are full, whatever was left out of it."""
    run = begun(finished, tmp_path, resources={"batch_size": 4})
    for key in ("cnn", "vit", "convnext"):
        execute(run, "attack", key)
    sizes = []
    plain = batches._answer

    def counting(target, images, labels, batch, *rest):
        sizes.append(batch[1])
        return plain(target, images, labels, batch, *rest)

    monkeypatch.setattr(batches, "_answer", counting)
    shown = execute(run, "evaluate", "vit")["shown"]
    assert sum(sizes) == shown
    assert sum(size < 4 for size in sizes) <= 3


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precision_is_a_setting_of_the_study_and_recorded(finished, tmp_path, precision):
    run = begun(finished, tmp_path, precision=precision)
    execute_all(run, ("attack", "evaluate"))
    held = adversarial.load(run.dir.adversarial("cnn"))
    assert held.provenance.precision == precision
    other = adversarial.load(finished.dir.adversarial("cnn"))
    if precision == "tf32":  # which a CPU does not have
        assert np.array_equal(held.images, other.images)
    else:
        assert not np.array_equal(held.images, other.images)
        assert abs(held.n_fooled / len(held.index) - other.n_fooled / len(other.index)) < 0.1
    assert predictions.load(run.dir.predictions("vit")).provenance.precision == precision
    with pytest.raises(Exception, match=f"precision: run directory has '{precision}', study has 'float32'"):
        begun(finished, tmp_path)


def test_what_was_done_to_a_model_is_recorded(finished):
    engines = {key: adversarial.header(finished.dir.adversarial(key)).provenance.engine for key in ("cnn", "vit")}
    assert engines == {
        "cnn": "folded 13 of 13 batch norms; stem's gradient as a convolution; 8 convolutions with what "
        "follows inside; channels_last",
        "vit": "last block for the tokens in use; patches as a product",
    }


def test_where_compilation_fails_the_task_goes_on_and_says_why(finished, tmp_path, monkeypatch, capsys):
    run = begun(finished, tmp_path, resources={"compile": "default"})

    def broken(model, **_):
        def call(*_):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    execute(run, "attack", "cnn")
    said = capsys.readouterr().out
    assert "cnn: resources.compile = 'default' does not work here, so it is left out: InvalidCxxCompiler" in said
    plain = begun(finished, tmp_path / "plain")
    execute(plain, "attack", "cnn")
    one, other = (adversarial.header(r.dir.adversarial("cnn")).content_sha256 for r in (run, plain))
    assert one == other


def test_what_has_no_deterministic_kernel_is_not_taken_for_a_compilation_that_fails(finished, tmp_path, monkeypatch):
    """On a GPU the attack is begun again then, compiled."""
    run = begun(finished, tmp_path, resources={"compile": "default"})
    calls = []

    def compile_(model, **_):
        def call(pixels):
            calls.append(torch.is_deterministic_algorithms_warn_only_enabled())
            if not calls[-1]:
                raise RuntimeError("resize_backward_cuda does not have a deterministic implementation")
            return model(pixels)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(runtime, "settled", lambda _, work, who: determinism.settle(work, who))
    execute(run, "attack", "cnn")
    assert calls[:2] == [False, True]
    assert adversarial.header(run.dir.adversarial("cnn")).provenance.engine.endswith("; compiled (default)")


def test_evaluation_compiles_no_gradient_and_compiles_for_less_where_memory_runs_out(finished, tmp_path, monkeypatch):
    run = begun(finished, tmp_path, resources={"compile": "default"})
    plain = begun(finished, tmp_path / "plain")
    for key in ("cnn", "vit"):
        execute(plain, "attack", key)
        run.dir.adversarial(key).parent.mkdir(exist_ok=True)
        shutil.copy(plain.dir.adversarial(key), run.dir.adversarial(key))
    sizes = []

    def compile_(model, **_):
        def call(pixels):
            assert not torch.is_grad_enabled()
            sizes.append(len(pixels))
            if len(pixels) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return model(pixels)

        return call

    monkeypatch.setattr(torch, "compile", compile_)
    execute(run, "evaluate", "cnn")
    assert sizes[:3] == [32, 16, 8]
    held = predictions.load(run.dir.predictions("cnn"))
    assert held.provenance.engine.endswith("; compiled (default)")
    assert held.provenance.batch_size == 8


def test_batches_of_an_attack_that_was_edited_since_are_not_used(finished, tmp_path, monkeypatch):
    run = begun(finished, tmp_path)
    whole = execute(run, "attack", "cnn")["images"]
    run.dir.adversarial("cnn").unlink()

    def stop_after_one(done, *_):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage_module("attack").execute(run, Task("attack", "cnn"), stop_after_one)
    log = []
    execute(run, "attack", "cnn", log)
    assert log[0][0] == 32
    run.dir.adversarial("cnn").unlink()
    with pytest.raises(KeyboardInterrupt):
        stage_module("attack").execute(run, Task("attack", "cnn"), stop_after_one)
    monkeypatch.setattr(method, "code_sha256", lambda name: "edited")
    log.clear()
    execute(run, "attack", "cnn", log)
    assert log[0][:2] == (0, whole)
    assert adversarial.header(run.dir.adversarial("cnn")).provenance.attack_code_sha256 == "edited"


@pytest.mark.slow
def test_what_a_model_keeps_from_its_first_pass_is_no_part_of_a_compiled_graph(tmp_path):
    """LeViT's attention biases: really compiled, a minute on the CPU."""
    torch.manual_seed(0)
    levit = timm.create_model("levit_128s", num_classes=10).eval().requires_grad_(False)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 224, 224), dtype=np.uint8)
    data = DataConfig(input_size_px=224, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic", crop_pct=1.0)
    target = batches.Target(PixelClassifier(levit, data), torch.device("cpu"))
    chosen = SimpleNamespace(images=images, labels=np.arange(4, dtype=np.int32))
    study = load_study(write_study(tmp_path / "study.toml", tiny(resources={"compile": "default"})))
    run = SimpleNamespace(study=study)
    entry = SimpleNamespace(key="levit", data=data)
    victim = runtime.compiled(run, entry, runtime.Victim(target, "0", "built"), chosen, 2, with_gradient=True)
    assert victim.engine == "built; compiled (default)"
    again = InputGradient(victim.target.classifier)(target.pixels(torch.from_numpy(images[2:])), torch.arange(2))
    plain = InputGradient(target.classifier)(target.pixels(torch.from_numpy(images[2:])), torch.arange(2))
    torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_attack_is_as_strong(finished, tmp_path):
    """Really compiled: a minute on the CPU."""
    run = begun(finished, tmp_path, resources={"compile": "default"})
    execute(run, "attack", "cnn")
    held = adversarial.load(run.dir.adversarial("cnn"))
    assert held.provenance.engine.endswith("; compiled (default)")
    plain = adversarial.load(finished.dir.adversarial("cnn"))
    assert (held.images != plain.images).mean() < 0.02
    assert abs(held.n_fooled - plain.n_fooled) <= 1


def test_every_attack_runs_as_a_study(finished, tmp_path):
    for name, eps_255 in (("apgd-ce", 16), ("fgsm", 16), ("mi-fgsm", 16), ("pgd-l2", 150)):
        changes = {"name": name, "eps_255": eps_255}
        raw_attack = {"attack": changes}
        folder = tmp_path / name
        run = begun_with(finished, folder, raw_attack)
        summary = execute(run, "attack", "cnn")
        assert summary["self_fooling"] > 0.02, name
        held = json.loads(adversarial.header(run.dir.adversarial("cnn")).provenance.attack)
        assert held["name"] == name
        assert held["steps"] == run.study.attack.steps


def begun_with(finished, folder, changes):
    """Like `begun`, with the [attack] replaced and not extended."""
    raw = tiny(("cnn",))
    raw.update(changes)
    (model,) = raw["models"]
    model["weights"] = f"checkpoint:{finished.dir.checkpoint('cnn')}"
    model["args"] = {**model["args"], "num_classes": 10}
    return prepare(load_study(write_study(folder / "study.toml", raw)), folder / "run")


def test_restarts_are_a_setting_of_the_study(finished, tmp_path):
    attack_settings = {"eps_255": 16, "steps": 2, "step_size_eps": 0.4}
    one = begun_with(finished, tmp_path / "one", {"attack": attack_settings})
    many = begun_with(finished, tmp_path / "many", {"attack": {**attack_settings, "restarts": 4}})
    fooled = [execute(run, "attack", "cnn")["self_fooling"] for run in (one, many)]
    assert fooled[1] >= fooled[0]
    first, best = (adversarial.load(run.dir.adversarial("cnn")).images for run in (one, many))
    assert not np.array_equal(first, best)


def test_one_image_is_enough_to_make_a_model_faster(tmp_path):
    """By itself it would meet torch's wrong gradient of one image (see zoo/folding.py), and be refused."""
    torch.manual_seed(0)
    network = with_statistics(timm.create_model("levit_128s", num_classes=10)).float()
    save_file(network.state_dict(), tmp_path / "levit.safetensors")
    raw = tiny(("cnn",), images={"n": 1})
    entry = {"timm": "levit_128s", "weights": "checkpoint:levit.safetensors", "args": {"num_classes": 10}}
    raw["models"] = [{"key": "levit", **entry, "data": {"input_size_px": 224}}]
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    chosen = image_set.load(run.dir.images)
    victim = runtime.load_fast(run, run.study.model("levit"), chosen, torch.device("cpu"))
    assert victim.engine.startswith("merged branches; stem's gradient as a convolution; channels_last; ")
