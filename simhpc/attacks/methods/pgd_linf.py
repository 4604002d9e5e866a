"""Projected gradient descent in the L-infinity ball: the paper's attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simhpc.attacks.balls import linf_bounds
from simhpc.attacks.method import Gradient, Method

if TYPE_CHECKING:
    from torch import Tensor


def pgd_linf(
    gradient: Gradient, clean: Tensor, labels: Tensor, unit: Tensor, *, eps: float, step_size: float, steps: int
) -> Tensor:
    """Untargeted PGD on the cross-entropy, last iterate.

    x(0) = P(clean + eps * unit); x(t+1) = P(x(t) + step_size * sign(grad of CE(model(x(t)), label))), with P the
    projection on {|x - clean| <= eps} and [0, 1]. Madry et al., "Towards Deep Learning Models Resistant to
    Adversarial Attacks", ICLR 2018, eq. 2. For arguments and result see `Method.attack`.
    """
    lower, upper = linf_bounds(clean, eps)
    pixels = (clean + eps * unit).clamp_(lower, upper)
    for _ in range(steps):
        pixels.add_(gradient(pixels, labels).sign_(), alpha=step_size).clamp_(lower, upper)
    return pixels


METHOD = Method(pgd_linf, norm="linf", steps=50, step_size_eps=0.1)
