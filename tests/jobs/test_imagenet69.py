"""The study files in jobs/, against the installed timm and a folder of 1,000 classes made here. No weights needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from simhpc.images.labels import imagenet_synsets
from simhpc.stages.prepare import check
from simhpc.study import Study, load_study
from simhpc.zoo.registry import by_name, paper_models

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    """5,000 links to one image in the folders of a class each: studies are checked by name, no image is decoded."""
    root = tmp_path_factory.mktemp("imagenet")
    image = root / "one.jpg"
    Image.new("RGB", (2, 2)).save(image)
    for number, synset in enumerate(imagenet_synsets()):
        folder = root / "val" / synset
        folder.mkdir(parents=True)
        for position in range(5):
            os.link(image, folder / f"ILSVRC2012_val_{5 * number + position + 1:08d}.JPEG")
    return root / "val"


def study(name: str, imagenet: Path, keys: set[str] | None = None) -> Study:
    """A study of jobs/ on those images; with `keys`, of these models only."""
    loaded = load_study(JOBS / name)
    images = loaded.images.model_copy(update={"source": f"folder:{imagenet}"})
    models = tuple(model for model in loaded.models if keys is None or model.key in keys)
    return loaded.model_copy(update={"images": images, "models": models})


def fits(resolved: Study) -> bool:
    """Whether the stored images are large enough for every model's resize, and no larger than the largest needs."""
    needed = [int(model.data.input_size_px / model.data.crop_pct) for model in resolved.models]
    return max(needed) <= resolved.images.size_px < max(needed) + 2


def test_imagenet69_has_the_papers_models_and_settings():
    loaded = load_study(JOBS / "imagenet69.toml")
    assert [(model.key, model.timm_name) for model in loaded.models] == [
        (each.name, each.timm) for each in paper_models()
    ]
    assert (loaded.images.n, loaded.images.labels) == (5000, "imagenet")
    attack = loaded.attack
    assert (attack.name, attack.eps_255, attack.steps, attack.step_size_eps) == ("pgd-linf", 8, 50, 0.1)
    assert (attack.grid, attack.restarts, loaded.precision) == ("native", 1, "float32")
    assert "gluon_xception65: GluonCV's" in (JOBS / "imagenet69.toml").read_text()


def test_some_of_imagenet69_resolve(imagenet):
    keys = {"gluon_xception65", "convnext_tiny", "fbnetv3_g", "cspresnet50", "xcit_tiny_12_p8_224"}
    resolved = check(study("imagenet69.toml", imagenet, keys))
    assert fits(resolved)
    assert {model.key: model.expected_top1_percent for model in resolved.models} == {
        key: by_name(key).top1_percent for key in keys
    }


@pytest.mark.slow
def test_all_of_imagenet69_resolve(imagenet):
    resolved = check(study("imagenet69.toml", imagenet))
    assert len(resolved.models) == 69
    assert fits(resolved)
    for model in resolved.models:
        assert model.data.input_size_px == by_name(model.key).attack_size_px
        assert model.expected_top1_percent == by_name(model.key).top1_percent


def test_quickstart_resolves(imagenet):
    resolved = check(study("quickstart.toml", imagenet))
    assert len(resolved.models) == 6
    assert fits(resolved)
    assert all(70 < model.expected_top1_percent < 80 for model in resolved.models)


def test_distill25_resolves_and_so_do_its_students(imagenet):
    keys = {"deit_tiny_patch16_224", "nf_regnet_b1", "visformer_small", "resmlp_24_224"}
    given = study("distill25.toml", imagenet, keys)
    (distillation,) = given.distillations
    training = distillation.training.model_copy(update={"images": f"folder:{imagenet}"})
    teachers = tuple(key for key in distillation.teachers if key in keys)
    changed = distillation.model_copy(update={"training": training, "teachers": teachers})
    resolved = check(given.model_copy(update={"distillations": (changed,)}))
    assert fits(resolved)
    assert {student.teacher for student in resolved.students} == keys - {"deit_tiny_patch16_224"}
    recipe = resolved.students[0].model.training
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.mixup_alpha) == (300, 1024, 1e-3, 0.8)
    assert resolved.students[0].model.data == resolved.model("deit_tiny_patch16_224").data


def test_strategies_resolve(imagenet):
    keys = {"resnet50-1", "resnet50-batch-half", "deit_small-rsb", "deit_small-fb", "resnet50-tv"}
    given = study("strategies.toml", imagenet, keys)
    models = tuple(
        model.model_copy(update={"training": model.training.model_copy(update={"images": f"folder:{imagenet}"})})
        if model.training
        else model
        for model in given.models
    )
    resolved = check(given.model_copy(update={"models": models}))
    assert len(resolved.models) == 5
    assert fits(resolved)
