"""The distill stage: one task per student of the study's distillations, writing `checkpoints/<student>.safetensors`.

A student is no model of the study: it is neither attacked nor shown anything. What it is for is its accuracy, against
how alike its teacher and its undistilled self are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import BadFileError, MissingInputError, ModelError
from simhpc.rundir import Run
from simhpc.stages import train
from simhpc.stages.task import Report, Task
from simhpc.store import answers, checkpoint, image_set
from simhpc.study import Student

if TYPE_CHECKING:
    from PIL import Image

    from simhpc.images import Source
    from simhpc.store.image_set import ImageSet
    from simhpc.zoo.distillation import Teacher
    from simhpc.zoo.training import LabelledImages, MakeTask, Processes

STAGE = "distill"


def tasks(run: Run) -> Sequence[Task]:
    """One task per student."""
    return [Task(STAGE, student.key) for student in run.study.students]


def is_done(run: Run, task: Task) -> bool:
    """Whether the checkpoint exists and was distilled as the study has it, from the teacher as it is now."""
    return accuracy(run, run.study.student(task.model)) is not None


def accuracy(run: Run, student: Student) -> float | None:
    """Of a student on the image set, a fraction; None if it is not distilled, or was from what has changed since."""
    try:
        metadata = checkpoint.metadata_of(run.dir.checkpoint(student.key))
        wanted = _identity(run, student)
    except (MissingInputError, BadFileError):
        return None
    is_its = all(metadata.get(name) == value for name, value in wanted.items())
    return float(metadata["accuracy"]) if is_its else None


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:
    """Distil one student and save it; see `train.train`.

    Students of one distillation start from the same weights and see the same images alike, whoever teaches them; the
    first of each teacher as the undistilled model of the study does, if that is trained here.

    Raises:
        MissingInputError: the teacher has not been trained yet.
        ModelError: the teacher answers other classes than the student.
    """
    student = run.study.student(task.model)
    try:
        identity = _identity(run, student)
    except MissingInputError:
        raise MissingInputError(
            f"student {student.key!r}: its teacher {student.teacher!r} is not trained yet: run the train stage first"
        ) from None
    repeat = (student.repeat,) if student.repeat > 1 else ()
    return train.train(
        run, student.model, identity, report, seed_names=(student.of, *repeat), lesson=_Lesson(run, student)
    )


def discard_partial(run: Run, task: Task) -> None:
    """Delete the states that unfinished attempts have left. A teacher's answers stay: other students may want them."""
    train.discard_states(run, task.model)


@dataclass(frozen=True)
class _Lesson:
    """A student's teacher, as a `train.Lesson`."""

    run: Run
    student: Student

    def begin(
        self, chosen: ImageSet, source: Source, positions: Sequence[int], processes: Processes
    ) -> tuple[MakeTask, LabelledImages, dict[str, str]]:
        from simhpc.zoo.distillation import Answers, task_maker

        student = self.student
        teacher, weights_sha256 = self._teacher(chosen)
        origin = {
            "distillation": json.dumps(student.settings, sort_keys=True),
            "teacher_weights_sha256": weights_sha256,
        }
        if not student.distillation.cache_teacher:
            taught: Teacher | Answers = teacher.to(processes.device)
            return task_maker(taught, student.distillation, student.model.data), source, origin
        import torch

        logits = self._answers(teacher, weights_sha256, source, positions, processes)
        places = np.full(len(source.labels), -1, dtype=np.int32)
        places[list(positions)] = np.arange(len(positions), dtype=np.int32)
        labels = torch.from_numpy(source.labels[list(positions)]).long()
        taught = Answers(torch.from_numpy(logits), labels)
        return task_maker(taught, student.distillation, student.model.data), _Numbered(source, places), origin

    def _teacher(self, chosen: ImageSet) -> tuple[Teacher, str]:
        """On the CPU, as fast as it can be had exactly; and the hash of its weights."""
        from simhpc.zoo import build
        from simhpc.zoo.distillation import Teacher
        from simhpc.zoo.fast import make_fast
        from simhpc.zoo.geometry import clean_view, to_pixels

        entry, student = self.run.study.model(self.student.teacher), self.student
        loaded = build.load(
            entry,
            num_classes=chosen.num_classes,
            trained=self.run.dir.checkpoint(entry.key),
            seed=self.run.study.seed,
        )
        # Two also where there is one: see `make_fast`.
        few = to_pixels(clean_view(chosen.images[np.arange(2) % len(chosen.images)], entry.data))
        fast = make_fast(loaded.classifier, few, is_portable=True)
        answered, expected = fast.classifier(few).shape[1], student.model.args.get("num_classes", chosen.num_classes)
        if answered != expected:
            raise ModelError(
                f"student {student.key!r} has {expected} outputs and its teacher {entry.key!r} {answered}: they must "
                "be the same classes; set args.num_classes, or choose another teacher"
            )
        return Teacher(fast.classifier, student.model.data, fast.memory_format), loaded.weights_sha256

    def _answers(
        self, teacher: Teacher, weights_sha256: str, source: Source, positions: Sequence[int], processes: Processes
    ) -> NDArray[np.float32]:
        """The teacher's logits (N, K): from the file of an earlier student, or asked for now."""
        model, settings = self.student.model, self.student.model.training
        assert settings is not None
        view = settings.model_dump(mode="json", include={"images", "crop_scale", "crop_ratio", "hflip_prob"})
        entry = self.run.study.model(self.student.teacher)
        shown = hashlib.sha256("\n".join(source.names[position] for position in positions).encode()).hexdigest()
        shown_as = [view, model.data.model_dump(mode="json"), entry.data.model_dump(mode="json")]
        images_sha256 = image_set.identity(self.run.dir.images)
        made_from = [weights_sha256, images_sha256, shown, shown_as]
        identity = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        path = self.run.dir.answers(entry.key, identity)
        try:
            return answers.load(path, identity=identity)
        except (MissingInputError, BadFileError):
            from simhpc.zoo.distillation import ask

            batch = self.run.study.resources.batch_size
            logits = ask(teacher.to(processes.device), source, positions, settings, model.data, batch)
            if processes.is_first:
                answers.save(path, logits, teacher=entry.key, identity=identity)
            return logits


@dataclass
class _Numbered:
    """A source whose labels are places among the training images (−1 of others)."""

    source: Source
    labels: NDArray[np.int32]

    def image(self, position: int) -> Image.Image:
        return self.source.image(position)


def _identity(run: Run, student: Student) -> dict[str, str]:
    """What tells its checkpoint from that of other settings, images, or another teacher.

    Raises:
        MissingInputError: the teacher has not been trained yet.
    """
    teacher = run.study.model(student.teacher)
    identity = {
        "model": student.key,
        "model_sha256": student.sha256(),
        "seed": str(run.study.seed),
        "teacher_model_sha256": teacher.sha256(),
    }
    # Analyses may be done elsewhere, where only results have been copied to.
    if run.dir.images.exists():
        identity["images_sha256"] = image_set.identity(run.dir.images)
    if teacher.is_trained_here and run.dir.images.exists():
        if not train.is_done(run, Task(train.STAGE, teacher.key)):
            raise MissingInputError(f"{run.dir.checkpoint(teacher.key)} is not there, or out of date")
        identity["teacher_weights_sha256"] = checkpoint.metadata_of(run.dir.checkpoint(teacher.key))["weights_sha256"]
    return identity
