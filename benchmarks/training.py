"""Part `training`: images per second of an epoch of training, beside timm's own loop on the same files.

timm's train script is no part of its package. What runs here in its place is what that script does without a GPU and
without its prefetcher, made of the same parts of timm in the same order: `create_dataset`, `create_loader`, `Mixup`,
the loss read after every forward pass (`loss.item()`), `ModelEmaV3`, `CosineLRScheduler.step_update`. Both read and
augment in the process that trains.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.rounds import Work, seconds_in_rounds
from benchmarks.settings import torch_state_kept
from benchmarks.victims import photos
from simhpc.images import open_source
from simhpc.study import DataConfig, Images, Training
from simhpc.zoo.timm_import import timm
from simhpc.zoo.training import Processes, Step, Trainer

TIMM = "timm"
"""The loop of timm's train script."""

_CLASSES = 4
_DATA = DataConfig(
    input_size_px=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", crop_pct=1.0
)
_PLAIN: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-4, "crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3)}
_DEIT: dict[str, Any] = {
    **_PLAIN,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "label_smoothing": 0.1,
    "random_erasing_prob": 0.25,
    "random_erasing_mode": "pixel",
    "ema_decay": 0.9999,
}
RECIPES = {"plain": _PLAIN, "DeiT's": _DEIT}
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": _DATA.input_size_px, "patch_size": 8},
}


def measure(options: Options, scratch: Path) -> Part:
    """An epoch of each model with each recipe, in turn with timm's loop."""
    n, batch_size = (8, 4) if options.quick else (160, 16)
    folder = _write_images(scratch / "photos", n)
    part = Part(facts={"images": n, "batch_size": batch_size, "input_size_px": _DATA.input_size_px})
    models = dict(list(MODELS.items())[:1]) if options.quick else MODELS
    for name, arguments in models.items():
        torch.manual_seed(0)
        network = timm.create_model(name, num_classes=_CLASSES, **arguments).to(options.device)
        for recipe, keys in RECIPES.items():
            training = Training(epochs=1, batch_size=batch_size, warmup_epochs=0.0, **keys)
            rates, losses = _in_turn(network, folder, training, options, n)
            label = f"{name}, {recipe} recipe"
            part.measures.append(Measure("training_throughput", "images/s", label, rates))
            part.checks.append(
                Check(
                    f"the first epoch's loss is alike: {label}",
                    abs(losses[OURS] - losses[TIMM]) < 0.25 * losses[TIMM] or options.quick,
                    f"{losses[OURS]:.3f} and {losses[TIMM]:.3f} nats",
                )
            )
    return part


def _in_turn(
    network: nn.Module, folder: Path, training: Training, options: Options, n: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images per second of each repetition, and the loss, by library."""
    losses: dict[str, float] = {}

    def epoch(library: str, work: Callable[..., float]) -> None:
        losses[library] = work(network, folder, training, options.device)

    works: dict[str, Work] = {OURS: partial(epoch, OURS, ours), TIMM: partial(epoch, TIMM, theirs)}
    with torch_state_kept():
        for work in works.values():
            work()
        found = seconds_in_rounds(works, options.repetitions, options.device)
    return {library: [n / second for second in taken] for library, taken in found.items()}, losses


def ours(network: nn.Module, folder: Path, training: Training, device: torch.device) -> float:
    """One epoch by `simhpc.zoo.training`; mean loss in nats."""
    source = open_source(Images(source=f"folder:{folder}", n=1, size_px=_DATA.input_size_px))
    trainer = Trainer(
        copy.deepcopy(network),
        source,
        range(len(source.labels)),
        training,
        _DATA,
        num_classes=_CLASSES,
        seed=0,
        processes=Processes(device),
    )
    steps: list[Step] = []
    return trainer.run(steps.extend)


def theirs(network: nn.Module, folder: Path, training: Training, device: torch.device) -> float:
    """One epoch as timm's train script has it; mean loss in nats."""
    model = copy.deepcopy(network)
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=training.optimizer, lr=training.lr, weight_decay=training.weight_decay
    )
    average = timm.utils.ModelEmaV3(model, decay=training.ema_decay) if training.ema_decay else None
    assert _DATA.input_size_px is not None
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=str(folder), is_training=True),
        input_size=(3, _DATA.input_size_px, _DATA.input_size_px),
        batch_size=training.batch_size,
        is_training=True,
        use_prefetcher=False,
        scale=training.crop_scale,
        ratio=training.crop_ratio,
        hflip=training.hflip_prob,
        color_jitter=None,
        auto_augment=training.auto_augment,
        re_prob=training.random_erasing_prob,
        re_mode=training.random_erasing_mode,
        interpolation=_DATA.interpolation,
        mean=_DATA.mean,
        std=_DATA.std,
        num_workers=0,
        pin_memory=False,
        persistent_workers=False,
        device=device,
    )
    mixup = None
    if training.mixes:
        mixup = timm.data.Mixup(
            mixup_alpha=training.mixup_alpha,
            cutmix_alpha=training.cutmix_alpha,
            label_smoothing=training.label_smoothing,
            num_classes=_CLASSES,
        )
    criterion = timm.loss.SoftTargetCrossEntropy() if mixup is not None else nn.CrossEntropyLoss()
    scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=training.epochs * len(loader), t_in_epochs=False)
    losses = timm.utils.AverageMeter()
    model.train()
    for update, (images, labels) in enumerate(loader, start=1):
        images, labels = images.to(device), labels.to(device)
        if mixup is not None:
            images, labels = mixup(images, labels)
        loss = criterion(model(images), labels)
        losses.update(loss.item(), images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            average.update(model, step=update)
        scheduler.step_update(num_updates=update, metric=losses.avg)
    return float(losses.avg)


def _write_images(folder: Path, n: int) -> Path:
    """Photographs of 160 pixels as JPEG files, one class after the other in turn."""
    for position, image in enumerate(photos(n, 160)):
        path = folder / f"class{position % _CLASSES}" / f"{position:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path, quality=90)
    return folder
