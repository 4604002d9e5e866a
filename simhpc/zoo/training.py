"""Training a small classifier with timm's own parts: transforms, loss, task, optimiser, scheduler."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from simhpc.errors import StudyError
from simhpc.seeds import derive_seed
from simhpc.study import DataConfig, Training
from simhpc.zoo.timm_import import timm

OnEpoch = Callable[[int], None]
"""Called with the number of epochs done so far."""


class TrainingDivergedError(Exception):
    """The loss became NaN or infinite."""


class LabelledImages(Protocol):
    """What training needs of an image source (`simhpc.images.Source`)."""

    labels: NDArray[np.int32]

    def image(self, position: int) -> Image.Image: ...


class TrainingImages(Dataset[tuple[torch.Tensor, int]]):
    """Some images of a source with a random transform, decoded on use."""

    def __init__(
        self, source: LabelledImages, positions: Sequence[int], transform: Callable[..., torch.Tensor]
    ) -> None:
        self._source = source
        self._positions = positions
        self._transform = transform

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, int]:
        position = self._positions[item]
        return self._transform(self._source.image(position)), int(self._source.labels[position])


def check_settings(key: str, training: Training) -> None:
    """Try the settings that only timm can judge.

    Raises:
        StudyError: an unknown optimiser or augmentation policy.
    """
    try:
        timm.optim.create_optimizer_v2(nn.Linear(1, 1), opt=training.optimizer, lr=training.lr)
    except Exception as error:
        known = ", ".join(("sgd", "adamw", "lamb", "lion", "nadamw"))
        raise StudyError(
            f"model {key!r}: training.optimizer: timm has no optimiser {training.optimizer!r}; for example {known}"
        ) from error
    try:
        _transform(training, DataConfig(input_size_px=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear"))
    except Exception as error:
        raise StudyError(
            f"model {key!r}: training.auto_augment: timm cannot read {training.auto_augment!r} ({error}); "
            "for example 'rand-m9-mstd0.5'"
        ) from error


def seed_everything(seed: int) -> None:
    """Seed the three generators that timm draws from: torch's, numpy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm's augmentations use the legacy generator
    random.seed(seed)


def train(
    model: nn.Module,
    images: LabelledImages,
    positions: Sequence[int],
    training: Training,
    data: DataConfig,
    *,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch,
) -> float:
    """Train in place: cross-entropy, linear warm-up and cosine decay to zero, one step of it per batch.

    Args:
        model: (B, 3, S, S) normalised images to (B, K) logits, on `device`; left in eval mode.
        images, positions: the training images.
        seed: of shuffling and augmentation.

    Returns:
        Mean training loss of the last epoch, in nats.

    Raises:
        TrainingDivergedError: the loss is no longer finite.
    """
    seed_everything(derive_seed(seed, "augmentation"))
    loader = DataLoader(
        TrainingImages(images, positions, _transform(training, data)),
        batch_size=min(training.batch_size, len(positions)),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(derive_seed(seed, "shuffle")),
    )
    task = timm.task.ClassificationTask(
        model, criterion_kwargs={"smoothing": training.label_smoothing}, device=device, verbose=False
    )
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=training.optimizer, lr=training.lr, weight_decay=training.weight_decay
    )
    scheduler = timm.scheduler.CosineLRScheduler(
        optimizer,
        t_initial=training.epochs * len(loader),
        warmup_t=round(training.warmup_epochs * len(loader)),
        warmup_lr_init=training.lr / 100,
        t_in_epochs=False,
    )
    step, mean_loss = 0, float("nan")
    for epoch in range(training.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for pixels, labels in loader:
            optimizer.zero_grad()
            loss = task(pixels.to(device), labels.to(device))["loss"]
            loss.backward()
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            total += loss.detach()
        mean_loss = total.item() / len(loader)
        if not np.isfinite(mean_loss):
            raise TrainingDivergedError(f"the training loss is {mean_loss} in epoch {epoch + 1}: lower training.lr")
        on_epoch(epoch + 1)
    model.eval()
    return mean_loss


def _transform(training: Training, data: DataConfig) -> Callable[..., torch.Tensor]:
    transform: Callable[..., torch.Tensor] = timm.data.create_transform(
        data.input_size_px,
        is_training=True,
        scale=training.crop_scale,
        ratio=training.crop_ratio,
        hflip=training.hflip_prob,
        color_jitter=None,
        auto_augment=training.auto_augment,
        re_prob=training.random_erasing_prob,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
    )
    return transform
