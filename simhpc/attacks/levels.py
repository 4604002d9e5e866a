"""From attacked pixels to the 8-bit images that are stored, still within eps of the clean ones."""

from __future__ import annotations

import torch
from torch import Tensor

from simhpc.attacks.method import Norm

_CHECKED_AT_ONCE = 16
"""Images: what is computed of them stays in the cache."""


class EpsilonExceededError(AssertionError):
    """A stored adversarial image left the ball: a bug, never to be written to a file."""


def to_levels(pixels: Tensor, clean: Tensor, norm: Norm, eps_255: int) -> Tensor:
    """Pixels rounded to the nearest of 256 levels; in an L2 ball, moved back into it where rounding has left it.

    Truncation would move every pixel towards black and lose attacks. Rounding may lengthen an L2 distance: then the
    values that rounding moved furthest from the clean image go to the level below instead, as few as it takes.

    Args:
        pixels: float32 (B, 3, H, W) in [0, 1], within eps of `clean`.
        clean: uint8 (B, 3, H, W), on the same device.

    Returns:
        uint8 (B, 3, H, W).
    """
    levels = (pixels * 255.0).round_()
    if norm == "linf":
        return levels.to(torch.uint8)
    return _back_into_l2(pixels * 255.0 - clean, levels - clean, eps_255).add_(clean).to(torch.uint8)


def _back_into_l2(exact: Tensor, rounded: Tensor, eps_255: int) -> Tensor:
    """Offsets in levels: of the rounded ones, some a level closer to zero, so that their norm is at most eps_255."""
    exact, distance = exact.abs().flatten(1), rounded.abs().flatten(1)
    # How much further than it should be; a value that was not rounded up can gain nothing by going down.
    excess = distance - exact
    order = torch.where((excess > 0) & (distance > 0), excess, -1.0).argsort(stable=True, dim=1, descending=True)
    # In whole numbers: their sums are exact, and the same in any order, in which a GPU may add others.
    sorted_distance = distance.gather(1, order).long()
    gained = torch.where(sorted_distance > 0, 2 * sorted_distance - 1, 0)
    needed = sorted_distance.square().sum(1, keepdim=True) - eps_255**2
    is_moved = (gained.cumsum(1) - gained < needed).to(distance.dtype)
    moved = torch.zeros_like(distance).scatter_(1, order, is_moved)
    return ((distance - moved).clamp_(min=0.0) * rounded.flatten(1).sign()).view_as(rounded)


def check_within(images: Tensor, adversarial: Tensor, norm: Norm, eps_255: int) -> None:
    """Assert that every image of `adversarial` (uint8) is within `eps_255` levels of its own in `images` (uint8).

    Raises:
        EpsilonExceededError: one is not.
    """
    for start in range(0, len(images), _CHECKED_AT_ONCE):
        one, other = (part[start : start + _CHECKED_AT_ONCE] for part in (images, adversarial))
        # In 8 bits, as a GPU waits for this.
        distance = torch.maximum(one, other).sub_(torch.minimum(one, other))
        if norm == "linf":
            furthest = float(distance.amax())
        else:
            furthest = float(distance.to(torch.int32).square_().flatten(1).sum(1).amax()) ** 0.5
        if furthest > eps_255:
            raise EpsilonExceededError(
                f"an adversarial image is {furthest:g} levels ({norm}) from its clean one, eps is {eps_255}"
            )
