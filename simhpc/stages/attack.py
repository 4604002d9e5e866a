"""The attack stage: one task per model, writing `adversarial/<model>.h5`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simhpc.errors import BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages.task import Report, Task
from simhpc.stages.validity import adversarial_header
from simhpc.store import attack_parts

if TYPE_CHECKING:
    import numpy as np

    from simhpc.store.provenance import Provenance

STAGE = "attack"


def tasks(run: Run) -> Sequence[Task]:
    """One task per model."""
    return [Task(STAGE, model.key) for model in run.study.models]


def is_done(run: Run, task: Task) -> bool:
    """Whether the model's adversarial set exists, is whole, and belongs to this run."""
    try:
        adversarial_header(run, run.study.model(task.model))
    except (MissingInputError, BadFileError):
        return False
    return True


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:
    """Attack one model on the images that it classifies correctly; go on from the batches of earlier attempts.

    Returns:
        `accuracy` on the clean images and `self_fooling` of the stored adversarial ones (fractions; the
        latter NaN if there are none), `images` attacked.
    """
    import numpy as np
    import torch
    from torch import Tensor

    from simhpc.attacks.attack import attack_images
    from simhpc.attacks.batches import predict
    from simhpc.seeds import derive_seed
    from simhpc.stages.runtime import provenance, set_up_torch, to_float16
    from simhpc.store import image_set
    from simhpc.store.adversarial import AdversarialSet
    from simhpc.zoo import build
    from simhpc.zoo.geometry import clean_view

    device = set_up_torch(run.study.resources)
    model, settings, batch_size = (
        run.study.model(task.model),
        run.study.attack,
        run.study.resources.batch_size,
    )
    chosen = image_set.load(run.dir.images)
    fits_inside = settings.grid == "canonical"
    loaded = build.load(
        model, num_classes=chosen.num_classes, trained=run.dir.checkpoint(model.key), fits_inside=fits_inside
    )
    classifier = loaded.classifier.to(device)
    clean = torch.from_numpy(chosen.images if fits_inside else clean_view(chosen.images, model.data))
    labels = torch.from_numpy(chosen.labels).long()

    clean_pred, clean_margin = predict(classifier, clean, labels, batch_size, device)
    index = torch.nonzero(clean_pred == labels).squeeze(1)
    origin = provenance(run, model, loaded.weights_sha256, device)
    parts = attack_parts.AttackParts(run.dir.attack_parts(model.key), _identity(origin, batch_size, index.numpy()))
    kept = {first: torch.from_numpy(images) for first, images in parts.load().items()}
    done = sum(len(images) for images in kept.values())
    report(done, len(index), "image")

    def keep(first: int, images: Tensor) -> None:
        nonlocal done
        parts.save(first, images.numpy())
        done += len(images)
        report(done, len(index), "image")

    adversarial = attack_images(
        classifier,
        clean[index],
        labels[index],
        [derive_seed(run.study.seed, "noise", model.key, int(position)) for position in index],
        eps_255=settings.eps_255,
        step_size_eps=settings.step_size_eps,
        steps=settings.steps,
        batch_size=batch_size,
        device=device,
        finished=kept,
        on_batch=keep,
    )
    # What counts is the image that others will be shown: the stored one.
    adv_pred, _ = predict(classifier, adversarial, labels[index], batch_size, device)
    n_fooled = int((adv_pred != labels[index]).sum())
    AdversarialSet(
        provenance=origin,
        images=adversarial.numpy(),
        index=index.numpy().astype(np.int32),
        clean_pred=clean_pred.numpy().astype(np.int32),
        clean_margin=to_float16(clean_margin),
        adv_pred=adv_pred.numpy().astype(np.int32),
        n_fooled=n_fooled,
    ).save(run.dir.adversarial(model.key))
    discard_partial(run, task)
    return {
        "accuracy": len(index) / len(labels),
        "self_fooling": n_fooled / len(index) if len(index) else float("nan"),
        "images": len(index),
    }


def discard_partial(run: Run, task: Task) -> None:
    """Delete what unfinished attempts have left."""
    attack_parts.remove(run.dir.attack_parts(task.model))


def _identity(origin: Provenance, batch_size: int, index: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """Of everything that a batch of the attack depends on: an attempt on other hardware starts afresh."""
    decides = [origin.attributes(), batch_size, index.tolist()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
