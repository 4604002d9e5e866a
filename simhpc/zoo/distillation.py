"""Distillation: a student that learns from a teacher's answers as well as from labels (docs/method.md, section 4).

The losses are timm's (`timm.task`); what it lacks is here: hard distillation without a token, a teacher that sees the
student's images at an input size of its own, and answers that are asked for once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from simhpc.errors import ModelError
from simhpc.study import DataConfig, Distillation, Student, Training
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.geometry import scaled_to_input
from simhpc.zoo.resolve import resolve_model
from simhpc.zoo.timm_import import timm
from simhpc.zoo.training.data import LabelledImages, TrainingImages
from simhpc.zoo.training.recipe import MakeTask, make_transform


class Teacher(timm.task.DistillationTeacher):  # type: ignore[misc]
    """A frozen classifier in eval mode that is shown what the student is shown.

    The student's augmented image is resized to the teacher's input as it is, on the device: no second crop, so that
    both see the same part of it, and no rounding to 8 bits. Its normalisation is the teacher's own.

    Args:
        classifier: with whatever weights; may be in its fast form.
        student: complete data config, by which the images that arrive are normalised.
        memory_format: that the classifier's pixels should have.
    """

    student_mean: Tensor
    student_std: Tensor

    def __init__(self, classifier: PixelClassifier, student: DataConfig, memory_format: torch.memory_format) -> None:
        super().__init__(classifier)
        self._memory_format = memory_format
        for name, values in (("student_mean", student.mean), ("student_std", student.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    def normalize_input(self, input: Tensor, *_: Any) -> Tensor:
        """Pixels (B, 3, T, T) in [0, 1] of the student's normalised images (B, 3, S, S)."""
        # What erasing has filled with noise may lie outside, where no image does.
        pixels = (input * self.student_std + self.student_mean).clamp_(0.0, 1.0)
        return scaled_to_input(pixels, self.model.data).contiguous(memory_format=self._memory_format)


class Answers(timm.task.DistillationTeacher):  # type: ignore[misc]
    """A teacher that was asked before: its logits by number of the training image.

    Args:
        logits: float32 (N, K), on the CPU.
        labels: int64 (N,).
    """

    def __init__(self, logits: Tensor, labels: Tensor) -> None:
        nn.Module.__init__(self)
        self._logits, self._labels = logits, labels
        self._shown = labels[:0]

    def normalize_input(self, input: Tensor, *_: Any) -> Tensor:
        """The images that are shown now, which only `numbered` knows."""
        return self._shown.to(input.device)

    def forward(self, numbers: Tensor, **_: Any) -> Tensor:
        """(B,) numbers of images to (B, K) logits."""
        return self._logits[numbers.cpu()].to(numbers.device)

    def numbered(self, _: nn.Module, arguments: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """A forward pre-hook of a task that is given numbers of images in place of labels."""
        images, numbers = arguments
        self._shown = numbers
        return images, self._labels[numbers.cpu()].to(numbers.device)


class HardDistillationTask(timm.task.LogitDistillationTask):  # type: ignore[misc]
    """Cross-entropy with the class that the teacher answers, on the student's only head.

    Touvron et al., "Training data-efficient image transformers & distillation through attention" (ICML 2021), eq. 3.
    timm has it for a distillation token alone.
    """

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """`loss`, `output` (student's logits), `task_loss` and `kd_loss`, in nats."""
        logits = self.trainable_module(input)
        task_loss = self.criterion(logits, target)
        with torch.no_grad():
            answers = self.teacher(self.teacher.normalize_input(input)).argmax(dim=-1)
        kd_loss = functional.cross_entropy(logits, answers)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": logits, "task_loss": task_loss, "kd_loss": kd_loss}


def task_maker(teacher: Teacher | Answers, distillation: Distillation, data: DataConfig) -> MakeTask:
    """What a training makes its task with, in place of `timm.task.ClassificationTask`.

    With `alpha` the weight of the teacher, the loss is, in nats, meaned over the batch,

    - hard: (1 - alpha) CE(student, label) + alpha CE(student, argmax teacher)
    - soft: (1 - alpha) CE(student, label) + alpha T^2 KL(softmax(teacher / T), softmax(student / T))
      (Hinton et al. 2015)

    With a token the labels speak to the class token's head, and the teacher to the distillation token's.

    Args:
        teacher: a `Teacher`, on the device; or `Answers`: then numbers of images take the place of labels.
        data: the student's complete data config.
    """

    def make(
        student: Any, /, *, criterion_kwargs: Mapping[str, Any], device: torch.device, verbose: bool
    ) -> timm.task.TrainingTask:
        # timm asks the student for its normalisation; a network of one's own need not have any.
        student.pretrained_cfg = {
            **(getattr(student, "pretrained_cfg", None) or {}),
            "mean": data.mean,
            "std": data.std,
        }
        weights = {"task_loss_weight": 1.0 - distillation.alpha, "distill_loss_weight": distillation.alpha}
        kind: dict[str, Any] = {}
        if distillation.token:
            make_task, kind["distill_type"] = timm.task.TokenDistillationTask, distillation.kind
        elif distillation.kind == "hard":
            make_task = HardDistillationTask
        else:
            make_task = timm.task.LogitDistillationTask
        if distillation.temperature is not None:
            kind["temperature"] = distillation.temperature
        task = make_task(
            student, teacher, criterion_kwargs=criterion_kwargs, device=device, verbose=verbose, **weights, **kind
        )
        if isinstance(teacher, Answers):
            task.register_forward_pre_hook(teacher.numbered)
        return task

    return make


def check_student(student: Student, num_classes: int) -> None:
    """Try what only timm can judge of a student's architecture.

    Raises:
        ModelError: it cannot be built, or lacks the token that it is to be distilled with.
    """
    resolve_model(student.model, num_classes)
    if not student.distillation.token:
        return
    if student.model.timm is None or not _has_token(student.model.timm):
        raise ModelError(
            f"distillation {student.distillation.name!r}: {student.model.timm_name!r} has no distillation token; name "
            'an architecture that has one, as in timm = "deit_tiny_distilled_patch16_224", or set token = false'
        )


def _has_token(architecture: str) -> bool:
    with torch.device("meta"):
        return hasattr(timm.create_model(architecture), "set_distilled_training")


def ask(
    teacher: Teacher,
    images: LabelledImages,
    positions: Sequence[int],
    training: Training,
    data: DataConfig,
    batch_size: int,
) -> NDArray[np.float32]:
    """A teacher's logits (N, K) for training images that look alike each time, N = len(positions).

    Args:
        teacher: on the device.
        training, data: the student's recipe, without random views, and data config.
    """
    assert not training.random_views
    shown = TrainingImages(images, positions, make_transform(training, data), None)
    device = next(teacher.buffers()).device
    logits = []
    with torch.no_grad():
        for start in range(0, len(positions), batch_size):
            places = range(start, min(start + batch_size, len(positions)))
            batch = [shown[0, place, 0][0] for place in places]
            logits.append(teacher(teacher.normalize_input(torch.stack(batch).to(device))).float().cpu())
    return torch.cat(logits).numpy()
