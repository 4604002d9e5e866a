"""Presets fill in what a study does not say, and are gone in the frozen copy."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tiny import tiny

from simhpc.errors import StudyError
from simhpc.study import Training, dump_study, parse_study
from simhpc.training_presets import PRESETS


def parse(raw):
    return parse_study(raw, base=Path("/base"), where="study.toml")


def with_training(shared, *own):
    """A study with this [training] and one model for each table of its own."""
    raw = tiny(["cnn"] * len(own))
    raw["training"] = shared
    for number, (model, training) in enumerate(zip(raw["models"], own, strict=True)):
        model |= {"key": f"m{number}", "training": training}
    return raw


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_whole_recipe(name):
    study = parse(with_training({"preset": name}, {}))
    for section in (study.training, study.models[0].training):
        held = section.model_dump(mode="json")
        assert {key: held[key] for key in PRESETS[name]} == PRESETS[name]
    # And the frozen copy says it key by key.
    raw = tomllib.loads(dump_study(study))
    assert "preset" not in raw["training"]
    assert parse(raw) == study


def test_what_is_given_wins_and_what_is_nearer_wins():
    raw = with_training(
        {"preset": "deit", "epochs": 5, "auto_augment": ""},
        {},
        {"lr": 0.5},
        {"preset": "rsb-a2", "min_lr": 0.25},
    )
    plain, lr, rsb = (model.training for model in parse(raw).models)
    assert (plain.epochs, plain.lr, plain.mixup_alpha, plain.auto_augment) == (5, 1e-3, 0.8, None)
    assert (lr.epochs, lr.lr) == (5, 0.5)
    assert (rsb.epochs, rsb.loss, rsb.min_lr, rsb.auto_augment) == (300, "bce", 0.25, "rand-m7-mstd0.5-inc1")


@pytest.mark.parametrize("own", PRESETS)
@pytest.mark.parametrize("shared", PRESETS)
def test_a_models_preset_is_that_recipe_whatever_preset_the_others_have(shared, own):
    alone = parse(with_training({"images": "folder:train"}, {"preset": own})).models[0].training
    study = parse(with_training({"images": "folder:train", "preset": shared}, {"preset": own}))
    mixed = study.models[0].training
    # Where its warm-up begins is all that `small` leaves open; flipping it does too, and the others flip alike.
    assert mixed.model_copy(update={"warmup_lr": alone.warmup_lr}) == alone
    assert mixed.warmup_lr == alone.warmup_lr or own == "small"
    assert parse(tomllib.loads(dump_study(study))) == study


def test_a_students_preset_is_that_recipe_too():
    raw = with_training({"preset": "rsb-a1"}, {}, {})
    raw["distillations"] = [{"student": "m0", "teachers": ["m1"], "training": {"preset": "deit"}}]
    student = parse(raw).students[0].model.training
    assert (student.loss, student.bce_target_threshold, student.mixup_alpha) == ("ce", 0.0, 0.8)


def test_a_preset_that_there_is_not():
    with pytest.raises(StudyError, match=r"study.toml: training.preset: there is no 'diet'; did you mean 'deit'\?"):
        parse(with_training({"preset": "diet"}, {}))
    with pytest.raises(StudyError, match=r"models.m0.training.preset: there is no 3; there are deit, "):
        parse(with_training({}, {"preset": 3}))


def test_models_that_were_trained_before_keep_their_identity():
    """Found with the version before there were presets."""
    entry = {"key": "m", "timm": "resnet18", "weights": "train"}
    training = {"epochs": 6, "auto_augment": "rand-m9-mstd0.5"}
    raw = {"name": "t", "images": {"source": "sklearn-digits", "n": 70}, "training": training, "models": [entry]}
    known = "ac67d538793b5fdc3fd0a83838a39b21cff10deefd2ef48a4c22b542ab5822eb"
    assert parse(raw).models[0].sha256() == known
    later = set(Training.model_fields) - {
        *("images", "epochs", "batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "label_smoothing"),
        *("crop_scale", "crop_ratio", "hflip_prob", "auto_augment", "random_erasing_prob"),
    }
    others = {
        "accumulation": 2, "precision": "tf32", "warmup_lr": 1e-4, "min_lr": 1e-4, "clip_grad_norm": 1.0,
        "ema_decay": 0.9, "loss": "bce", "drop_path_rate": 0.1, "mixup_alpha": 0.1, "cutmix_alpha": 0.1,
        "repeated_augmentation": 2, "random_erasing_mode": "rand",
    }  # fmt: skip
    assert later - {"bce_target_threshold"} == others.keys()
    found = {parse({**raw, "training": {**training, key: value}}).models[0].sha256() for key, value in others.items()}
    assert len(found | {known}) == 1 + len(others)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"batch_size": 10, "accumulation": 4},
            "10 cannot be divided into accumulation = 4 equal passes:",
        ),
        ({"batch_size": 10, "accumulation": 2, "mixup_alpha": 0.1}, "of pairs to be mixed: make it a multiple of 4"),
        ({"bce_target_threshold": 0.2}, 'goes with loss = "bce" only'),
        ({"ema_decay": 1.0}, "training.ema_decay"),
        ({"precision": "float16"}, "'float32', 'tf32' or 'bfloat16'"),
        ({"random_erasing_mode": "black"}, "'const', 'rand' or 'pixel'"),
        ({"warmup_lrr": 1.0}, "training.warmup_lrr: unknown key; did you mean 'warmup_lr'"),
    ],
)
def test_errors(change, expected):
    with pytest.raises(StudyError) as caught:
        parse(with_training(change, {}))
    assert expected in str(caught.value)
