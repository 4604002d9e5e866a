"""Running a model over many images in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from simhpc.attacks.gradient import StepGraph


@dataclass(frozen=True)
class Target:
    """A classifier, and how it wants its images.

    Attributes:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits, K >= 2, on `device`, frozen.
        memory_format: of the pixels that it is given.
        graph: a step of an attack on it, recorded.
        is_in_parts: whether parts of a batch are best computed side by side; on the CPU. See `parts`.
    """

    classifier: nn.Module
    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format
    graph: StepGraph | None = None
    is_in_parts: bool = False

    def moved(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU's on the device; on the way there, nothing waits for it."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def pixels(self, levels: Tensor) -> Tensor:
        """8-bit images on the device, uint8 (B, 3, H, W), as pixels in [0, 1]: float32 (B, 3, H, W)."""
        return levels.to(torch.float32, memory_format=self.memory_format).div_(255.0)


def fixed_size_batches(n: int, batch_size: int) -> Iterator[tuple[Tensor, int]]:
    """Positions in batches of one shape: the last batch is filled up with its own last image.

    One shape throughout keeps every kernel choice, and so every image's rounding, the same in all batches.

    Yields:
        int64 (batch_size,) positions, and how many of them count.
    """
    for start in range(0, n, batch_size):
        count = min(batch_size, n - start)
        yield torch.arange(start, start + batch_size).clamp_(max=n - 1), count


def at(tensor: Tensor, positions: Tensor) -> Tensor:
    """The rows of a CPU's tensor at the positions of one of `fixed_size_batches`; no copy where it is not filled up."""
    first, last = int(positions[0]), int(positions[-1])
    return tensor[first : last + 1] if last - first == len(positions) - 1 else tensor[positions]


def on_the_way(*tensors: Tensor) -> Callable[[], Sequence[Tensor]]:
    """Begin to copy tensors to the CPU; what is returned gives the copies, and waits for nothing that comes later."""
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return lambda: tensors
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record(torch.cuda.current_stream(device))

    def wait() -> Sequence[Tensor]:
        arrived.synchronize()
        return copies

    return wait


class NonFiniteLogitsError(ArithmeticError):
    """A model answered NaN or infinity: argmax would take that for a class."""


@torch.no_grad()
def predict(
    target: Target,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    view: Callable[[Tensor], Tensor] | None = None,
    on_logits: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Predicted classes and true-class margins.

    Args:
        images: uint8 (N, 3, H, W), on the CPU.
        labels: int64 (N,) in 0..K-1, on the CPU.
        view: what is done to the pixels of a batch on the device before the classifier sees them.
        on_logits: called with the logits of each batch in turn, float32 (B, K) on the device.

    Returns:
        int64 (N,) classes, and float32 (N,) margins: logit of the true class minus the largest of the others,
        never positive where the prediction is wrong.

    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    found = [(torch.empty(0, dtype=torch.int64), torch.empty(0), torch.tensor(True))]
    if len(images):
        batches = fixed_size_batches(len(images), batch_size)
        found = [_answer(target, images, labels, batch, view, on_logits) for batch in batches]
    # One look for all batches: none on the way waits for the device.
    classes, margins, finite = (
        torch.cat([part.view(-1) for part in parts]).cpu() for parts in zip(*found, strict=True)
    )
    if not finite.all():
        raise NonFiniteLogitsError("the model's logits are not finite; are its weights or its precision broken?")
    return classes, margins


def predict_probabilities(
    target: Target, images: Tensor, labels: Tensor, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`predict`, and the softmax of the logits as it is stored.

    Args:
        images: uint8 (N, 3, H, W), N >= 1, on the CPU.
        labels: int64 (N,) in 0..K-1, on the CPU.

    Returns:
        classes and margins as from `predict`, and float16 (N, K) probabilities on the CPU. They are rounded to 11
        bits; below 6e-5 in steps of 6e-8, so that a row sums to 1 within K * 3e-8 + 5e-4.

    Raises:
        NonFiniteLogitsError: a logit is NaN or infinite.
    """
    parts: list[Tensor] = []
    # To the CPU at once: on the device there is better use for the memory than ten thousand classes of all images.
    classes, margins = predict(
        target, images, labels, batch_size, on_logits=lambda logits: parts.append(logits.softmax(1).half().cpu())
    )
    return classes, margins, torch.cat(parts)


def _answer(
    target: Target,
    images: Tensor,
    labels: Tensor,
    batch: tuple[Tensor, int],
    view: Callable[[Tensor], Tensor] | None,
    on_logits: Callable[[Tensor], None] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Classes, margins, and whether all logits are finite, of one batch, on the device."""
    positions, count = batch
    truth = target.moved(labels[positions[:count]])
    pixels = target.pixels(target.moved(at(images, positions)))
    logits = target.classifier(pixels if view is None else view(pixels))[:count].float()
    if on_logits is not None:
        on_logits(logits)
    return logits.argmax(1), true_class_margin(logits, truth), torch.isfinite(logits).all()


def true_class_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the true class minus the largest other logit: (N, K) and int64 (N,) to (N,)."""
    true = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf")).amax(1)
    return true - others
