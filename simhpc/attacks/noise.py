"""Random starts that belong to an image, not to a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from simhpc.attacks.method import Norm


def unit_ball_points(norm: Norm, seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Uniformly distributed points of the unit ball, one independent stream per image.

    L2: a normal direction, at the distance U^(1/d) of a uniform U in d dimensions.

    Args:
        norm: `linf` (each value uniform in [-1, 1)) or `l2`.
        seeds: one per image, below 2**63; torch's CPU generator takes 32 bits of it.
        shape: of one image.

    Returns:
        float32 (len(seeds), *shape) on the CPU, so that every device starts from the same point.
    """
    points = torch.empty(len(seeds), *shape)
    generator = torch.Generator()
    for row, seed in zip(points, seeds, strict=True):
        generator.manual_seed(seed)
        if norm == "linf":
            row.uniform_(-1.0, 1.0, generator=generator)
        else:
            distance = float(torch.rand((), generator=generator)) ** (1.0 / math.prod(shape))
            row.normal_(generator=generator).mul_(distance / torch.linalg.vector_norm(row))
    return points
