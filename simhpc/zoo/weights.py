"""Loading weights: timm's pretrained tags, local checkpoints, and what the train stage wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn

from simhpc.errors import BadFileError, ModelError
from simhpc.store import checkpoint
from simhpc.study import Model
from simhpc.zoo import key_names
from simhpc.zoo.timm_import import timm


def state_arrays(model: nn.Module) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Parameters and buffers as numpy arrays by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, whatever file they came from."""
    return checkpoint.weights_sha256(state_arrays(model))


def read_checkpoint(model: Model, built: nn.Module) -> dict[str, Tensor]:
    """The state dict in a local checkpoint, by the model's own names; never runs code from it (`weights_only`).

    Args:
        built: the architecture, perhaps on the meta device.

    Raises:
        ModelError: not a checkpoint, one that would need unpickling of arbitrary objects, or one that does not fit.
    """
    state = _read(model.checkpoint_path, f"model {model.key!r}")
    for reading in key_names.readings(model, built, state):
        if key_names.fits(built, reading):
            state = reading
            break
    check_fit(model, built, state)
    return state


def read_trained(path: Path) -> dict[str, Tensor]:
    """The state dict that the train stage wrote.

    Raises:
        MissingInputError, BadFileError: see `checkpoint.metadata_of`; or the weights do not match their hash.
    """
    metadata = checkpoint.metadata_of(path)
    # Not through timm, which takes `module.` from names that have it by right.
    state = load_file(path)
    if (
        checkpoint.weights_sha256({name: tensor.numpy() for name, tensor in state.items()})
        != metadata["weights_sha256"]
    ):
        raise BadFileError(f"{path}: the weights do not match their checksum: delete it and run again")
    return state


def check_fit(model: Model, built: nn.Module, state: dict[str, Tensor]) -> None:
    """Compare names and shapes with those of the built architecture (which may be on the meta device).

    Raises:
        ModelError: they differ; the message says how.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    reshaped = [name for name in wanted if name in given and wanted[name] != given[name]]
    if not (missing or unexpected or reshaped):
        _check_numbers(model, built, state)
        return
    if head := _head_of_21k(wanted, given):
        raise ModelError(
            f"model {model.key!r}: {model.checkpoint_path} has a head of {head} outputs (ImageNet-21k, -22k or -12k), "
            f"which this model with args {model.args} has not. A 21k head answers other classes than the image set's: "
            "fine-tune it on them, and use that checkpoint"
        )
    details = []
    if missing:
        details.append(f"{len(missing)} are missing (e.g. {missing[0]})")
    if unexpected:
        details.append(f"{len(unexpected)} are unknown to it (e.g. {unexpected[0]})")
    if reshaped:
        name = reshaped[0]
        details.append(f"{len(reshaped)} have another shape (e.g. {name}: {given[name]}, not {wanted[name]})")
    timms = "timm's " if model.timm else ""
    raise ModelError(
        f"model {model.key!r}: {model.checkpoint_path} does not fit {timms}{model.timm_name!r} with args {model.args}. "
        f"Of the model's {len(wanted)} tensors and the file's {len(given)}, {'; '.join(details)}. "
        "Is it another architecture, or is args.num_classes (or another argument) missing?"
    )


HEADS_OF_21K = (21_841, 21_842, 21_843, 19_168, 11_821, 11_221, 10_450)
"""Outputs of models that were trained on ImageNet-21k and its selections, in timm."""


def _head_of_21k(wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> int | None:
    known = {shape[0] for shape in wanted.values() if shape}
    heads = [shape[0] for shape in given.values() if shape and shape[0] in HEADS_OF_21K and shape[0] not in known]
    return heads[0] if heads else None


def _check_numbers(model: Model, built: nn.Module, state: dict[str, Tensor]) -> None:
    for name, tensor in built.state_dict().items():
        given = state[name]
        if tensor.is_floating_point() != given.is_floating_point():
            raise ModelError(
                f"model {model.key!r}: {model.checkpoint_path}: {name} is {given.dtype}, the model's is {tensor.dtype}"
            )
        if given.is_floating_point() and not torch.isfinite(given).all():
            raise ModelError(f"model {model.key!r}: {model.checkpoint_path}: {name} holds NaN or infinity")


def load_pretrained(model: Model, arguments: dict[str, Any], file: Path | None = None) -> nn.Module:
    """timm's pretrained weights, from its cache or the hub.

    Args:
        file: where they are on this machine (`staged_file`); then no other place is looked at.

    Raises:
        ModelError: they cannot be had; the message says where they are looked for.
    """
    arguments = {**arguments, "model_name": model.timm_name, "pretrained": True}
    arguments.pop("pretrained_cfg", None)
    if file is not None:
        # What comes from the hub is a state dict, also where timm's `custom_load` is for the file of the first authors.
        from_hub = _source(model)[0] == "hf-hub"
        arguments["pretrained_cfg_overlay"] = {"file": str(file), **({"custom_load": False} if from_hub else {})}
    try:
        loaded: nn.Module = timm.create_model(**arguments)
    except Exception as error:
        where = (
            f"They are in {file}"
            if file is not None
            else "They are looked for in the Hugging Face cache ($HF_HOME) and then, unless HF_HUB_OFFLINE=1, on the "
            "hub; on a machine with network, this fetches them: simhpc models fetch STUDY"
        )
        raise ModelError(
            f"model {model.key!r}: the weights of {model.timm_name!r} cannot be loaded: {error}. {where}"
        ) from error
    return loaded


def caches() -> dict[str, Path]:
    """Where timm's weights lie on this machine, by the variable that says so: the hub's cache, and torch's."""
    return {"HF_HUB_CACHE": Path(constants.HF_HUB_CACHE), "TORCH_HOME": Path(torch.hub.get_dir()).parent}


@dataclass(frozen=True)
class HubFiles:
    """The files of the hub that hold a model's weights; timm takes the first that there is."""

    repository: str
    revision: str | None
    names: tuple[str, ...]


def source(model: Model) -> HubFiles | str | Path | None:
    """Where timm takes a pretrained model's weights from: the hub, a URL, a local file, or nowhere."""
    kind, where = _source(model)
    if kind == "hf-hub":
        repository, filename = where if isinstance(where, tuple) else (where, timm.models._hub.HF_WEIGHTS_NAME)
        name, revision = timm.models._hub.hf_split(repository)
        return HubFiles(name, revision, (*timm.models._hub._get_safe_alternatives(filename), filename))
    if kind == "url":
        return str(where)
    return Path(where) if kind == "file" else None


def staged_file(model: Model) -> Path | None:
    """The file on this machine that a pretrained model's weights will be read from; None if it is not there."""
    match source(model):
        case HubFiles(repository, revision, names):
            found = (try_to_load_from_cache(repository, name, revision=revision) for name in names)
            return next((Path(path) for path in found if isinstance(path, str)), None)
        case str(url):
            path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
        case Path() as path:
            pass
        case None:
            return None
    return path if path.is_file() else None


def is_staged(model: Model) -> bool:
    """Whether the weights of a pretrained model are on this machine, so that no network is needed."""
    return staged_file(model) is not None


def _source(model: Model) -> tuple[str, Any]:
    config = timm.models.get_pretrained_cfg(model.timm_name)
    # The very choice that timm will make.
    kind, where = timm.models._builder._resolve_pretrained_source(config.to_dict()) if config is not None else ("", "")
    return kind, where


def _read(path: Path, what: str) -> dict[str, Tensor]:
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:
        raise ModelError(f"{what}: {path} cannot be read as a checkpoint: {_why_unreadable(error, path)}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f"; its keys: {', '.join(map(str, list(state)[:8]))}" if isinstance(state, dict) and state else ""
        raise ModelError(
            f"{what}: {path} holds no state dict (names to tensors), neither itself nor under state_dict_ema, "
            f"model_ema, state_dict or model{keys}"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _why_unreadable(error: Exception, path: Path) -> str:
    said = f"{error} {error.__cause__ or ''}"
    if "TorchScript" in said:
        return "it is a TorchScript archive, code with its weights; save the model's state_dict alone"
    if "weights_only" not in said:
        return str(error) or type(error).__name__
    # torch names the first one; timm all, but not in files of before torch 1.6.
    found = re.findall(r"Unsupported globals: (.+?)\. No automatic", said) or re.findall(r"GLOBAL (\S+)", said)
    return (
        f"it holds Python objects besides tensors ({found[0] if found else 'unknown'}), and those are never unpickled "
        'here. If you trust it, save its tensors alone: python -c "import torch; '
        f"c = torch.load('{path}', weights_only=False); torch.save(c['state_dict'], 'weights.pth')\" "
        "(or whatever it calls them; c.state_dict() if it is a whole model)"
    )


def to_model(built: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Copy a state dict that fits into the model, strictly."""
    built.load_state_dict(state, strict=True)
    return built
