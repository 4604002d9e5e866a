"""Projected gradient descent in the L2 ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simhpc.attacks.balls import l2_norm, project_l2
from simhpc.attacks.method import Gradient, Method

if TYPE_CHECKING:
    from torch import Tensor


def pgd_l2(
    gradient: Gradient, clean: Tensor, labels: Tensor, unit: Tensor, *, eps: float, step_size: float, steps: int
) -> Tensor:
    """Untargeted PGD on the cross-entropy with steps of length `step_size` along the gradient, last iterate.

    x(0) = P(clean + eps * unit); x(t+1) = P(x(t) + step_size * g / ||g||_2). Madry et al., ICLR 2018, section 2.1
    and appendix; an image whose gradient is zero stays where it is. For arguments and result see `Method.attack`.
    """
    pixels = project_l2(clean + eps * unit, clean, eps)
    for _ in range(steps):
        direction = gradient(pixels, labels)
        # Of an image that the model is sure of the gradient may be 1e-25: its squares would be 0 in single precision.
        direction.div_(direction.abs().amax((1, 2, 3), keepdim=True).clamp_(min=1e-37))
        direction.div_(l2_norm(direction).clamp_(min=1e-12))
        pixels = project_l2(pixels.add_(direction, alpha=step_size), clean, eps)
    return pixels


METHOD = Method(pgd_l2, norm="l2", steps=50, step_size_eps=0.1)
