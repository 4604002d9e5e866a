"""torchattacks, foolbox and ART, each given a model as its own documentation gives it one.

That means a plain model in eval mode with its parameters not frozen, unless `frozen` asks for it: foolbox and ART
call `loss.backward()` and then compute the gradients of all parameters too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.attacker import Attacker, Victim, to_levels
from benchmarks.settings import AttackSettings, as_asked, set_precision, torch_state_kept


class Normalised(nn.Module):
    """The wrapper that users of [0, 1] attacks write around a model."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


def with_torchattacks(victim: Victim, settings: AttackSettings, *, frozen: bool = False) -> Attacker:
    """`torchattacks.PGD`, batch by batch."""
    import torchattacks

    network = Normalised(_copy(victim, frozen=frozen), victim.mean, victim.std).eval().to(settings.device)
    module = as_asked(network, settings).eval()
    pgd = torchattacks.PGD(module, eps=settings.eps, alpha=settings.step_size, steps=settings.steps, random_start=True)
    return Attacker("torchattacks", module, _in_batches(pgd, settings))


def with_foolbox(victim: Victim, settings: AttackSettings, *, frozen: bool = False) -> Attacker:
    """`foolbox.attacks.LinfPGD.run`, batch by batch: one eps, and no predictions besides the gradients'."""
    import foolbox

    module = as_asked(_copy(victim, frozen=frozen).to(settings.device), settings).eval()
    model = foolbox.PyTorchModel(
        module,
        bounds=(0, 1),
        device=settings.device,
        preprocessing={"mean": victim.mean, "std": victim.std, "axis": -3},
    )
    pgd = foolbox.attacks.LinfPGD(abs_stepsize=settings.step_size, steps=settings.steps, random_start=True)

    def attack(pixels: Tensor, labels: Tensor) -> Tensor:
        # Its bounds check is exact, and a division may end one rounding above 1 on some devices.
        attacked: Tensor = pgd.run(
            model, pixels.clamp_(0.0, 1.0), foolbox.Misclassification(labels), epsilon=settings.eps
        )
        return attacked

    return Attacker("foolbox", module, _in_batches(attack, settings))


def with_art(victim: Victim, settings: AttackSettings, *, frozen: bool = False) -> Attacker:
    """ART's `ProjectedGradientDescentPyTorch`, which makes its own batches and takes numpy arrays."""
    from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
        ProjectedGradientDescentPyTorch,
    )
    from art.estimators.classification import PyTorchClassifier

    model = _copy(victim, frozen=frozen)
    with torch.no_grad():
        nb_classes = model(torch.zeros(1, *victim.images.shape[1:])).shape[1]
    module = as_asked(model.to(settings.device), settings).eval()
    classifier = PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(victim.images.shape[1:]),
        nb_classes=nb_classes,
        clip_values=(0.0, 1.0),
        preprocessing=(_channels(victim.mean), _channels(victim.std)),
        device_type="gpu" if settings.device.type == "cuda" else "cpu",
    )
    pgd = ProjectedGradientDescentPyTorch(
        classifier,
        norm=np.inf,
        eps=settings.eps,
        eps_step=settings.step_size,
        max_iter=settings.steps,
        num_random_init=1,
        batch_size=settings.batch_size,
        verbose=False,
    )

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        pixels = images.to(torch.float32).div_(255.0).numpy()
        return to_levels(torch.from_numpy(pgd.generate(pixels, labels.numpy())))

    return Attacker("art", module, attack)


DEFAULTS = "torchattacks-defaults"
"""What most people run: not compiled, and in the precision that torch has by itself."""


def with_defaults(victim: Victim, settings: AttackSettings, *, frozen: bool = False) -> Attacker:
    """`with_torchattacks`, whatever the precision of the others."""
    set_precision("default")
    return with_torchattacks(victim, replace(settings, precision="default", compiled=False), frozen=frozen)


def on_one_batch(victim: Victim, settings: AttackSettings) -> Callable[[], Tensor]:
    """`torchattacks.PGD` with torch's defaults on the victim's images as one batch that is on the device already."""
    import torchattacks

    network = Normalised(_copy(victim, frozen=False), victim.mean, victim.std).eval().to(settings.device)
    pgd = torchattacks.PGD(network, eps=settings.eps, alpha=settings.step_size, steps=settings.steps, random_start=True)
    pixels, labels = victim.images.to(settings.device).float().div_(255.0), victim.labels.to(settings.device)

    @torch_state_kept()
    def attack() -> Tensor:
        set_precision("default")
        attacked: Tensor = pgd(pixels, labels)
        return attacked

    return attack


PEERS: dict[str, Callable[..., Attacker]] = {
    "torchattacks": with_torchattacks,
    DEFAULTS: with_defaults,
    "foolbox": with_foolbox,
    "art": with_art,
}


def _channels(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32).reshape(3, 1, 1)


def _copy(victim: Victim, *, frozen: bool) -> nn.Module:
    return copy.deepcopy(victim.model).eval().requires_grad_(not frozen)


def _in_batches(
    attack: Callable[[Tensor, Tensor], Tensor], settings: AttackSettings
) -> Callable[[Tensor, Tensor], Tensor]:
    def attacked(images: Tensor, labels: Tensor) -> Tensor:
        parts, size = [], settings.batch_size
        for some, truth in zip(torch.split(images, size), torch.split(labels, size), strict=True):
            pixels = some.to(settings.device).to(torch.float32).div_(255.0)
            parts.append(to_levels(attack(pixels, truth.to(settings.device))))
        return torch.cat(parts)

    return attacked
