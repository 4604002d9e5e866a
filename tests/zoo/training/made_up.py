"""Made-up images and a small network for the tests of training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from simhpc.study import DataConfig, Training
from simhpc.zoo.training import Processes, Trainer

DATA = DataConfig(input_size_px=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear", crop_pct=1.0)
CPU = Processes(torch.device("cpu"))
CLASSES = 4
# Every source of random numbers at once.
EVERYTHING = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing_prob": 0.5,
    "random_erasing_mode": "pixel",
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "repeated_augmentation": 2,
    "label_smoothing": 0.1,
    "ema_decay": 0.8,
    "clip_grad_norm": 0.5,
}
PLAIN = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "hflip_prob": 0.0}


class Noise:
    """Images of noise, with labels in turn."""

    def __init__(self, n: int = 36, size_px: int = 8) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8)
        self.labels = (np.arange(n) % CLASSES).astype(np.int32)

    def image(self, position: int) -> Image.Image:
        return Image.fromarray(self.pixels[position])


def network(dropout: float = 0.3, norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(6 * 36, CLASSES),
    )


def trainer(net: nn.Module, processes: Processes = CPU, n: int = 36, workers: int = 0, **settings: object) -> Trainer:
    training = Training.model_validate({"epochs": 3, "batch_size": 8, "lr": 1e-2, **settings})
    source = Noise(n)
    return Trainer(
        net, source, range(n), training, DATA, num_classes=CLASSES, seed=5, processes=processes, workers=workers
    )
