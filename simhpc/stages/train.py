"""The train stage: one task per model with `weights = "train"`, writing `checkpoints/<model>.safetensors`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from simhpc.errors import BadFileError, ImageSourceError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages import progress, validity
from simhpc.stages.task import PROCESSES, Report, Task
from simhpc.store import checkpoint, image_set
from simhpc.store.step_log import StepLog

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from simhpc.images import Source
    from simhpc.store.image_set import ImageSet
    from simhpc.study import Model
    from simhpc.zoo.training import LabelledImages, MakeTask, Processes, States, Step, Trainer

STAGE = "train"
_SAVING_SHARE = 0.02
"""Of the time, at most, that goes into saving states."""
_Writer = Callable[[Sequence[dict[str, Any]]], None]


@dataclass(frozen=True)
class _Log:
    """Where the steps of a training are written.

    Attributes:
        write: adds rows.
        sync: puts them on the disk.
    """

    write: _Writer = lambda _: None
    sync: Callable[[], None] = lambda: None


def tasks(run: Run) -> Sequence[Task]:
    """One task per model that is trained here."""
    return [Task(STAGE, model.key) for model in run.study.models if model.is_trained_here]


def is_done(run: Run, task: Task) -> bool:
    """Whether the checkpoint exists and was trained from this study's entry, seed and image set."""
    try:
        metadata = checkpoint.metadata_of(run.dir.checkpoint(task.model))
        return all(metadata.get(name) == value for name, value in _identity(run, task.model).items())
    except (MissingInputError, BadFileError):
        return False


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:
    """Train one model and save it; see `train`."""
    model = run.study.model(task.model)
    return train(run, model, _identity(run, model.key), report, seed_names=(model.key,))


class Lesson(Protocol):
    """What a training has besides labels: a teacher."""

    def begin(
        self, chosen: ImageSet, source: Source, positions: Sequence[int], processes: Processes
    ) -> tuple[MakeTask, LabelledImages, dict[str, str]]:
        """Load what is needed.

        Returns:
            The task, the training images as it wants them labelled, and what else decides how the training goes.
        """
        ...


def train(
    run: Run,
    model: Model,
    identity: dict[str, str],
    report: Report,
    *,
    seed_names: Sequence[str | int],
    lesson: Lesson | None = None,
) -> dict[str, Any]:
    """Train one network and save it; go on from the last state that an earlier attempt saved.

    Of several processes that train it together (`zoo.training.processes`) all call this, and the first alone writes.

    Args:
        model: its entry, with a recipe.
        identity: what `is_done` compares.
        seed_names: what the seed is derived from, besides the study's.
        lesson: labels alone if there is none.

    Returns:
        `accuracy` on the image set (a fraction), `loss` of the last epoch (nats), `images` trained on; nothing in
        processes beside the first.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite; the message names the last good state.
    """
    from simhpc.stages.runtime import set_up_torch, settled

    device = set_up_torch(run.study)
    attempt = partial(_attempt, run, model, identity, report, device, seed_names, lesson)
    # Processes that fail do so at different moments, and those that are left would wait for ever.
    return attempt() if int(os.environ.get(PROCESSES, "1")) > 1 else settled(device, attempt, model.key)


def _attempt(
    run: Run,
    model: Model,
    identity: dict[str, str],
    report: Report,
    device: torch.device,
    seed_names: Sequence[str | int],
    lesson: Lesson | None,
) -> dict[str, Any]:
    """See `train`."""
    import torch

    from simhpc.attacks.batches import Target, predict
    from simhpc.images import check_classes, open_source, training_positions
    from simhpc.seeds import derive_seed
    from simhpc.stages.runtime import set_tf32, to_be_attacked
    from simhpc.zoo import build, training, weights
    from simhpc.zoo.classifier import PixelClassifier
    from simhpc.zoo.timm_import import timm

    settings = model.training
    assert settings is not None
    set_tf32(settings.precision == "tf32")
    chosen = image_set.load(run.dir.images)
    where = settings.images or run.study.images.source
    source = open_source(run.study.images, settings.images)
    check_classes(source.classes, chosen.classes, where)
    positions = training_positions(source, chosen)
    if not positions:
        raise ImageSourceError(f"{where}: every image is in the image set too, none is left to train on")
    used = hashlib.sha256("\n".join(source.names[position] for position in positions).encode()).hexdigest()
    origin = {
        **identity,
        "timm_name": model.timm_name,
        "training_images_sha256": used,
        "torch": str(torch.__version__),
        "timm": timm.__version__,
    }
    seed = derive_seed(run.study.seed, "train", *seed_names)

    with training.joined(device, int(os.environ.get(PROCESSES, "1"))) as processes:
        kind: MakeTask | None = None
        images: LabelledImages = source
        if lesson is not None:
            kind, images, more = lesson.begin(chosen, source, positions, processes)
            origin |= more
        states = training.States(
            run.dir.training_states(model.key), hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()
        )
        training.seed_everything(derive_seed(seed, "initialisation"))
        network = build.untrained(model, chosen.num_classes, to_train=True).to(processes.device)
        trainer = training.Trainer(
            network,
            images,
            positions,
            settings,
            model.data,
            num_classes=model.args.get("num_classes", chosen.num_classes),
            seed=seed,
            processes=processes,
            workers=run.study.resources.loader_workers,
            key=model.key,
            kind=kind,
        )
        _go_on(trainer, processes, states)
        report(trainer.done, trainer.steps, "step")
        with progress.held_back():
            loss = _train(run, model.key, trainer, processes, states, report)
        if not processes.is_first:
            return {}
        count, computed_on = processes.count, processes.device

    # As the study's models are shown images, for their accuracy is what this one's is compared with.
    set_tf32(run.study.precision == "tf32")
    shown = torch.from_numpy(to_be_attacked(run, model, chosen.images))
    labels = torch.from_numpy(chosen.labels).long()
    classifier = PixelClassifier(
        network,
        model.data,
        fits_inside=run.study.attack.grid == "canonical",
        in_bfloat16=run.study.precision == "bfloat16",
    )
    target = Target(classifier.to(computed_on), computed_on)
    pred, _ = predict(target, shown, labels, run.study.resources.batch_size)
    accuracy = float((pred == labels).double().mean())
    checkpoint.save(
        run.dir.checkpoint(model.key),
        weights.state_arrays(network),
        {
            **origin,
            "study_entry": json.dumps(model.model_dump(mode="json"), sort_keys=True),
            "num_classes": str(chosen.num_classes),
            "training_images": str(len(positions)),
            "accuracy": repr(accuracy),
            "final_loss_nats": repr(loss),
            "processes": str(count),
            "device": torch.cuda.get_device_name(computed_on) if computed_on.type == "cuda" else "cpu",
        },
    )
    discard_states(run, model.key)
    return {"accuracy": accuracy, "loss": loss, "images": len(positions)}


def _go_on(trainer: Trainer, processes: Processes, states: States) -> None:
    """Load the newest state, if there is one.

    Raises:
        BadFileError: it cannot be read any more, though it is there.
    """
    while begun := processes.of_first(states.last()):
        try:
            trainer.load(states.load(begun))
        except BadFileError:
            # Another copy of this task may have removed it since: it keeps the last few, and none when it is done.
            if processes.count > 1 or states.last() == begun:
                raise
        else:
            return


def discard_partial(run: Run, task: Task) -> None:
    """Delete the states that unfinished attempts have left."""
    discard_states(run, task.model)


def discard_states(run: Run, key: str) -> None:
    """Delete the saved states of a training."""
    # Another copy of the task may be writing there still.
    shutil.rmtree(run.dir.training_states(key), ignore_errors=True)


def _train(run: Run, key: str, trainer: Trainer, processes: Processes, states: States, report: Report) -> float:
    """Train to the end, logging every step and saving now and then. Being told to stop is heeded between two steps.

    Raises:
        Interrupted: told to stop; the state is saved.
        TrainingDivergedError: see `execute`.
    """
    from simhpc.zoo.training import TrainingDivergedError

    saved_s = looked_s = time.monotonic()
    saving_took_s = 0.0

    def save() -> None:
        nonlocal saved_s, saving_took_s
        began_s = time.monotonic()
        log.sync()
        states.save(trainer.done, trainer.state())
        saved_s = time.monotonic()
        saving_took_s = saved_s - began_s

    def on_steps(steps: Sequence[Step]) -> None:
        nonlocal looked_s
        now_s = time.monotonic()
        images_per_s = len(steps) * trainer.batch_size / max(now_s - looked_s, 1e-9)
        looked_s = now_s
        log.write([_row(step, images_per_s) for step in steps])
        # All stop at the same step, or those that do not would wait for the others for ever.
        is_told_to_stop = processes.any(progress.is_interrupted())
        is_due = now_s - saved_s >= max(run.study.resources.save_every_s, saving_took_s / _SAVING_SHARE)
        if processes.is_first and (is_told_to_stop or (is_due and trainer.done < trainer.steps)):
            save()
        report(trainer.done, trainer.steps, "step")
        if is_told_to_stop:
            raise progress.Interrupted

    with _logging(run, key, trainer.done) if processes.is_first else nullcontext(_Log()) as log:
        try:
            return trainer.run(on_steps)
        except TrainingDivergedError as error:
            good = states.path_of_last()
            where = f"the last good state is {good}" if good else "no state had been saved before"
            raise TrainingDivergedError(f"{error}; {where}") from None


@contextmanager
def _logging(run: Run, key: str, after_step: int) -> Iterator[_Log]:
    """The model's log, and TensorBoard's where it is installed."""
    with StepLog(run.dir.training_log(key), after_step=after_step) as log, ExitStack() as stack:
        writers: list[_Writer] = [log.write]
        # TensorBoard is imported here, and only to see whether it is there.
        with suppress(ImportError):
            from torch.utils.tensorboard import SummaryWriter

            board = SummaryWriter(str(run.dir.tensorboard(key)), purge_step=after_step + 1)
            stack.callback(board.close)
            writers.append(partial(_show, board))

        def write(rows: Sequence[dict[str, Any]]) -> None:
            for writer in writers:
                writer(rows)

        yield _Log(write, log.sync)


def _show(board: SummaryWriter, rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        for name in ("loss_nats", "lr", "grad_norm", "images_per_s"):
            if row[name] is not None:
                board.add_scalar(name, row[name], row["step"])


def _row(step: Step, images_per_s: float) -> dict[str, Any]:
    return {
        "step": step.number,
        "epoch": step.epoch,
        "loss_nats": step.loss_nats,
        "lr": step.lr,
        "grad_norm": None if math.isnan(step.grad_norm) else step.grad_norm,
        "images_per_s": round(images_per_s, 1),
    }


def _identity(run: Run, key: str) -> dict[str, str]:
    return {
        "model": key,
        "model_sha256": validity.model_sha256(run.study.model(key)),
        "images_sha256": image_set.identity(run.dir.images),
        "seed": str(run.study.seed),
    }
