"""Projected gradient descent in the L-infinity ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def pgd_linf(
    classifier: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Untargeted PGD on the cross-entropy, last iterate.

    x(0) = start projected; x(t+1) = P(x(t) + step_size * sign(grad of CE(classifier(x(t)), label))), with P
    the projection on {|x - pixels| <= eps} and [0, 1]. Madry et al., "Towards Deep Learning Models Resistant
    to Adversarial Attacks", ICLR 2018, eq. 2.

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits; its parameters should be frozen.
        pixels: float32 (B, 3, H, W) in [0, 1], the clean images.
        labels: int64 (B,), true classes.
        start: float32 (B, 3, H, W), the first iterate.
        eps: radius, in pixel units of [0, 1].
        step_size: in the same units.
        steps: number of gradient steps; 0 returns the projected start.

    Returns:
        float32 (B, 3, H, W) in [0, 1], within eps of `pixels`, without gradient.
    """
    lower = (pixels - eps).clamp_(min=0.0)
    upper = (pixels + eps).clamp_(max=1.0)
    adversarial = start.clone().clamp_(lower, upper)
    for _ in range(steps):
        adversarial.requires_grad_(True)
        # Summed, so that an image's gradient does not depend on its batch; parameters get none at all.
        loss = functional.cross_entropy(classifier(adversarial), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        with torch.no_grad():
            adversarial = adversarial.detach().add_(gradient.sign_(), alpha=step_size).clamp_(lower, upper)
    return adversarial.detach()
