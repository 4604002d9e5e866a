"""Projections on the balls around clean images, within [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def linf_bounds(clean: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of every pixel in the L-infinity ball: clamping to them is the projection."""
    return (clean - eps).clamp_(min=0.0), (clean + eps).clamp_(max=1.0)


def l2_norm(images: Tensor) -> Tensor:
    """L2 norm of each image, (B, 3, H, W) to (B, 1, 1, 1)."""
    return images.square().sum((1, 2, 3), keepdim=True).sqrt_()


def project_l2(pixels: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Pixels scaled back to the L2 ball of radius eps around `clean`, then clamped to [0, 1].

    Clamping moves no pixel away from a clean one in [0, 1], so both hold afterwards.
    """
    offset = pixels - clean
    scale = (eps / l2_norm(offset).clamp_(min=1e-12)).clamp_(max=1.0)
    return offset.mul_(scale).add_(clean).clamp_(0.0, 1.0)
