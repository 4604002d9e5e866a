"""Which images each step of a training sees, and how they are augmented: a function of (seed, epoch, image) alone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simhpc.seeds import derive_seed
from simhpc.zoo.training.seeding import seed_cpu

Sample = tuple[int, int, int]
"""(epoch, place among the training images, number of its repetition)."""
# What batch systems announce an end with; loader workers belong to the process that heeds it.
_NOT_FOR_WORKERS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


class LabelledImages(Protocol):
    """What training needs of an image source (`simhpc.images.Source`)."""

    labels: NDArray[np.int32]

    def image(self, position: int) -> Image.Image: ...


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Some images of a source with a random transform, decoded on use.

    Args:
        seed: of the transform, with the sample; None: an image is to look alike each time. timm places the crop of one
            whose sides differ by a pixel at random however little it is asked to.
    """

    def __init__(
        self, source: LabelledImages, positions: Sequence[int], transform: Callable[..., Tensor], seed: int | None
    ) -> None:
        self._source = source
        self._positions = positions
        self._transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        epoch, place, repetition = sample
        position = self._positions[place]
        image = self._source.image(position)
        if self._seed is None:
            seed_cpu(derive_seed(0, "view", position))
        else:
            seed_cpu(derive_seed(self._seed, "augmentation", epoch, position, repetition))
        return self._transform(image), int(self._source.labels[position])


@dataclass(frozen=True)
class Schedule:
    """The images of every step.

    Attributes:
        n_images: there are.
        epochs: passes over them.
        batch_size: images per step; what does not fill a batch waits for another epoch.
        n_parts: equal parts that a step is divided into: accumulated passes times processes.
        repetitions: of each image within an epoch, which then shows only n_images / repetitions of them.
        seed: of the order.
    """

    n_images: int
    epochs: int
    batch_size: int
    n_parts: int
    repetitions: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return self.n_images // self.batch_size

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def order(self, epoch: int) -> list[Sample]:
        """The samples of an epoch, shuffled; repetitions of one image follow each other, so that parts share them."""
        shuffled = np.random.default_rng(derive_seed(self.seed, "shuffle", epoch)).permutation(self.n_images)
        places = np.repeat(shuffled, self.repetitions)[: self.n_images]
        return [(epoch, int(place), number % self.repetitions) for number, place in enumerate(places)]

    def parts(self, first_step: int, mine: Sequence[int]) -> Iterator[list[Sample]]:
        """Of every step from `first_step` on, the parts with the numbers `mine`, one after the other.

        Which images are in a part depends on `n_parts` alone, and not on how many processes share them.
        """
        held_epoch, order = -1, list[Sample]()
        for step in range(first_step, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != held_epoch:
                held_epoch, order = epoch, self.order(epoch)
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            for number in mine:
                yield batch[number :: self.n_parts]


def batches(
    images: TrainingImages, parts: Iterator[list[Sample]], *, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented images float32 (B, 3, S, S), normalised, and labels int64 (B,), part by part.

    Args:
        workers: processes that make them, ahead of their use; 0: this one, on use.
        device: they will be moved to.
    """
    loader = DataLoader(
        images,
        batch_sampler=parts,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        # Sources hold functions, which only a fork can hand on.
        multiprocessing_context="fork" if workers else None,
    )
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
