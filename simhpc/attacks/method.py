"""What an attack is: one function, and what has to be known of it. The attacks themselves are in `methods/`."""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from simhpc.attacks import methods

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2"]

_COMMON = ("eps", "step_size", "steps")


class Gradient(Protocol):
    """The model under attack, as an attack sees it; `pixels` float32 (B, 3, H, W), `labels` int64 (B,).

    Neither call synchronises with the device, and `pixels` may be changed in place afterwards.
    """

    def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Gradient of each image's cross-entropy with respect to its pixels: (B, 3, H, W)."""
        ...

    def with_loss(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the cross-entropies in nats: (B, 3, H, W), (B,)."""
        ...

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropies alone, in nats: (B,)."""
        ...


@dataclass(frozen=True)
class Method:
    """One attack.

    Attributes:
        attack: called as `attack(gradient, clean, labels, unit, *, eps, step_size, steps, **own)`, with `clean`
            float32 (B, 3, H, W) in [0, 1], which it must leave alone, `labels` int64 (B,), and `unit`, shaped like
            `clean`: a random point of the unit ball for each image, its own for every restart. Lengths are in pixel
            units of [0, 1]. Returns float32 (B, 3, H, W) in [0, 1], within eps of `clean`. Gradients are off while
            it runs. Keyword arguments beyond those three are the attack's own, with defaults; a study sets them
            in `attack.args`.
        norm: which ball `eps` is the radius of.
        steps: gradient steps unless the study says otherwise.
        step_size_eps: step size in units of eps, likewise.
        takes_steps: whether another number of steps has a meaning.
        is_random: whether `unit` is used, so that a restart may find something else.
    """

    attack: Callable[..., Tensor]
    norm: Norm
    steps: int
    step_size_eps: float
    takes_steps: bool = True
    is_random: bool = True

    @property
    def own_arguments(self) -> dict[str, Any]:
        """Names and defaults of the attack's own keyword arguments."""
        parameters = inspect.signature(self.attack).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _COMMON}


@dataclass(frozen=True)
class Settings:
    """A method with everything decided.

    Attributes:
        eps_255: radius of the ball, in units of 1/255.
        step_size_eps: step size in units of eps.
        steps: gradient steps.
        arguments: the method's own.
    """

    method: Method
    eps_255: int
    step_size_eps: float
    steps: int
    arguments: dict[str, Any]


def names() -> list[str]:
    """Of all attacks, sorted; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(methods.__path__))


def find(name: str) -> Method:
    """The attack of this name.

    Raises:
        KeyError: there is none.
        TypeError: its file holds something else.
    """
    if name not in names():
        raise KeyError(name)
    found = getattr(_module(name), "METHOD", None)
    if not isinstance(found, Method):
        raise TypeError(f"{_module(name).__file__} holds no METHOD, the attack as a simhpc.attacks.method.Method")
    return found


def code_sha256(name: str) -> str:
    """SHA-256 of the attack's file, by which one that was edited is known."""
    return hashlib.sha256(Path(str(_module(name).__file__)).read_bytes()).hexdigest()


def _module(name: str) -> ModuleType:
    return import_module(f"{methods.__name__}.{name.replace('-', '_')}")
