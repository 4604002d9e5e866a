"""Auto-PGD on the cross-entropy, in the L-infinity ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simhpc.attacks.balls import linf_bounds
from simhpc.attacks.method import Gradient, Method

if TYPE_CHECKING:
    from torch import Tensor

_MOMENTUM = 0.75
"""The paper's alpha."""


def apgd_ce(
    gradient: Gradient,
    clean: Tensor,
    labels: Tensor,
    unit: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    rho: float = 0.75,
) -> Tensor:
    """PGD with momentum that halves an image's step, and returns to its best point, when it no longer gets on.

    Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML 2020, algorithm 1 with the check points of section 3.2. Started as in the authors' code: at
    `unit` scaled to the border of the ball, from which they take one more gradient than they make steps; here the
    last of those, which nothing uses, is left out. For the other arguments see `Method.attack`.

    Args:
        step_size: the first one; the paper's is 2 * eps.
        rho: share of the steps since the last check point that must have increased the loss.

    Returns:
        of each image, the visited point with the largest loss.
    """
    lower, upper = linf_bounds(clean, eps)
    largest = unit.abs().amax((1, 2, 3), keepdim=True).clamp_(min=1e-12)
    pixels = (clean + unit * (eps / largest)).clamp_(lower, upper)
    if steps == 0:
        return pixels
    direction, loss = gradient.with_loss(pixels, labels)
    before, best, best_direction, best_loss = pixels, pixels, direction, loss
    losses = [loss]
    sizes = clean.new_full((len(clean), 1, 1, 1), step_size)
    best_at_check, was_halved = best_loss, best_loss == best_loss
    ends, last_check = set(check_points(steps)), 0
    for step in range(1, steps + 1):
        ahead = (pixels + sizes * direction.sign()).clamp_(lower, upper)
        share = _MOMENTUM if step > 1 else 1.0
        moved = pixels + (ahead - pixels) * share + (pixels - before) * (1.0 - share)
        before, pixels = pixels, moved.clamp_(lower, upper)
        if step < steps:
            direction, loss = gradient.with_loss(pixels, labels)
        else:
            loss = gradient.loss(pixels, labels)
        losses.append(loss)
        is_better = loss > best_loss
        best, best_loss = _choose(is_better, pixels, best), loss.where(is_better, best_loss)
        best_direction = _choose(is_better, direction, best_direction)
        if step in ends and step < steps:
            recent = range(last_check + 1, step + 1)
            n_up = sum((losses[i] > losses[i - 1]).to(loss.dtype) for i in recent)
            is_stuck = ~was_halved & (best_loss <= best_at_check)
            halved = (n_up <= rho * len(recent)) | is_stuck
            sizes = sizes.where(~halved[:, None, None, None], sizes / 2.0)
            pixels, direction = _choose(halved, best, pixels), _choose(halved, best_direction, direction)
            best_at_check, was_halved, last_check = best_loss, halved, step
    return best


def check_points(steps: int) -> list[int]:
    """After how many steps the step size is looked at: the paper's ceil(p(j) * steps), whole as in the authors' code.

    p(0) = 0, p(1) = 0.22, p(j+1) = p(j) + max(p(j) - p(j-1) - 0.03, 0.06).
    """
    interval, decrease, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found = []
    at = interval
    while at <= steps:
        found.append(at)
        interval = max(interval - decrease, shortest)
        at += interval
    return found


def _choose(which: Tensor, these: Tensor, those: Tensor) -> Tensor:
    """Of each image, one or the other: (B,) and twice (B, 3, H, W)."""
    return these.where(which[:, None, None, None], those)


METHOD = Method(apgd_ce, norm="linf", steps=50, step_size_eps=2.0)
