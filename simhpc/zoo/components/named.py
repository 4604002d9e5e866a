"""Architectures by name: which there are, and their components without any weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from simhpc.errors import ModelError
from simhpc.study import Model
from simhpc.zoo import names, own, registry
from simhpc.zoo.components.read import Components, read_components
from simhpc.zoo.timm_import import timm

_DEFAULT_SIZE = (3, 224, 224)
# Of a function that asks for their number: no component depends on it.
_CLASSES = 1000


@dataclass(frozen=True)
class Architecture:
    """One architecture that is to be read.

    Attributes:
        name: what it was asked for by.
        timm: its name in timm, with a tag or without; empty if it is one's own.
        size_px: side of its input; None: that of the tag, or of timm's first tag.
        args: constructor arguments.
        own: the study's entry whose function builds it (then the rest is not looked at).
    """

    name: str
    timm: str
    size_px: int | None = None
    args: dict[str, Any] = field(default_factory=dict)
    own: Model | None = None


def find(name: str) -> Architecture:
    """The architecture of a name in timm (`name` or `name.tag`) or in the paper.

    Raises:
        ModelError: there is none of that name, or the tag is unknown.
    """
    if (paper := registry.by_name(name)) is not None:
        return Architecture(name, paper.timm)
    names.split(name, others=[entry.name for entry in registry.paper_models()])
    return Architecture(name, name)


def find_entry(model: Model) -> Architecture:
    """The architecture of a study's entry. Whether one's own can be built, `read` tells.

    Raises:
        ModelError: see `find`.
    """
    if model.module is not None:
        return Architecture(model.key, "", own=model)
    names.split(model.timm_name, who=f"model {model.key!r}: ")
    return Architecture(model.key, model.timm_name, model.data.input_size_px, dict(model.args))


def read(architecture: Architecture) -> Components:
    """Build an architecture without weights and read it: on shapes alone if it can be, else on the CPU.

    Raises:
        ModelError: it cannot be built, or it does not run.
    """
    try:
        if architecture.own is not None:
            return _read_own(architecture.own)
        try:
            return _read_on(torch.device("meta"), architecture)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            # Values decide shapes somewhere, or an operation has no form for shapes alone.
            return _read_on(torch.device("cpu"), architecture)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{architecture.name} cannot be read: {type(error).__name__}: {error}") from error


def _read_own(entry: Model) -> Components:
    # Not on shapes alone: code that was not written for it may do anything there.
    network = own.build(entry, _CLASSES)
    size_px = entry.data.input_size_px
    if size_px is None:
        size_px = own.data_config(entry, network)["input_size"][-1]
    return read_components(network, (size_px, size_px))


def _read_on(device: torch.device, architecture: Architecture) -> Components:
    size_px, args = architecture.size_px, architecture.args
    if size_px is not None:
        # Passes img_size to the architectures that are built for one input size, and to no other.
        args = timm.models.resolve_model_input_args(architecture.timm, {"img_size": size_px}, **args)
        args.pop("model_name", None)
    with device:
        model: nn.Module = timm.create_model(architecture.timm, pretrained=False, **args)
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    height, width = (size_px, size_px) if size_px is not None else config.get("input_size", _DEFAULT_SIZE)[-2:]
    return read_components(model, (height, width))
