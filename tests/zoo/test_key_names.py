"""Checkpoints as training scripts leave them: wrapped, averaged, nested, renamed; and those that must be refused."""

from __future__ import annotations

import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import DATA, MODELS
from torch.optim.swa_utils import AveragedModel

from simhpc.errors import ModelError
from simhpc.study import Model
from simhpc.zoo import build, weights
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm

ARGS = {**MODELS["cnn"]["args"], "num_classes": 10}


def entry(path, **changes) -> Model:
    raw = {"key": "m", "timm": "resnet18", "weights": f"checkpoint:{path}", "data": DATA, "args": ARGS, **changes}
    return Model.model_validate(raw, strict=False)


def made(seed: int, **args):
    torch.manual_seed(seed)
    network = timm.create_model("resnet18", **{**ARGS, **args}).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def raw():
    return made(1)


@pytest.fixture(scope="module")
def ema():
    return made(2)


def loaded_sha256(path, **changes) -> str:
    model = resolve_model(entry(path, **changes), 10)
    return build.load(model, num_classes=10, trained=path.with_name("none")).weights_sha256


def refusal(path, num_classes=10, **changes) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(entry(path, **changes), num_classes)
    return str(caught.value)


def prefixed(network, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("holder", [None, "state_dict", "model"])
def test_wrappers_of_training_are_taken_off(tmp_path, raw, prefix, holder):
    state = prefixed(raw, prefix)
    torch.save(state if holder is None else {holder: state, "epoch": 3}, tmp_path / "w.pth")
    assert loaded_sha256(tmp_path / "w.pth") == weights.weights_sha256(raw)


def test_dataparallel_and_averaged_models_as_torch_saves_them(tmp_path, raw):
    torch.save(torch.nn.DataParallel(raw).state_dict(), tmp_path / "parallel.pth")
    torch.save({"model": AveragedModel(raw).state_dict()}, tmp_path / "averaged.pth")
    for name in ("parallel.pth", "averaged.pth"):
        assert loaded_sha256(tmp_path / name) == weights.weights_sha256(raw)


@pytest.mark.parametrize(("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_averaged_weights_come_first_where_a_checkpoint_has_both(tmp_path, raw, ema, plain, averaged):
    optimizer = torch.optim.AdamW(raw.parameters())
    held = {
        plain: raw.state_dict(),
        averaged: prefixed(ema, "module."),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, opt="adamw"),
        "epoch": 12,
    }
    torch.save(held, tmp_path / "w.pth.tar")
    assert loaded_sha256(tmp_path / "w.pth.tar") == weights.weights_sha256(ema)
    torch.save({**held, averaged: None}, tmp_path / "w.pth.tar")
    assert loaded_sha256(tmp_path / "w.pth.tar") == weights.weights_sha256(raw)


def test_a_part_of_something_larger_is_taken_out_and_two_of_them_refused(tmp_path, raw, ema):
    larger = {**prefixed(raw, "model."), "criterion.weight": torch.ones(10)}
    torch.save({"state_dict": larger, "hyper_parameters": {"lr": 0.1}}, tmp_path / "lightning.ckpt.pth")
    assert loaded_sha256(tmp_path / "lightning.ckpt.pth") == weights.weights_sha256(raw)
    torch.save({**larger, **prefixed(ema, "ema_model.")}, tmp_path / "two.pth")
    assert "holds this model 2 times, below 'model.' and 'ema_model.'" in refusal(tmp_path / "two.pth")


def test_half_precision_is_widened(tmp_path, raw):
    half = {n: tensor.half() if tensor.is_floating_point() else tensor for n, tensor in raw.state_dict().items()}
    save_file(half, tmp_path / "w.safetensors")
    model = resolve_model(entry(tmp_path / "w.safetensors"), 10)
    found = build.load(model, num_classes=10, trained=tmp_path / "none").classifier.model
    assert torch.equal(found.fc.weight, raw.fc.weight.half().float())


def test_names_of_the_original_authors_are_read_by_timms_own_function(tmp_path):
    """Swin, as its authors save it: buffers that timm computes, and downsampling at the end of a stage."""
    args = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "num_classes": 10}
    change = {"timm": "swin_tiny_patch4_window7_224", "args": args, "data": {**DATA, "input_size_px": 32}}
    torch.manual_seed(0)
    ours = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, **args)
    state = {
        name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): tensor
        for name, tensor in ours.state_dict().items()
    }
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    torch.save({"model": state}, tmp_path / "original.pth")
    assert loaded_sha256(tmp_path / "original.pth", **change) == weights.weights_sha256(ours)
    torch.save({"model": {**state, "extra.weight": torch.ones(2)}}, tmp_path / "more.pth")
    assert "unknown to it (e.g. layers.0.downsample" in refusal(tmp_path / "more.pth", **change)


def test_position_embeddings_of_another_size_are_resampled_as_timm_does(tmp_path):
    args = {**MODELS["vit"]["args"], "num_classes": 10}
    network = timm.create_model("vit_tiny_patch16_224", img_size=16, **args)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    change = {"timm": "vit_tiny_patch16_224", "args": args, "data": {**DATA, "input_size_px": 24}}
    model = resolve_model(entry(tmp_path / "w.safetensors", **change), 10)
    found = build.load(model, num_classes=10, trained=tmp_path / "none").classifier.model
    expected = timm.layers.resample_abs_pos_embed(network.pos_embed, (6, 6), num_prefix_tokens=1)
    torch.testing.assert_close(found.pos_embed.detach(), expected.detach())


@pytest.mark.parametrize("outputs", [21841, 21843, 11821])
def test_a_21k_head_is_called_one(tmp_path, outputs):
    network = timm.create_model("resnet18", **{**ARGS, "num_classes": outputs})
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    args = {**ARGS, "num_classes": 1000}
    text = refusal(tmp_path / "w.safetensors", num_classes=1000, args=args)
    assert f"has a head of {outputs} outputs (ImageNet-21k" in text
    assert "fine-tune" in text
    # Saying so in args makes it fit, and is no way round: its first thousand classes are others.
    text = refusal(tmp_path / "w.safetensors", num_classes=1000, args={**ARGS, "num_classes": outputs})
    assert f"has a head of {outputs} outputs (ImageNet-21k" in text
    resolve_model(entry(tmp_path / "w.safetensors", args={**ARGS, "num_classes": outputs}), 2000)


def test_a_pretrained_tag_with_a_21k_head_is_called_one():
    model = Model(key="m", timm="vit_tiny_patch16_224", weights="pretrained:augreg_in21k")
    with pytest.raises(ModelError, match=r"21843 outputs .*ImageNet-21k.*ft_in1k"):
        resolve_model(model, 1000)


class Recorder:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def write_zip(held, path):
    torch.save(held, path)


def write_legacy(held, path):
    torch.save(held, path, _use_new_zipfile_serialization=False)


def write_bare(held, path):
    with path.open("wb") as file:
        pickle.dump(held, file, protocol=2)


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_bare])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "tar"])
def test_code_in_a_pickle_never_runs_whatever_the_format(tmp_path, raw, write, suffix):
    path = tmp_path / f"w.{suffix}"
    write({"extra": Recorder(tmp_path / "was-run"), "state_dict": raw.state_dict()}, path)
    text = refusal(path)
    assert not (tmp_path / "was-run").exists()
    assert "(posix.mkdir)" in text
    assert "never unpickled here" in text
    # Proof that the file would have done it.
    torch.load(path, weights_only=False) if write is not write_bare else pickle.loads(path.read_bytes())
    assert (tmp_path / "was-run").is_dir()


def test_the_class_in_the_way_is_named_with_the_way_round_it(tmp_path, raw, monkeypatch):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": raw.state_dict(), "best": np.float64(77.5)}, path)
    text = refusal(path)
    assert "multiarray.scalar" in text
    command = text[text.index('python -c "') + 11 : text.index("'weights.pth')") + 14]
    monkeypatch.chdir(tmp_path)
    exec(command)  # what the message tells
    assert loaded_sha256(tmp_path / "weights.pth") == weights.weights_sha256(raw)


def test_a_whole_model_and_torchscript_are_refused_by_name(tmp_path, raw):
    torch.save(raw, tmp_path / "whole.pth")
    assert "c.state_dict() if it is a whole model" in refusal(tmp_path / "whole.pth")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    assert "TorchScript archive" in refusal(tmp_path / "script.pt")


def test_a_file_without_weights_shows_its_keys(tmp_path):
    torch.save({"epoch": 3, "net": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert "its keys: epoch, net" in refusal(tmp_path / "w.pth")
