"""Architectures by name: which there are, and their components without any weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from simhpc.errors import ModelError, nearest
from simhpc.study import Model
from simhpc.zoo.components.read import Components, read_components
from simhpc.zoo.components.table import labelled
from simhpc.zoo.timm_import import timm

_DEFAULT_SIZE = (3, 224, 224)


@dataclass(frozen=True)
class Architecture:
    """One architecture that is to be read.

    Attributes:
        name: what it was asked for by.
        timm: its name in timm, with a tag or without.
        size_px: side of its input; None: that of the tag, or of timm's first tag.
        args: constructor arguments.
    """

    name: str
    timm: str
    size_px: int | None = None
    args: dict[str, Any] = field(default_factory=dict)


def find(name: str) -> Architecture:
    """The architecture of a name in timm (`name` or `name.tag`) or in the paper.

    Raises:
        ModelError: there is none of that name, or the tag is unknown.
    """
    if name in labelled():
        return Architecture(name, labelled()[name].timm)
    return _checked(Architecture(name, name))


def find_entry(model: Model) -> Architecture:
    """The architecture of a study's entry.

    Raises:
        ModelError: see `find`.
    """
    return _checked(Architecture(model.key, model.timm_name, model.data.input_size_px, dict(model.args)))


def read(architecture: Architecture) -> Components:
    """Build an architecture without weights and read it: on shapes alone if it can be, else on the CPU.

    Raises:
        ModelError: timm cannot build it, or it does not run.
    """
    try:
        return _read_on(torch.device("meta"), architecture)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        pass  # Values decide shapes somewhere, or an operation has no form for shapes alone.
    try:
        return _read_on(torch.device("cpu"), architecture)
    except Exception as error:
        raise ModelError(f"{architecture.name} cannot be read: {type(error).__name__}: {error}") from error


def _checked(architecture: Architecture) -> Architecture:
    base, _, tag = architecture.timm.partition(".")
    if not timm.is_model(base):
        known = {*timm.list_models(), *labelled()}
        raise ModelError(f"timm {timm.__version__} has no model {base!r}{nearest(base, sorted(known))}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        have = f"its tags: {', '.join(tags)}" if tags else "it has no pretrained weights"
        raise ModelError(f"timm has no weights {architecture.timm!r}{nearest(tag, tags)}; {have}")
    return architecture


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
