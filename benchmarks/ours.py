"""simhpc's attack as the benchmarks use it: the only module here that touches `simhpc.attacks` or loads classifiers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.attacker import Attacker, Victim
from benchmarks.measures import OURS
from benchmarks.settings import AttackSettings, torch_state_kept
from simhpc.attacks.attack import attack_images
from simhpc.attacks.batches import Target, predict
from simhpc.attacks.gradient import InputGradient, try_graph
from simhpc.rundir import Run
from simhpc.stages.method import resolve_attack, settings_of
from simhpc.stages.runtime import set_up_torch, settled
from simhpc.store import image_set
from simhpc.study import Attack, DataConfig, Images, Model, Resources, Study
from simhpc.zoo import build
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.geometry import clean_view

_PREDICT_BATCH_SIZE = 64


def attacker(victim: Victim, settings: AttackSettings) -> Attacker:
    """Our attack, as a task of a study prepares and runs it."""
    target = _target(victim, settings)
    targets = [target]
    chosen = Attack(eps_255=settings.eps_255, step_size_eps=settings.step_size_eps, steps=settings.steps)
    study = _study(settings)

    def attack(images: Tensor, labels: Tensor) -> Tensor:
        with torch_state_kept():
            # Ours is measured with the deterministic kernels of a task, the peers with their defaults.
            set_up_torch(study)
            return attack_images(
                targets[0],
                images,
                labels,
                [torch.randint(2**62, (len(images),)).tolist()],
                settings_of(resolve_attack(chosen)),
                batch_size=settings.batch_size,
                finished={},
                on_batch=lambda *_: None,
            )

    def prepare() -> None:
        if settings.device.type == "cuda":
            with torch_state_kept():
                set_up_torch(study)
                record = partial(_recorded, target, victim, settings.batch_size)
                targets[0] = settled(settings.device, record, victim.name)

    def replayed() -> int:
        graph = targets[0].graph
        return 0 if graph is None else graph.n_replays * settings.batch_size

    return Attacker(OURS, target.classifier, attack, prepare, replayed)


def on_one_batch(victim: Victim, settings: AttackSettings, *, is_recorded: bool) -> Callable[[], Tensor]:
    """PGD on the victim's images as one batch that is on the device already; the result stays there.

    Args:
        is_recorded: as a CUDA graph, which a task does wherever it can.
    """
    study = _study(settings)
    with torch_state_kept():
        set_up_torch(study)
        target = _target(victim, settings)
        record = partial(_recorded, target, victim, len(victim.images))
        if settings.device.type == "cuda":
            recorded = settled(settings.device, record, victim.name)
            target = recorded if is_recorded else target
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = Attack(eps_255=settings.eps_255, step_size_eps=settings.step_size_eps, steps=settings.steps)
    pgd = settings_of(resolve_attack(chosen))
    clean, labels = target.pixels(target.moved(victim.images)), target.moved(victim.labels)
    unit = torch.rand_like(clean).mul_(2.0).sub_(1.0)
    lengths = {"eps": settings.eps, "step_size": settings.step_size}

    @torch.no_grad()
    def attack() -> Tensor:
        with torch_state_kept():
            set_up_torch(study)
            torch.use_deterministic_algorithms(True, warn_only=warns)
            gradient = InputGradient(target.classifier, target.graph, is_in_parts=target.is_in_parts)
            return pgd.method.attack(gradient, clean, labels, unit, **lengths, steps=pgd.steps)

    return attack


def _target(victim: Victim, settings: AttackSettings) -> Target:
    classifier = _classifier(victim, in_bfloat16=settings.precision == "bfloat16")
    few = victim.images[:2].float() / 255.0
    fast = make_fast(classifier, few, settings.device, is_compiled=settings.compiled)
    module: nn.Module = _Compiled(fast.classifier) if settings.compiled else fast.classifier
    return Target(module, settings.device, fast.memory_format, is_in_parts=fast.is_in_parts)


def _recorded(target: Target, victim: Victim, batch_size: int) -> Target:
    """With a CUDA graph, as a task has one."""
    some = torch.arange(batch_size).clamp_(max=len(victim.images) - 1)
    with torch.no_grad():
        pixels = target.pixels(target.moved(victim.images[some]))
        graph, reason = try_graph(target.classifier, pixels, target.moved(victim.labels[some]))
    if graph is None:
        raise RuntimeError(f"{victim.name}: no CUDA graph: {reason}")
    return replace(target, graph=graph)


class _Compiled(nn.Module):
    """A compiled module that can be hooked like any other."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._compiled = torch.compile(module)

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self._compiled(pixels))


def _study(settings: AttackSettings) -> Study:
    """Of all that a study says, what a task sets torch up by."""
    assert settings.precision != "default"
    is_cuda = settings.device.type == "cuda"
    return Study(
        name="benchmark",
        precision=settings.precision,
        images=Images(source="sklearn-digits", n=1),
        resources=Resources(device="cuda" if is_cuda else "cpu", threads_per_task=torch.get_num_threads()),
        models=(Model(key="none", timm="resnet18", weights="train"),),
    )


def predicted(victim: Victim, images: Tensor, device: torch.device) -> Tensor:
    """The model's float32 answers to 8-bit images: int64 (N,). The same judge for all libraries, not made faster."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return predict(Target(_classifier(victim).to(device), device), images, labels, _PREDICT_BATCH_SIZE)[0]


def trained_victim(run: Run, key: str) -> Victim:
    """A model that a run has trained, with the images of the run that it gets right."""
    model, chosen = run.study.model(key), image_set.load(run.dir.images)
    loaded = build.load(model, num_classes=chosen.num_classes, trained=run.dir.checkpoint(key)).classifier
    assert model.data.mean is not None
    assert model.data.std is not None
    images, labels = torch.from_numpy(clean_view(chosen.images, model.data)), torch.from_numpy(chosen.labels).long()
    right = predict(Target(loaded, torch.device("cpu")), images, labels, _PREDICT_BATCH_SIZE)[0] == labels
    # Frozen by our classifier; a peer's user has it as timm made it.
    network = loaded.model.requires_grad_(True)
    return Victim(key, network, model.data.mean, model.data.std, images[right], labels[right])


def _classifier(victim: Victim, *, in_bfloat16: bool = False) -> PixelClassifier:
    """A copy, because a classifier freezes its model."""
    data = DataConfig(input_size_px=victim.images.shape[-1], mean=victim.mean, std=victim.std)
    return PixelClassifier(copy.deepcopy(victim.model), data, in_bfloat16=in_bfloat16)
