"""The momentum iterative fast gradient sign method, which was made to transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simhpc.attacks.balls import linf_bounds
from simhpc.attacks.method import Gradient, Method

if TYPE_CHECKING:
    from torch import Tensor


def mi_fgsm(
    gradient: Gradient,
    clean: Tensor,
    labels: Tensor,
    unit: Tensor,  # noqa: ARG001 - it starts from the clean image
    *,
    eps: float,
    step_size: float,
    steps: int,
    decay: float = 1.0,
) -> Tensor:
    """m(t+1) = decay * m(t) + g / ||g||_1; x(t+1) = P(x(t) + step_size * sign(m(t+1))), from the clean image.

    Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, algorithm 1 (there: 10 steps of eps / 10,
    decay 1). For the other arguments and the result see `Method.attack`.

    Args:
        decay: of the momentum.
    """
    lower, upper = linf_bounds(clean, eps)
    pixels, momentum = clean.clone(), clean.new_zeros(()).expand_as(clean)
    for _ in range(steps):
        direction = gradient(pixels, labels)
        length = direction.abs().sum((1, 2, 3), keepdim=True).clamp_(min=1e-30)
        momentum = direction.div_(length).add_(momentum, alpha=decay)
        pixels.add_(momentum.sign(), alpha=step_size).clamp_(lower, upper)
    return pixels


METHOD = Method(mi_fgsm, norm="linf", steps=10, step_size_eps=0.1, is_random=False)
