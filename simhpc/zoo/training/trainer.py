"""The loop: steps of the optimiser, from any of them on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simhpc.errors import StudyError
from simhpc.seeds import derive_seed
from simhpc.study import DataConfig, Training
from simhpc.zoo.training import recipe
from simhpc.zoo.training.data import LabelledImages, Schedule, TrainingImages, batches
from simhpc.zoo.training.processes import Processes
from simhpc.zoo.training.seeding import seed_cpu, seed_everything

_GPU_LOOKS_EVERY = 10


class TrainingDivergedError(Exception):
    """The loss or a weight became NaN or infinite."""


@dataclass(frozen=True)
class Step:
    """One step of the optimiser that is over.

    Attributes:
        number: from 1 on.
        epoch: from 1 on.
        loss_nats: mean over the step's images, before the step.
        lr: learning rate of the step.
        grad_norm: Euclidean norm of its gradient before clipping; NaN without clipping, which alone needs it.
    """

    number: int
    epoch: int
    loss_nats: float
    lr: float
    grad_norm: float


OnSteps = Callable[[Sequence[Step]], None]
"""Called with the steps done since its last call; the trainer's `state` is then that of the last of them."""


class Trainer:
    """A training, at some step.

    Attributes:
        steps: there are in all.
        done: are over.
    """

    def __init__(
        self,
        network: nn.Module,
        images: LabelledImages,
        positions: Sequence[int],
        training: Training,
        data: DataConfig,
        *,
        num_classes: int,
        seed: int,
        processes: Processes,
        workers: int = 0,
        key: str = "",
        kind: recipe.MakeTask | None = None,
    ) -> None:
        """A training at its beginning.

        Args:
            network: (B, 3, S, S) normalised images to (B, K) logits, on the processes' device.
            images, positions: the training images.
            seed: of shuffling, augmentation, mixing and what the network itself draws.
            workers: see `data.batches`.
            key: of the model, for messages.
            kind: of task (`recipe.make_task`); None: classification.

        Raises:
            StudyError: the processes cannot share a step evenly, or there are too few images for one.
        """
        self._network, self._training, self._processes, self._seed = network, training, processes, seed
        self._parts = training.accumulation * processes.count
        self._schedule = Schedule(
            n_images=len(positions),
            epochs=training.epochs,
            batch_size=_batch_size(training, len(positions), processes.count, key),
            n_parts=self._parts,
            repetitions=training.repeated_augmentation,
            seed=seed,
        )
        self._images = TrainingImages(
            images, positions, recipe.make_transform(training, data), seed if training.random_views else None
        )
        self._workers = workers
        self._mixing = recipe.make_mixing(training, num_classes)
        self._task = recipe.make_task(network, training, processes.device, *([kind] if kind is not None else []))
        self._optimizer = recipe.make_optimizer(network, training)
        self._scheduler = recipe.make_scheduler(self._optimizer, training, self._schedule.steps_per_epoch)
        if processes.count > 1:
            self._task.prepare_distributed([processes.device.index] if processes.device.type == "cuda" else None)
        self.done = 0
        self._loss_sum = 0.0

    @property
    def steps(self) -> int:
        return self._schedule.steps

    @property
    def steps_per_epoch(self) -> int:
        return self._schedule.steps_per_epoch

    @property
    def batch_size(self) -> int:
        """Images per step, of all processes."""
        return self._schedule.batch_size

    def state(self) -> dict[str, Any]:
        """All that `load` needs: weights, their average, the optimiser, and where in the training this is.

        Raises:
            TrainingDivergedError: a weight is no longer finite.
        """
        weights = self._finite_weights()
        ema = self._task.get_trainable_module(ema=True)
        return {
            "step": self.done,
            "loss_sum_nats": self._loss_sum,
            "model": weights,
            "ema": None if ema is None else ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Be at the step of a state that a trainer with these very settings gave."""
        self.done, self._loss_sum = state["step"], state["loss_sum_nats"]
        self._network.load_state_dict(state["model"])
        if state["ema"] is not None:
            self._task.get_trainable_module(ema=True).module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.step_update(self.done)

    def run(self, on_steps: OnSteps, *, look_every: int | None = None) -> float:
        """Train to the end; the network is left in eval mode, with the averaged weights if there are any.

        Args:
            look_every: steps between calls of `on_steps`: for each the device has to be waited for. None: 1 on a CPU,
                10 on a GPU.

        Returns:
            Mean training loss of the last epoch, in nats.

        Raises:
            TrainingDivergedError: the loss is no longer finite, or a weight after the last step.
        """
        every = look_every or (_GPU_LOOKS_EVERY if self._processes.device.type == "cuda" else 1)
        mine = range(self._processes.rank, self._parts, self._processes.count)
        loader = batches(
            self._images,
            self._schedule.parts(self.done, mine),
            workers=self._workers,
            device=self._processes.device,
        )
        waiting: list[tuple[Tensor, float]] = []
        self._network.train()
        while self.done < self.steps:
            lr = max(group["lr"] for group in self._optimizer.param_groups)
            numbers = torch.zeros(2, device=self._processes.device)
            for turn, part in enumerate(mine):
                is_last = turn == len(mine) - 1
                pixels, labels = (each.to(self._processes.device, non_blocking=True) for each in next(loader))
                with nullcontext() if is_last else self._task.no_sync():
                    loss = self._loss(pixels, labels, part) / len(mine)
                    loss.backward()  # type: ignore[no-untyped-call]
                numbers[0] += loss.detach()
            numbers[1] = self._clip()
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.done += 1
            self._task.update_ema(step=self.done)
            self._scheduler.step_update(self.done)
            waiting.append((numbers, lr))
            if len(waiting) == every or self.done == self.steps:
                on_steps(self._look(waiting))
                waiting.clear()
        self._finite_weights()
        if (ema := self._task.get_trainable_module(ema=True)) is not None:
            self._network.load_state_dict(ema.module.state_dict())
        self._network.eval()
        return self._loss_sum / self.steps_per_epoch

    def _loss(self, pixels: Tensor, labels: Tensor, part: int) -> Tensor:
        # After the loader, which draws from the same generators when it works in this process.
        seed = derive_seed(self._seed, "step", self.done, part)
        seed_cpu(seed) if self._processes.device.type == "cpu" else seed_everything(seed)
        if self._mixing is not None:
            pixels, labels = self._mixing(pixels, labels)
        with self._autocast():
            loss: Tensor = self._task(pixels, labels)["loss"]
        return loss

    def _autocast(self) -> AbstractContextManager[object]:
        if self._training.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(self._processes.device.type, dtype=torch.bfloat16)

    def _clip(self) -> Tensor | float:
        if not self._training.clip_grad_norm:
            return math.nan
        return torch.nn.utils.clip_grad_norm_(self._task.get_clip_parameters(), self._training.clip_grad_norm)

    def _finite_weights(self) -> dict[str, Tensor]:
        """The network's weights and buffers.

        Raises:
            TrainingDivergedError: one is no longer finite.
        """
        weights: dict[str, Tensor] = self._network.state_dict()
        if wrong := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
            raise TrainingDivergedError(f"{wrong[0]} is no longer finite after step {self.done}: lower training.lr")
        return weights

    def _look(self, waiting: Sequence[tuple[Tensor, float]]) -> list[Step]:
        """Wait for the device and take the numbers of the last steps from it."""
        numbers = self._processes.mean(torch.stack([tensor for tensor, _ in waiting])).tolist()
        steps = []
        for number, ((loss, grad_norm), (_, lr)) in enumerate(
            zip(numbers, waiting, strict=True), start=self.done - len(waiting) + 1
        ):
            epoch, place = divmod(number - 1, self.steps_per_epoch)
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"the training loss is {loss} in step {number} of {self.steps} (epoch {epoch + 1}): lower "
                    "training.lr"
                )
            self._loss_sum = loss if place == 0 else self._loss_sum + loss
            steps.append(Step(number, epoch + 1, loss, lr, grad_norm))
        return steps


def _batch_size(training: Training, n_images: int, processes: int, key: str) -> int:
    """Images per step: the study's, or as many as there are if those are fewer."""
    who = f"model {key!r}: " if key else ""
    smallest = training.images_at_least(processes)
    if training.batch_size % smallest:
        raise StudyError(
            f"{who}training.batch_size = {training.batch_size} cannot be shared evenly by {processes} processes: make "
            f"it a multiple of {smallest}, or change nodes and tasks_per_node in the profile"
        )
    if n_images < smallest:
        raise StudyError(f"{who}{n_images} training image(s) are too few for a step of at least {smallest}")
    return min(training.batch_size, n_images // smallest * smallest)
