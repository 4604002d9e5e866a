"""Checking a study's models before anything runs, and completing their data configs. Builds no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from simhpc.errors import ModelError, nearest
from simhpc.store.checkpoint import file_sha256
from simhpc.study import DataConfig, Model
from simhpc.zoo import weights
from simhpc.zoo.timm_import import timm

_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def resolve_model(model: Model, num_classes: int) -> Model:
    """The model with its data config complete and its checkpoint's hash filled in, after checking all of it.

    Args:
        num_classes: classes of the image set; outputs of a model that is trained here.

    Raises:
        ModelError: unknown architecture or tag, wrong constructor arguments, an input size the model does
            not take, fewer outputs than classes, a checkpoint that is missing or fits another architecture.
    """
    if not timm.is_model(model.timm):
        raise ModelError(
            f"model {model.key!r}: timm {timm.__version__} has no model {model.timm!r}"
            f"{nearest(model.timm, timm.list_models())}"
        )
    if model.is_pretrained:
        _check_tag(model)
    config = _pretrained_cfg(model)
    if config.get("crop_mode", "center") == "border":
        raise ModelError(f"model {model.key!r}: timm's crop_mode 'border' is not supported")
    try:
        model = model.model_copy(update={"data": _complete(model.data, config)})
    except ValueError as error:
        raise ModelError(
            f"model {model.key!r}: timm's data config of {model.timm_name!r} is not supported: {error}"
        ) from error
    skeleton = _skeleton(model, num_classes)
    if model.weights.startswith("checkpoint:"):
        model = model.model_copy(update={"checkpoint_sha256": _check_checkpoint(model, skeleton)})
    return model


def create_arguments(model: Model, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `timm.create_model` for a resolved model, weights aside.

    Args:
        num_classes: outputs of a model that is trained here; other weights bring their own head, whose size
            `args.num_classes` states where it differs from the architecture's default.
    """
    arguments = dict(model.args)
    if model.is_trained_here:
        arguments.setdefault("num_classes", num_classes)
    try:
        # Passes img_size to the architectures that are built for one input size, and to no other.
        resolved: dict[str, Any] = timm.models.resolve_model_input_args(
            model.timm_name, {"img_size": model.data.input_size_px}, **arguments
        )
    except Exception as error:
        raise ModelError(
            f"model {model.key!r}: timm cannot build {model.timm!r} from args {model.args}: {error}"
        ) from error
    return resolved


def _check_tag(model: Model) -> None:
    tag = model.weights.removeprefix("pretrained:")
    tagged = timm.list_pretrained(f"{model.timm}.*")
    tags = [name.partition(".")[2] for name in tagged]
    if tag not in tags:
        have = f"its tags: {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise ModelError(f"model {model.key!r}: timm has no weights {model.timm_name!r}{nearest(tag, tags)}; {have}")


def _pretrained_cfg(model: Model) -> dict[str, Any]:
    config = timm.models.get_pretrained_cfg(model.timm_name)
    return config.to_dict() if config is not None else {}


def _complete(given: DataConfig, config: dict[str, Any]) -> DataConfig:
    resolved = timm.data.resolve_data_config({}, pretrained_cfg=config or {"input_size": (3, 224, 224)})
    if given.input_size_px is None and resolved["input_size"][1] != resolved["input_size"][2]:
        raise ValueError(f"its input {resolved['input_size'][1:]} is not square; set data.input_size_px")
    if given.crop_pct is None and resolved["crop_pct"] > 1:
        raise ValueError(f"its crop_pct is {resolved['crop_pct']}, more than the whole image; set data.crop_pct")
    found = {
        "input_size_px": resolved["input_size"][-1],
        "mean": tuple(resolved["mean"]),
        "std": tuple(resolved["std"]),
        "interpolation": resolved["interpolation"],
        "crop_pct": resolved["crop_pct"],
    }
    return DataConfig.model_validate({**found, **given.model_dump(exclude_none=True)}, strict=False)


def _skeleton(model: Model, num_classes: int) -> torch.nn.Module:
    """The architecture without memory for weights, after one forward pass of shapes through it."""
    side = model.data.input_size_px
    assert side is not None
    arguments = create_arguments(model, num_classes)
    try:
        with torch.device("meta"):
            skeleton: torch.nn.Module = timm.create_model(**arguments).eval()
    except Exception as error:
        raise ModelError(
            f"model {model.key!r}: timm cannot build {model.timm!r} with args {model.args}: {error}"
        ) from error
    try:
        with torch.device("meta"), torch.no_grad():
            logits = skeleton(torch.empty(1, 3, side, side))
    except Exception as error:
        raise ModelError(
            f"model {model.key!r}: {model.timm!r} with args {model.args} does not take {side} x {side} images "
            f"(data.input_size_px): {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ModelError(
            f"model {model.key!r}: {model.timm!r} with args {model.args} does not give (1, classes) logits"
        )
    if logits.shape[1] < max(2, num_classes):
        raise ModelError(
            f"model {model.key!r} has {logits.shape[1]} outputs, but the labels of the image set go up to "
            f"{num_classes - 1}: set images.labels so that they are the model's own class indices, or args.num_classes"
        )
    return skeleton


def _check_checkpoint(model: Model, skeleton: torch.nn.Module) -> str:
    path: Path = model.checkpoint_path
    if not path.is_file():
        raise ModelError(f"model {model.key!r}: no checkpoint {path}")
    if path.suffix not in _CHECKPOINT_SUFFIXES:
        raise ModelError(f"model {model.key!r}: {path} is not one of {', '.join(_CHECKPOINT_SUFFIXES)}")
    found = file_sha256(path)
    if model.checkpoint_sha256 not in (None, found):
        raise ModelError(f"model {model.key!r}: {path} has SHA-256 {found}, the study says {model.checkpoint_sha256}")
    weights.check_fit(model, skeleton, weights.read_checkpoint(model))
    return found
