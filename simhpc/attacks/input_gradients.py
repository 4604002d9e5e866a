"""Input gradients as directions: each divided by its own norm, and compared with itself under a little noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from simhpc.attacks.attack import NonFiniteGradientError
from simhpc.attacks.batches import Target, at, fixed_size_batches
from simhpc.attacks.gradient import InputGradient


@dataclass(frozen=True)
class Directions:
    """Of N images.

    Attributes:
        unit: float16 (N, 3, H, W), gradients divided by their Euclidean norm; 0 where that is 0.
        norms: float32 (N,), those norms: change of the loss (nats) per unit of pixel values in [0, 1].
        noise_cosines: float32 (N,), cosine of the gradients at two noisy copies; NaN where one is 0.
    """

    unit: Tensor
    norms: Tensor
    noise_cosines: Tensor


def directions(
    target: Target,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[tuple[int, int]],
    noise_std: float,
    *,
    batch_size: int,
    on_batch: Callable[[int], None],
) -> Directions:
    """Gradients of the cross-entropy of the true class by the pixels, of single images.

    A noisy copy is the image plus normal noise, cut off at 0 and 1: the resize inside a model cuts there too, and would
    let no gradient through to a pixel beyond.

    Args:
        target: its classifier takes images of this size.
        images: uint8 (N, 3, H, W), on the CPU.
        labels: int64 (N,) in 0..K-1, on the CPU.
        seeds: of the noise of both copies, for each image.
        noise_std: standard deviation of the noise, in pixel values in [0, 1].
        on_batch: told how many images are done.

    Raises:
        NonFiniteGradientError: a gradient is NaN or infinite.
    """
    gradient = InputGradient(target.classifier, is_in_parts=target.is_in_parts)
    unit, norms, cosines = torch.empty(images.shape, dtype=torch.float16), torch.empty(len(images)), []
    for positions, count in fixed_size_batches(len(images), batch_size):
        first, truth = int(positions[0]), target.moved(at(labels, positions))
        pixels = target.pixels(target.moved(at(images, positions)))
        clean, lengths = _normalised(gradient(pixels, truth))
        copies = []
        for copy in range(2):
            noise = torch.stack([_normal(seeds[i][copy], images.shape[1:]) for i in positions.tolist()])
            noisy = pixels + noise_std * noise.to(target.device, memory_format=target.memory_format)
            copies.append(_normalised(gradient(noisy.clamp_(0.0, 1.0), truth)))
        (one, length_of_one), (two, length_of_two) = copies
        cosine = (one * two).flatten(1).sum(1, dtype=torch.float64)
        cosine[(length_of_one == 0) | (length_of_two == 0)] = torch.nan
        if not gradient.was_finite():
            raise NonFiniteGradientError("the model's input gradient is not finite: it has no direction")
        unit[first : first + count] = clean[:count].to(torch.float16).cpu()
        norms[first : first + count] = lengths[:count].float().cpu()
        cosines.append(cosine[:count].float().cpu())
        on_batch(first + count)
    return Directions(unit, norms, torch.cat(cosines) if cosines else torch.empty(0))


def _normalised(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, 3, H, W), and float64 (B,) lengths. Scaled twice: squares of what is small would be 0."""
    peaks = gradients.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = gradients / torch.where(peaks > 0, peaks, 1.0)
    lengths = torch.linalg.vector_norm(scaled, dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    unit = scaled / torch.where(lengths > 0, lengths, 1.0).float()
    return unit, (lengths * peaks).flatten()


def _normal(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise on the CPU, the same for every model and device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
