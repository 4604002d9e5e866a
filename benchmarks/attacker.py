"""What every library is given, what it makes of it, and proof of how many gradient steps it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Victim:
    """A model with images that it classifies "correctly".

    Attributes:
        name: for the tables.
        model: (B, 3, S, S) normalised float32 to (B, K) logits; in eval mode, on the CPU, parameters not frozen.
        mean, std: of the normalisation, by channel.
        images: uint8 (N, 3, S, S).
        labels: int64 (N,), what the model answers to them.
    """

    name: str
    model: nn.Module
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Attacker:
    """A library with a model and settings.

    Attributes:
        library: its name.
        module: what the library calls once per forward pass; a copy of its own.
        attack: uint8 (N, 3, S, S) images and int64 (N,) labels, on the CPU, to uint8 adversarial images.
        prepare: called once before the first attack.
        replayed: images that went forward and backward in a CUDA graph so far, which calls no module.
    """

    library: str
    module: nn.Module
    attack: Callable[[Tensor, Tensor], Tensor]
    prepare: Callable[[], None] = lambda: None
    replayed: Callable[[], int] = lambda: 0


@dataclass
class Passes:
    """Through a model, in images: forward with gradient, forward without, backward."""

    forward: int = 0
    forward_only: int = 0
    backward: int = 0


def counted(attacker: Attacker, images: Tensor, labels: Tensor) -> tuple[Tensor, Passes]:
    """Attack once, and count what went through the model."""
    passes = Passes()

    def forward(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        if not logits.requires_grad:
            passes.forward_only += len(logits)
            return
        passes.forward += len(logits)
        logits.register_hook(backward)  # type: ignore[no-untyped-call]

    def backward(gradient: Tensor) -> None:
        passes.backward += len(gradient)

    before = attacker.replayed()
    handle = attacker.module.register_forward_hook(forward)
    try:
        adversarial = attacker.attack(images, labels)
    finally:
        handle.remove()
    replayed = attacker.replayed() - before
    passes.forward += replayed
    passes.backward += replayed
    return adversarial, passes


def to_levels(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] rounded to 8 bits, on the CPU."""
    return pixels.detach().mul(255.0).round_().to(torch.uint8).cpu()
