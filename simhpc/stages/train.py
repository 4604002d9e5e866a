"""The train stage: one task per model with `weights = "train"`, writing `checkpoints/<model>.safetensors`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from simhpc.errors import BadFileError, ImageSourceError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Report, Task
from simhpc.store import checkpoint, image_set

STAGE = "train"


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
    """Train one model and save it.

    Returns:
        `accuracy` on the image set (a fraction), `loss` of the last epoch (nats), `images` trained on.
    """
    import torch

    from simhpc.attacks.batches import Target, predict
    from simhpc.images import check_classes, open_source, training_positions
    from simhpc.seeds import derive_seed
    from simhpc.stages.runtime import set_up_torch
    from simhpc.zoo import build, training, weights
    from simhpc.zoo.classifier import PixelClassifier
    from simhpc.zoo.geometry import clean_view
    from simhpc.zoo.timm_import import timm

    device = set_up_torch(run.study)
    model = run.study.model(task.model)
    settings = model.training
    assert settings is not None
    chosen = image_set.load(run.dir.images)
    where = settings.images or run.study.images.source
    source = open_source(run.study.images, settings.images)
    check_classes(source.classes, chosen.classes, where)
    positions = training_positions(source, chosen)
    if not positions:
        raise ImageSourceError(f"{where}: every image is in the image set too, none is left to train on")
    seed = derive_seed(run.study.seed, "train", model.key)

    report(0, settings.epochs, "epoch")
    training.seed_everything(derive_seed(seed, "initialisation"))
    network = build.untrained(model, chosen.num_classes).to(device)
    try:
        loss = training.train(
            network,
            source,
            positions,
            settings,
            model.data,
            seed=seed,
            device=device,
            on_epoch=lambda done: report(done, settings.epochs, "epoch"),
        )
        images, labels = (
            torch.from_numpy(clean_view(chosen.images, model.data)),
            torch.from_numpy(chosen.labels).long(),
        )
        target = Target(PixelClassifier(network, model.data).to(device), device)
        pred, _ = predict(target, images, labels, run.study.resources.batch_size)
        accuracy = float((pred == labels).double().mean())
        used = hashlib.sha256("\n".join(source.names[position] for position in positions).encode()).hexdigest()
        checkpoint.save(
            run.dir.checkpoint(model.key),
            weights.state_arrays(network),
            {
                **_identity(run, model.key),
                "timm_name": model.timm_name,
                "study_entry": json.dumps(model.model_dump(mode="json"), sort_keys=True),
                "num_classes": str(chosen.num_classes),
                "training_images": str(len(positions)),
                "training_images_sha256": used,
                "accuracy": repr(accuracy),
                "final_loss_nats": repr(loss),
                "torch": str(torch.__version__),
                "timm": timm.__version__,
            },
        )
    except Interrupted:
        report(0, settings.epochs, "epoch")  # a next attempt begins again
        raise
    return {"accuracy": accuracy, "loss": loss, "images": len(positions)}


def discard_partial(run: Run, task: Task) -> None:
    """An interrupted training leaves nothing behind."""


def _identity(run: Run, key: str) -> dict[str, str]:
    return {
        "model": key,
        "model_sha256": run.study.model(key).sha256(),
        "images_sha256": image_set.identity(run.dir.images),
        "seed": str(run.study.seed),
    }
