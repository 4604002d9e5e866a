"""From clean 8-bit images to adversarial 8-bit images, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from simhpc.attacks.batches import fixed_size_batches
from simhpc.attacks.noise import uniform_noise
from simhpc.attacks.pgd import pgd_linf

OnBatch = Callable[[int, Tensor], None]
"""Called with the first position of a batch and its adversarial images, uint8 (B, 3, H, W)."""


class EpsilonExceededError(AssertionError):
    """A stored adversarial image left the ball: a bug, never to be written to a file."""


def attack_images(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    *,
    eps_255: int,
    step_size_eps: float,
    steps: int,
    batch_size: int,
    device: torch.device,
    finished: dict[int, Tensor],
    on_batch: OnBatch,
) -> Tensor:
    """PGD L-infinity from a random start in the ball, rounded to 8 bits.

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits, on `device`, frozen.
        images: uint8 (N, 3, H, W), clean.
        labels: int64 (N,).
        seeds: N seeds of the random starts.
        eps_255: radius in units of 1/255.
        step_size_eps: step size in units of eps.
        finished: what `on_batch` was given by an earlier call with the same arguments, by first
            position. Those batches are not attacked again, and are taken out of it: no image is in memory twice.

    Returns:
        uint8 (N, 3, H, W), within `eps_255` levels of `images`.

    Raises:
        EpsilonExceededError: a rounded image is further away than that.
    """
    eps = eps_255 / 255.0
    adversarial = torch.empty_like(images)
    for positions, count in fixed_size_batches(len(images), batch_size):
        first = int(positions[0])
        if first in finished:
            adversarial[first : first + count] = finished.pop(first)
            continue
        clean = images[positions].to(device).to(torch.float32).div_(255.0)
        noise = uniform_noise([seeds[position] for position in positions.tolist()], tuple(images.shape[1:]))
        attacked = pgd_linf(
            classifier,
            clean,
            labels[positions].to(device),
            clean + eps * noise.to(device),
            eps=eps,
            step_size=step_size_eps * eps,
            steps=steps,
        )
        # Rounded: truncation would move every pixel towards black and lose attacks.
        levels = attacked.mul_(255.0).round_().to(torch.uint8).cpu()[:count]
        adversarial[first : first + count] = levels
        check_within(images[first : first + count], levels, eps_255)
        on_batch(first, levels)
    check_within(images, adversarial, eps_255)
    return adversarial


def check_within(images: Tensor, adversarial: Tensor, eps_255: int) -> None:
    """Assert that no pixel of `adversarial` (uint8) is more than `eps_255` levels from `images` (uint8)."""
    for start in range(0, len(images), 256):
        part = slice(start, start + 256)
        furthest = (adversarial[part].to(torch.int16) - images[part].to(torch.int16)).abs().amax()
        if int(furthest) > eps_255:
            raise EpsilonExceededError(
                f"an adversarial pixel is {int(furthest)} levels from its clean one, eps is {eps_255}"
            )
