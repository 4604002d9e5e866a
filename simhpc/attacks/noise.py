"""Random starts that belong to an image, not to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def uniform_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Uniform noise in [-1, 1), one independent stream per image.

    Args:
        seeds: one per image, below 2**63; torch's CPU generator takes 32 bits of it.
        shape: of one image.

    Returns:
        float32 (len(seeds), *shape) on the CPU, so that every device starts from the same point.
    """
    noise = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for row, seed in zip(noise, seeds, strict=True):
        generator.manual_seed(seed)
        row.uniform_(-1.0, 1.0, generator=generator)
    return noise
