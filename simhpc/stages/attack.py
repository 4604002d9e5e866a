"""The attack stage: one task per model, writing `adversarial/<model>.h5`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simhpc import __version__
from simhpc.errors import BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages.task import Report, Task
from simhpc.stages.validity import adversarial_header
from simhpc.store import attack_parts

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from simhpc.stages.runtime import Victim
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

    Raises:
        ModelError: it is far less accurate than the study expects; see `check_accuracy`.
    """
    import torch

    from simhpc.attacks.backoff import with_backoff
    from simhpc.stages import batch_size, runtime
    from simhpc.store import image_set

    device = runtime.set_up_torch(run.study)
    model = run.study.model(task.model)
    chosen = image_set.load(run.dir.images)
    victim = runtime.load_fast(run, model, chosen, device)
    clean = torch.from_numpy(runtime.to_be_attacked(run, model, chosen.images))
    labels = torch.from_numpy(chosen.labels).long()

    def attack(size: int) -> dict[str, Any]:
        ready = runtime.compiled(run, model, victim, chosen, size, with_gradient=True)
        ready = runtime.recorded(run, model, ready, chosen, size)
        return _attack(run, task, report, ready, clean, labels, size)

    return with_backoff(
        lambda size: runtime.settled(device, lambda: attack(size), model.key),
        batch_size.first_try(run, task, device),
        lambda fits: batch_size.remember(run, task, device, fits),
    )


def _attack(
    run: Run, task: Task, report: Report, victim: Victim, clean: Tensor, labels: Tensor, size: int
) -> dict[str, Any]:
    """Attack in batches of one size, and write the set."""
    import numpy as np
    import torch

    from simhpc.attacks.attack import attack_images
    from simhpc.attacks.batches import predict, predict_probabilities
    from simhpc.seeds import derive_seed
    from simhpc.stages.clean_accuracy import check_accuracy
    from simhpc.stages.method import settings_of
    from simhpc.stages.runtime import provenance, to_float16
    from simhpc.store.adversarial import AdversarialSet

    model, settings, target = run.study.model(task.model), run.study.attack, victim.target
    clean_pred, clean_margin, probabilities = predict_probabilities(target, clean, labels, size)
    check_accuracy(model, clean_pred.numpy().astype(np.int32), labels.numpy().astype(np.int32))
    index = torch.nonzero(clean_pred == labels).squeeze(1)
    origin = provenance(run, model, victim, size)
    parts = attack_parts.AttackParts(run.dir.attack_parts(model.key), _identity(origin, index.numpy()))
    kept = {first: torch.from_numpy(images) for first, images in parts.load().items()}
    done = sum(len(images) for images in kept.values())
    report(done, len(index), "image")

    def keep(first: int, images: Tensor) -> None:
        nonlocal done
        parts.save(first, images.numpy())
        done += len(images)
        report(done, len(index), "image")

    def seeds(*restart: int) -> list[int]:
        return [derive_seed(run.study.seed, "noise", model.key, int(position), *restart) for position in index]

    adversarial = attack_images(
        target,
        clean[index],
        labels[index],
        # The first start is the same whether there are others or not.
        [seeds(), *(seeds(number) for number in range(1, settings.restarts))],
        settings_of(settings),
        batch_size=size,
        finished=kept,
        on_batch=keep,
    )
    # What counts is the image that others will be shown: the stored one.
    adv_pred, _ = predict(target, adversarial, labels[index], size)
    n_fooled = int((adv_pred != labels[index]).sum())
    AdversarialSet(
        provenance=origin,
        images=adversarial.numpy(),
        index=index.numpy().astype(np.int32),
        clean_pred=clean_pred.numpy().astype(np.int32),
        clean_margin=to_float16(clean_margin),
        clean_probabilities=probabilities.numpy(),
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


def _identity(origin: Provenance, index: np.ndarray[Any, np.dtype[np.int64]]) -> str:
    """Of everything that a batch of the attack depends on: an attempt on other hardware starts afresh."""
    decides = [__version__, origin.attributes(), index.tolist()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
