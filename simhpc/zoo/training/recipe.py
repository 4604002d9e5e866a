"""The keys of [training] as timm's own objects: transform, mixing, task, optimiser, schedule of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from simhpc.errors import StudyError, first_line
from simhpc.study import DataConfig, Training
from simhpc.zoo.timm_import import timm


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    """timm's own, and black where no bit is kept, which Pillow 13 refuses: strong RandAugment does so."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timm.data.auto_augment.posterize(image, bits_to_keep)
    return posterized


for _name in ("Posterize", "PosterizeOriginal", "PosterizeIncreasing"):
    timm.data.auto_augment.NAME_TO_OP[_name] = _posterize


def check_settings(key: str, training: Training) -> None:
    """Try the settings that only timm can judge.

    Raises:
        StudyError: an optimiser that is unknown or cannot be used, or an unknown augmentation policy.
    """
    network = nn.Linear(1, 1)
    try:
        optimizer = make_optimizer(network, training)
        network(torch.ones(1, 1)).sum().backward()
        # Some want gradients of gradients.
        optimizer.step()
    except Exception as error:
        known = ", ".join(("sgd", "adamw", "lamb", "lion", "nadamw"))
        reason = first_line(error)
        raise StudyError(
            f"model {key!r}: training.optimizer: timm's {training.optimizer!r} cannot be used ({reason}); for example "
            f"{known}"
        ) from error
    try:
        make_transform(training, DataConfig(input_size_px=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"))
    except Exception as error:
        raise StudyError(
            f"model {key!r}: training.auto_augment: timm cannot read {training.auto_augment!r} ({error}); "
            "for example 'rand-m9-mstd0.5'"
        ) from error


def make_transform(training: Training, data: DataConfig) -> Callable[..., Tensor]:
    """From a PIL image to float32 (3, S, S), cropped, augmented and normalised at random."""
    transform: Callable[..., Tensor] = timm.data.create_transform(
        data.input_size_px,
        is_training=True,
        scale=training.crop_scale,
        ratio=training.crop_ratio,
        hflip=training.hflip_prob,
        color_jitter=None,
        auto_augment=training.auto_augment,
        re_prob=training.random_erasing_prob,
        re_mode=training.random_erasing_mode,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
    )
    return transform


def make_mixing(training: Training, num_classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and cutmix of a batch: images (B, 3, S, S) and labels (B,) to images and targets (B, K); None without."""
    if not training.mixes:
        return None
    mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = timm.data.Mixup(
        mixup_alpha=training.mixup_alpha,
        cutmix_alpha=training.cutmix_alpha,
        label_smoothing=training.label_smoothing,
        num_classes=num_classes,
    )
    return mixing


class MakeTask(Protocol):
    """A class of `timm.task`, or what stands for one: from a network and what its loss on labels is made of."""

    def __call__(
        self, network: nn.Module, /, *, criterion_kwargs: Mapping[str, Any], device: torch.device, verbose: bool
    ) -> timm.task.TrainingTask: ...


def make_task(
    network: nn.Module, training: Training, device: torch.device, kind: MakeTask = timm.task.ClassificationTask
) -> timm.task.TrainingTask:
    """What computes the loss of a batch.

    Args:
        kind: classification alone, or distillation (`zoo.distillation.task_maker`).
    """
    criterion = {
        "loss_type": training.loss,
        "smoothing": training.label_smoothing,
        "soft_targets": training.mixes,
        "bce_target_thresh": training.bce_target_threshold or None,
    }
    task = kind(network, criterion_kwargs=criterion, device=device, verbose=False)
    if training.ema_decay:
        task.setup_ema(decay=training.ema_decay)
    return task


def make_optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Without weight decay for biases and norms, as timm's train script has it."""
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        network, opt=training.optimizer, lr=training.lr, weight_decay=training.weight_decay
    )
    return optimizer


def make_scheduler(
    optimizer: torch.optim.Optimizer, training: Training, steps_per_epoch: int
) -> timm.scheduler.CosineLRScheduler:
    """Linear warm-up and cosine decay, both over all steps and one step of it per step of the optimiser."""
    return timm.scheduler.CosineLRScheduler(
        optimizer,
        t_initial=training.epochs * steps_per_epoch,
        lr_min=training.min_lr,
        warmup_t=round(training.warmup_epochs * steps_per_epoch),
        warmup_lr_init=training.lr / 100 if training.warmup_lr is None else training.warmup_lr,
        t_in_epochs=False,
    )
