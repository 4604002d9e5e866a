"""Running a model or an attack over many images in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def fixed_size_batches(n: int, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Positions in batches of one shape: the last batch is filled up with its own last image.

    One shape throughout keeps every kernel choice, and so every image's rounding, the same in all batches.

    Yields:
        int64 (batch_size,) positions, and how many of them count.
    """
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        yield torch.arange(start, start + batch_size).clamp_(max=n - 1), count


class NonFiniteLogitsError(ArithmeticError):
    """A model answered NaN or infinity: argmax would take that for a class."""


@torch.no_grad()
def predict(
    classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Predicted classes and true-class margins.

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits, K >= 2, on `device`.
        images: uint8 (N, 3, H, W), on the CPU.
        labels: int64 (N,) in 0..K-1, on the CPU.

    Returns:
        int64 (N,) classes, and float32 (N,) margins: logit of the true class minus the largest of the others,
        never positive where the prediction is wrong.

    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    classes, margins = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for positions, count in fixed_size_batches(len(images), batch_size):
        pixels = images[positions].to(device).to(torch.float32).div_(255.0)
        logits = classifier(pixels).float().cpu()[:count]
        if not torch.isfinite(logits).all():
            raise NonFiniteLogitsError("the model's logits are not finite; are its weights or its precision broken?")
        classes.append(logits.argmax(1))
        margins.append(true_class_margin(logits, labels[positions[:count]]))
    return torch.cat(classes), torch.cat(margins)


def true_class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus the largest other logit: (N, K) and int64 (N,) to (N,)."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return true - others
