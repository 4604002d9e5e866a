"""Checking a study's models before anything runs, and completing their data configs. Builds no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from simhpc.errors import ModelError, nearest
from simhpc.store.checkpoint import file_sha256
from simhpc.study import DataConfig, Model
from simhpc.zoo import names, own, weights
from simhpc.zoo.timm_import import timm

_IMAGENET_CLASSES = 1000

_CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def resolve_model(model: Model, num_classes: int) -> Model:
    """The model with its data config complete and its checkpoint's hash filled in, after checking all of it.

    Args:
        num_classes: classes of the image set; outputs of a model that is trained here.

    Raises:
        ModelError: unknown architecture or tag, wrong constructor arguments, an input size the model does
            not take, fewer outputs than classes, a checkpoint that is missing or fits another architecture;
            or see `own`.
    """
    model, skeleton = _resolve_own(model, num_classes) if model.module else _resolve_timm(model, num_classes)
    if model.weights.startswith("checkpoint:"):
        model = model.model_copy(update={"checkpoint_sha256": _check_checkpoint(model, skeleton)})
    return model


def _resolve_timm(model: Model, num_classes: int) -> tuple[Model, torch.nn.Module]:
    """The model with its data config complete, and its architecture without weights."""
    assert model.timm is not None
    if not timm.is_model(model.timm):
        raise ModelError(
            f"model {model.key!r}: timm {timm.__version__} has no model {model.timm!r}"
            f"{nearest(model.timm, timm.list_models())}"
        )
    if model.is_pretrained:
        _check_tag(model)
        _check_head(model, num_classes)
    model = _with_data_config(model, _pretrained_cfg(model))
    return model, _skeleton(model, num_classes)


def _resolve_own(model: Model, num_classes: int) -> tuple[Model, torch.nn.Module]:
    """The model with its data config complete and the hashes of its source and weights, and its network."""
    found = own.locate(model)
    model = model.model_copy(update={"module_folder": str(found.folder), "module_sha256": found.sha256})
    if model.training is not None and model.training.drop_path_rate:
        raise ModelError(
            f"model {model.key!r}: training.drop_path_rate is an argument of timm's architectures; what {model.module} "
            "takes stands in args. Set it to 0 for this model"
        )
    # Not on the meta device: code that was not written for it may do anything there.
    built = own.build(model, num_classes).eval()
    model = _with_data_config(model, own.data_config(model, built))
    _check_outputs(model, own.check(model, built), num_classes)
    if model.weights == "own":
        sha256 = weights.weights_sha256(built)
        if weights.weights_sha256(own.build(model, num_classes)) != sha256:
            raise ModelError(
                f"model {model.key!r}: {model.module} returns other weights each time it is called, so tasks would not "
                "see one model: let it load them from a file, or set weights"
            )
        if model.weights_sha256 not in (None, sha256):
            raise ModelError(
                f"model {model.key!r}: the weights of {model.module} have SHA-256 {sha256}, the study says "
                f"{model.weights_sha256}"
            )
        model = model.model_copy(update={"weights_sha256": sha256})
    return model, built


def _with_data_config(model: Model, config: dict[str, Any]) -> Model:
    if config.get("crop_mode", "center") == "border":
        raise ModelError(f"model {model.key!r}: timm's crop_mode 'border' is not supported")
    try:
        return model.model_copy(update={"data": _complete(model.data, config)})
    except ValueError as error:
        whose = "timm's data config" if model.timm else "the data config"
        raise ModelError(f"model {model.key!r}: {whose} of {model.timm_name!r} is not supported: {error}") from error


def complete(model: Model) -> Model:
    """An entry of a model that timm has, with its data config complete. Nothing else of it is looked at.

    Raises:
        ModelError: the data config is not supported.
    """
    return _with_data_config(model, _pretrained_cfg(model))


def create_arguments(model: Model, num_classes: int, *, to_train: bool = False) -> dict[str, Any]:
    """Keyword arguments of `timm.create_model` for a resolved model, weights aside.

    Args:
        num_classes: outputs of a model that is trained here; other weights bring their own head, whose size
            `args.num_classes` states where it differs from the architecture's default.
        to_train: with `training.drop_path_rate`.
    """
    arguments = dict(model.args)
    if to_train and model.training is not None and model.training.drop_path_rate:
        arguments["drop_path_rate"] = model.training.drop_path_rate
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
    assert model.timm is not None
    names.check_tag(model.timm, model.weights.removeprefix("pretrained:"), who=f"model {model.key!r}: ")


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
    if model.training is not None and model.training.drop_path_rate:
        _check_drop_path(model, num_classes)
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
    _check_outputs(model, logits.shape[1], num_classes)
    return skeleton


def _check_drop_path(model: Model, num_classes: int) -> None:
    if "drop_path_rate" in model.args:
        raise ModelError(f"model {model.key!r}: drop_path_rate stands both in args and in training: leave one of them")
    try:
        with torch.device("meta"):
            timm.create_model(**create_arguments(model, num_classes, to_train=True))
    except Exception as error:
        raise ModelError(
            f"model {model.key!r}: {model.timm!r} takes no drop_path_rate: set training.drop_path_rate = 0 for it "
            f"({error})"
        ) from error


def _check_head(model: Model, num_classes: int) -> None:
    """That pretrained weights classify, and classify what the image set holds."""
    outputs = _pretrained_cfg(model).get("num_classes", 0)
    if model.args.get("num_classes", outputs) != outputs:
        raise ModelError(
            f"model {model.key!r}: {model.timm_name!r} has {outputs} outputs; with args.num_classes = "
            f"{model.args['num_classes']} its classifier would be a random one. Fine-tune it and use that checkpoint"
        )
    if not outputs:
        raise ModelError(f"model {model.key!r}: {model.timm_name!r} gives features, it has no classifier")
    # Features have numbers of their own; the class of an argmax over them means nothing.
    if num_classes <= _IMAGENET_CLASSES and outputs not in (_IMAGENET_CLASSES, num_classes):
        also = " (ImageNet-21k's or a selection's)" if outputs in weights.HEADS_OF_21K else ", or are features"
        raise ModelError(
            f"model {model.key!r}: the {outputs} outputs of {model.timm_name!r} are other classes{also} than the image "
            f"set's {num_classes}. Use weights that were fine-tuned on them, such as timm's tags that end in ft_in1k"
        )


def _check_outputs(model: Model, outputs: int, num_classes: int) -> None:
    if outputs < max(2, num_classes):
        raise ModelError(
            f"model {model.key!r} has {outputs} outputs, but the labels of the image set go up to "
            f"{num_classes - 1}: set images.labels so that they are the model's own class indices, or args.num_classes"
        )
    # Its first thousand classes are not ImageNet-1k's; no label would be right.
    if outputs in weights.HEADS_OF_21K and num_classes <= _IMAGENET_CLASSES:
        raise ModelError(
            f"model {model.key!r} has a head of {outputs} outputs (ImageNet-21k, -22k or -12k), and the image set "
            f"{num_classes} classes: a 21k head answers other classes. Use weights that were fine-tuned on them, such "
            "as timm's tags that end in ft_in1k"
        )


def _check_checkpoint(model: Model, skeleton: torch.nn.Module) -> str:
    path: Path = model.checkpoint_path
    if not path.is_file():
        raise ModelError(f"model {model.key!r}: no checkpoint {path}")
    if path.suffix not in _CHECKPOINT_SUFFIXES:
        raise ModelError(f"model {model.key!r}: {path} is not one of {', '.join(_CHECKPOINT_SUFFIXES)}")
    found = file_sha256(path)
    if model.checkpoint_sha256 not in (None, found):
        raise ModelError(f"model {model.key!r}: {path} has SHA-256 {found}, the study says {model.checkpoint_sha256}")
    weights.read_checkpoint(model, skeleton)
    return found
