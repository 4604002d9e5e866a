"""Loading weights for real: timm's pretrained path from an offline cache, and local checkpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import DATA, MODELS

from simhpc.errors import BadFileError, ModelError
from simhpc.store import checkpoint
from simhpc.study import Model
from simhpc.zoo import build, weights
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm


def local_model(path) -> Model:
    entry = {
        "key": "m", "timm": "resnet18", "weights": f"checkpoint:{path}", "data": DATA,
        "args": {**MODELS["cnn"]["args"], "num_classes": 10},
    }  # fmt: skip
    return Model.model_validate(entry, strict=False)


@pytest.fixture
def network():
    torch.manual_seed(3)
    return timm.create_model("resnet18", num_classes=10, **MODELS["cnn"]["args"]).eval()


def test_pretrained_weights_come_from_the_hub_cache_offline(tmp_path):
    """A cache laid out as huggingface_hub does, with weights made here: the real `pretrained=True` path."""
    torch.manual_seed(0)
    made = timm.create_model("test_resnet", pretrained=False)
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(made.state_dict(), snapshot / "model.safetensors")
    program = textwrap.dedent("""
        from pathlib import Path
        from simhpc.study import Model
        from simhpc.zoo.build import load
        from simhpc.zoo.resolve import resolve_model
        from simhpc.zoo.weights import caches, is_staged
        model = resolve_model(Model(key="m", timm="test_resnet", weights="pretrained:r160_in1k"), 1000)
        print(is_staged(model), caches()["HF_HUB_CACHE"])
        print(load(model, num_classes=1000, trained=Path("none"), fits_inside=False).weights_sha256)
    """)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    loaded = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    said = [f"True {tmp_path / 'hub'}", weights.weights_sha256(made)]
    assert loaded.stdout.splitlines() == said, loaded.stderr
    # And without the cache: a clear message, not a traceback's last line.
    environment["HF_HOME"] = str(tmp_path / "empty")
    failed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert "the weights of 'test_resnet.r160_in1k' cannot be loaded" in failed.stderr
    assert "$HF_HOME" in failed.stderr
    assert failed.stdout.startswith("False")
    assert "simhpc models fetch STUDY" in failed.stderr


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_local_checkpoint_gives_the_same_logits(tmp_path, network, name):
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path)
    loaded = build.load(
        resolve_model(local_model(path), 10), num_classes=10, trained=tmp_path / "none", fits_inside=False
    )
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.classifier(pixels), network((pixels - 0.5) / 0.5))
    assert loaded.weights_sha256 == weights.weights_sha256(network)


def test_a_checkpoint_that_changed_since_is_refused(tmp_path, network):
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    resolved = resolve_model(local_model(path), 10)
    save_file({name: tensor + 1 for name, tensor in network.state_dict().items()}, path)
    with pytest.raises(ModelError, match="has changed since"):
        build.load(resolved, num_classes=10, trained=path, fits_inside=False)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path, network):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        weights.read_checkpoint(local_model(tmp_path / "w.pth"), network)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_weights(tmp_path, network):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        weights.read_checkpoint(local_model(tmp_path / "w.pth"), network)


def test_trained_weights_that_do_not_match_their_hash(tmp_path, network):
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, weights.state_arrays(network), {})
    assert weights.read_trained(path).keys() == load_file(path).keys()
    damaged = bytearray(path.read_bytes())
    damaged[-10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BadFileError, match="do not match their checksum"):
        weights.read_trained(path)
