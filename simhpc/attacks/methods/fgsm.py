"""The fast gradient sign method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simhpc.attacks.balls import linf_bounds
from simhpc.attacks.method import Gradient, Method

if TYPE_CHECKING:
    from torch import Tensor


def fgsm(
    gradient: Gradient,
    clean: Tensor,
    labels: Tensor,
    unit: Tensor,  # noqa: ARG001 - it starts from the clean image
    *,
    eps: float,
    step_size: float,
    steps: int,  # noqa: ARG001 - there is one
) -> Tensor:
    """One step from the clean image: clean + step_size * sign(grad of CE), in the L-infinity ball and [0, 1].

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015, section 4, with step_size = eps.
    For arguments and result see `Method.attack`.
    """
    lower, upper = linf_bounds(clean, eps)
    return clean.add(gradient(clean, labels).sign_(), alpha=step_size).clamp_(lower, upper)


METHOD = Method(fgsm, norm="linf", steps=1, step_size_eps=1.0, takes_steps=False, is_random=False)
