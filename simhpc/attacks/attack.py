"""From clean 8-bit images to adversarial 8-bit images, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from simhpc.attacks.ahead import read_ahead
from simhpc.attacks.batches import Target, at, fixed_size_batches, on_the_way, true_class_margin
from simhpc.attacks.gradient import InputGradient
from simhpc.attacks.levels import check_within, to_levels
from simhpc.attacks.method import Settings
from simhpc.attacks.noise import unit_ball_points


class NonFiniteGradientError(ArithmeticError):
    """A model's gradient is NaN or infinite: nothing can be attacked with it."""


OnBatch = Callable[[int, Tensor], None]
"""Called with the first position of a batch and its adversarial images, uint8 (B, 3, H, W)."""


@torch.no_grad()
def attack_images(
    target: Target,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[Sequence[int]],
    settings: Settings,
    *,
    batch_size: int,
    finished: dict[int, Tensor],
    on_batch: OnBatch,
) -> Tensor:
    """Attack images once for every restart, round to 8 bits, and keep of each image the version that fools best.

    Best is the smallest true-class margin of the stored image, hence one that fools wherever any does. With one
    restart there is nothing to choose, and nothing is spent on it.

    Args:
        images: uint8 (N, 3, H, W), clean, on the CPU.
        labels: int64 (N,), on the CPU.
        seeds: for each restart, N seeds of the random starts.
        finished: what `on_batch` was given by an earlier call with the same arguments, by first
            position. Those batches are not attacked again, and are taken out of it: no image is in memory twice.

    Returns:
        uint8 (N, 3, H, W), within `settings.eps_255` levels of `images`.

    Raises:
        NonFiniteGradientError: the model has no gradient to follow.
        EpsilonExceededError: a rounded image is further away than that.
    """
    method, eps = settings.method, settings.eps_255 / 255.0
    gradient = InputGradient(target.classifier, target.graph, is_in_parts=target.is_in_parts)
    adversarial = torch.empty_like(images)
    todo = [batch for batch in fixed_size_batches(len(images), batch_size) if int(batch[0][0]) not in finished]
    for first in sorted(finished):
        part = finished.pop(first)
        adversarial[first : first + len(part)] = part

    def starts() -> Iterator[Tensor]:
        for positions, _ in todo:
            for of_restart in seeds:
                own = [of_restart[i] for i in positions.tolist()]
                yield unit_ball_points(method.norm, own, tuple(images.shape[1:]))

    def attacked(levels: Tensor, clean: Tensor, truth: Tensor, unit: Tensor) -> Tensor:
        pixels = method.attack(
            gradient,
            clean,
            truth,
            target.moved(unit).to(memory_format=target.memory_format),
            eps=eps,
            step_size=settings.step_size_eps * eps,
            steps=settings.steps,
            **settings.arguments,
        )
        return to_levels(pixels, levels, method.norm, settings.eps_255)

    def margin(levels: Tensor, truth: Tensor) -> Tensor:
        return true_class_margin(target.classifier(target.pixels(levels)).float(), truth)

    def finish(first: int, count: int, arriving: Callable[[], Sequence[Tensor]]) -> None:
        made, was_finite = arriving()
        if not was_finite:
            raise NonFiniteGradientError("the model's input gradient is not finite: nothing can follow it")
        result = made[:count]
        check_within(images[first : first + count], result, method.norm, settings.eps_255)
        adversarial[first : first + count] = result
        on_batch(first, result)

    begun = deque[tuple[int, int, Callable[[], Sequence[Tensor]]]]()
    try:
        with closing(read_ahead(starts())) as units:
            for positions, count in todo:
                first, truth = int(positions[0]), target.moved(at(labels, positions))
                levels = target.moved(at(images, positions))
                clean = target.pixels(levels)
                best = attacked(levels, clean, truth, next(units))
                if len(seeds) > 1:
                    lowest = margin(best, truth)
                    for _ in seeds[1:]:
                        found = attacked(levels, clean, truth, next(units))
                        reached = margin(found, truth)
                        best = torch.where((reached < lowest)[:, None, None, None], found, best)
                        lowest = torch.minimum(reached, lowest)
                begun.append((first, count, on_the_way(best.contiguous(), gradient.was_finite())))
                if len(begun) == _batches_at_once(target.device):
                    finish(*begun.popleft())
    finally:
        # An interruption, too, comes while a batch is under way, which the next attempt need not attack again.
        while begun:
            finish(*begun.popleft())
    check_within(images, adversarial, method.norm, settings.eps_255)
    return adversarial


def _batches_at_once(device: torch.device) -> int:
    """A GPU is given a batch before what it made of the last one is looked at and written."""
    return 2 if device.type == "cuda" else 1
