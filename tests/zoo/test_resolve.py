"""Models are checked before anything runs; each thing that can be wrong has a message that says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import DATA, MODELS

from simhpc.errors import ModelError
from simhpc.store.checkpoint import file_sha256
from simhpc.study import DataConfig, Model
from simhpc.zoo import build
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm


def model(**changes) -> Model:
    entry = {"key": "m", "weights": "train", **MODELS["cnn"], "data": DATA, **changes}
    return Model.model_validate(entry, strict=False)


def problem(num_classes=10, **changes) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(model(**changes), num_classes)
    return str(caught.value)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    built = timm.create_model("resnet18", num_classes=10, **MODELS["cnn"]["args"])
    save_file(built.state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_data_config_is_completed_from_timm_and_overrides_win():
    resolved = resolve_model(
        Model(key="m", timm="resnet18", weights="pretrained:a1_in1k", data=DataConfig(crop_pct=0.9)), 1000
    )
    expected = timm.data.resolve_data_config(
        {}, pretrained_cfg=timm.models.get_pretrained_cfg("resnet18.a1_in1k").to_dict()
    )
    assert resolved.data.crop_pct == 0.9
    assert resolved.data.input_size_px == expected["input_size"][1]
    assert resolved.data.mean == tuple(expected["mean"])
    assert resolved.data.std == tuple(expected["std"])
    assert resolved.data.interpolation == expected["interpolation"]


def test_models_built_for_one_size_get_the_studys_size():
    assert resolve_model(model(**{**MODELS["vit"], "training": None}), 10).data.input_size_px == 16


def test_unknown_model_and_tag_suggest_the_nearest():
    assert "no model 'resnet81'; did you mean" in problem(timm="resnet81")
    text = problem(weights="pretrained:a1_in2k", args={}, num_classes=1000)
    assert "no weights 'resnet18.a1_in2k'" in text
    assert "'a1_in1k'" in text


def test_arguments_that_the_model_does_not_take():
    assert "cannot build 'resnet18' with args {'depht': 3}" in problem(args={"depht": 3})


def test_input_size_that_the_model_does_not_take():
    text = problem(**{**MODELS["convnext"]}, data={**DATA, "input_size_px": 3})
    assert "does not take 3 x 3 images (data.input_size_px)" in text


def test_fewer_outputs_than_classes():
    assert "has 10 outputs, but the labels of the image set go up to 999" in problem(
        num_classes=1000, args={**MODELS["cnn"]["args"], "num_classes": 10}
    )


def test_checkpoint_hash_is_filled_in_and_checked(checkpoint):
    entry = {"weights": f"checkpoint:{checkpoint}", "args": {**MODELS["cnn"]["args"], "num_classes": 10}}
    assert resolve_model(model(**entry), 10).checkpoint_sha256 == file_sha256(checkpoint)
    assert "the study says" in problem(**entry, checkpoint_sha256="0" * 64)


def test_missing_checkpoint_and_unknown_kind(checkpoint, tmp_path):
    assert "no checkpoint" in problem(weights=f"checkpoint:{tmp_path}/none.pth")
    (tmp_path / "w.npz").write_text("x")
    assert "is not one of .safetensors" in problem(weights=f"checkpoint:{tmp_path}/w.npz")
    (tmp_path / "w.pth").write_text("x")
    assert "cannot be read as a checkpoint" in problem(weights=f"checkpoint:{tmp_path}/w.pth")


def test_checkpoint_of_another_architecture(checkpoint):
    text = problem(weights=f"checkpoint:{checkpoint}", timm="resnet34", args={"num_classes": 10})
    assert "does not fit timm's 'resnet34'" in text
    assert "missing" in text


def test_checkpoint_with_another_head_says_num_classes(checkpoint):
    text = problem(weights=f"checkpoint:{checkpoint}")
    assert "fc.weight: (10, 16), not (1000, 16)" in text
    assert "args.num_classes" in text


def test_wrapped_checkpoints_fit(checkpoint, tmp_path):
    from safetensors.torch import load_file

    state = load_file(checkpoint)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "ddp.pth")
    entry = {"weights": f"checkpoint:{tmp_path}/ddp.pth", "args": {**MODELS["cnn"]["args"], "num_classes": 10}}
    assert resolve_model(model(**entry), 10).checkpoint_sha256


def test_checkpoint_with_nan_or_integers(checkpoint, tmp_path):
    from safetensors.torch import load_file

    entry = {"weights": f"checkpoint:{tmp_path}/bad.safetensors", "args": {**MODELS["cnn"]["args"], "num_classes": 10}}
    state = load_file(checkpoint)
    save_file({**state, "fc.bias": torch.full((10,), float("nan"))}, tmp_path / "bad.safetensors")
    assert "fc.bias holds NaN or infinity" in problem(**entry)
    save_file({**state, "fc.bias": torch.zeros(10, dtype=torch.int32)}, tmp_path / "bad.safetensors")
    assert "fc.bias is torch.int32, the model's is torch.float32" in problem(**entry)


@pytest.mark.parametrize(
    ("timm_name", "tag", "num_classes", "expected"),
    [
        ("vit_large_patch14_dinov2", "lvd142m", 1000, "gives features, it has no classifier"),
        ("vit_base_patch16_clip_224", "openai", 10, "the 512 outputs of .* or are features"),
        ("vit_large_patch16_siglip_256", "v2_webli", 1000, "no classifier|are other classes"),
        ("resnet18", "a1_in1k", 1001, "has 1000 outputs, but the labels"),
    ],
)
def test_pretrained_features_are_no_classes(timm_name, tag, num_classes, expected):
    text = problem(num_classes, timm=timm_name, weights=f"pretrained:{tag}", args={}, data={}, training=None)
    assert re.search(expected, text), text


def test_pretrained_weights_keep_their_own_classifier():
    entry = {"weights": "pretrained:a1_in1k", "data": {}, "training": None}
    assert "its classifier would be a random one" in problem(timm="resnet18", args={"num_classes": 10}, **entry)
    same = model(timm="resnet18", args={"num_classes": 1000}, **entry)
    assert resolve_model(same, 10).args == {"num_classes": 1000}


def test_data_configs_that_are_not_supported():
    entry = {"args": {}, "num_classes": 1000, "data": {}, "training": None}
    assert "crop_pct is 1.15" in problem(timm="volo_d4_448", weights="pretrained:sail_in1k", **entry)


def test_stochastic_depth_is_checked_and_is_of_the_training_alone():
    resolved = resolve_model(model(training={"drop_path_rate": 0.3}), 10)
    trained, loaded = (build.untrained(resolved, 10, to_train=to_train) for to_train in (True, False))
    rates = [
        [module.drop_prob for module in net.modules() if type(module).__name__ == "DropPath"]
        for net in (trained, loaded)
    ]
    assert max(rates[0]) == pytest.approx(0.3)
    assert rates[1] == []
    assert trained.state_dict().keys() == loaded.state_dict().keys()
    other = {"timm": "vgg11", "args": {}, "data": {"input_size_px": 224}, "training": {"drop_path_rate": 0.3}}
    assert "'vgg11' takes no drop_path_rate: set training.drop_path_rate = 0 for it" in problem(**other)
    twice = {"args": {**MODELS["cnn"]["args"], "drop_path_rate": 0.1}, "training": {"drop_path_rate": 0.3}}
    assert "stands both in args and in training" in problem(**twice)
