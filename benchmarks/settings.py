"""What is asked of every library alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "tf32", "bfloat16", "default"]
"""`default` is what torch does unless it is told otherwise: float32, with TF32 in convolutions alone."""


@dataclass(frozen=True)
class AttackSettings:
    """PGD in the L-infinity ball from a random start.

    Attributes:
        eps_255: radius in units of 1/255.
        step_size_eps: step size in units of eps.
        steps: gradient steps.
        precision: of the model; pixels are float32 always.
        compiled: whether the model goes through `torch.compile`.
    """

    steps: int
    batch_size: int
    device: torch.device
    eps_255: int = 8
    step_size_eps: float = 0.1
    precision: Precision = "float32"
    compiled: bool = False

    @property
    def eps(self) -> float:
        """Radius in pixels of [0, 1]."""
        return self.eps_255 / 255.0

    @property
    def step_size(self) -> float:
        """In pixels of [0, 1]."""
        return self.step_size_eps * self.eps


def set_precision(precision: Precision) -> None:
    """Let matrix products and convolutions of float32 use TF32, or keep them from it, in the whole process."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision in ("tf32", "default")


@contextmanager
def torch_state_kept() -> Iterator[None]:
    """Undo what a task does to its process: threads, precision, determinism. Libraries share one process here."""
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills, benchmarks = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
    tf32, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmarks


def as_asked(model: nn.Module, settings: AttackSettings) -> nn.Module:
    """A model in the precision that is asked for, compiled if that is asked for; logits are float32."""
    wrapped = _Autocast(model, settings.device.type) if settings.precision == "bfloat16" else model
    # Not Module.compile: whoever gets the model must be able to wrap and hook it like any other.
    return _Compiled(wrapped) if settings.compiled else wrapped


class _Autocast(nn.Module):
    def __init__(self, model: nn.Module, device_type: str) -> None:
        super().__init__()
        self.model = model
        self._device_type = device_type

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self._device_type, torch.bfloat16):
            logits: Tensor = self.model(inputs)
        return logits.float()


class _Compiled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._compiled = torch.compile(model)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self._compiled(inputs)
        return logits
