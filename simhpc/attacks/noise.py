"""Random starts that belong to an image, not to a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from simhpc.attacks.method import Norm

_WORTH_THREADS = 2**20
"""Values that take longer (1.5 ms) than to begin and end threads."""


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

    def draw(row: Tensor, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        if norm == "linf":
            row.uniform_(-1.0, 1.0, generator=generator)
            return 1.0
        distance: float = float(torch.rand((), generator=generator)) ** (1.0 / math.prod(shape))
        row.normal_(generator=generator)
        return distance

    if points.numel() < _WORTH_THREADS:
        distances = list(map(draw, points, seeds))
    else:
        # Torch draws with one, in which time a GPU takes a third of an attack's steps.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            distances = list(pool.map(draw, points, seeds))
    if norm == "l2":
        for row, distance in zip(points, distances, strict=True):
            row.mul_(distance / torch.linalg.vector_norm(row))
    return points
