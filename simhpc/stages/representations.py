"""The representations stage, done on request only: one task per model, writing `representations/<model>.h5`.

What two other measures of similarity need, which look inside networks: input gradients and penultimate features. It
needs the weights and the images, and nothing that other stages make of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simhpc.errors import BadFileError, MissingInputError, ModelError
from simhpc.rundir import Run
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Report, Task
from simhpc.stages.validity import check_provenance
from simhpc.store import representations

if TYPE_CHECKING:
    from torch import Tensor

    from simhpc.attacks.batches import Target
    from simhpc.stages.runtime import Victim
    from simhpc.store.image_set import ImageSet
    from simhpc.study import Model, Study

STAGE = "representations"

PASSES_PER_GRADIENT = 3
"""Of each image whose gradient is stored: of itself, and of two noisy copies."""


def tasks(run: Run) -> Sequence[Task]:
    """One task per model."""
    return [Task(STAGE, model.key) for model in run.study.models]


def is_done(run: Run, task: Task) -> bool:
    """Whether the model's file exists, is whole, and was made with the run's settings."""
    try:
        usable_header(run, run.study.model(task.model))
    except (MissingInputError, BadFileError):
        return False
    return True


def usable_header(run: Run, model: Model) -> representations.Header:
    """The header of a model's file, checked to belong to this run.

    Raises:
        MissingInputError: there is none yet.
        BadFileError: it is damaged, belongs elsewhere, or was made with other settings.
    """
    path = run.dir.representations(model.key)
    found = representations.header(path)
    check_provenance(run, model, path, found.provenance)
    if found.settings != settings_of(run.study):
        raise BadFileError(
            f"{path} was made with {found.settings}, [representations] of the study now is {settings_of(run.study)}: "
            "run the representations stage"
        )
    return found


def settings_of(study: Study) -> str:
    """[representations] as files record it."""
    return json.dumps(study.representations.model_dump(mode="json"), sort_keys=True)


def n_gradients(study: Study) -> int:
    """Images whose gradients are stored."""
    return min(study.representations.n_gradients, study.images.n)


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:
    """Compute one model's features and gradients. An interrupted attempt leaves nothing: the next begins again.

    Returns:
        `images` whose features, `gradients` that were stored, `features` of an image (their number).

    Raises:
        ModelError: features are NaN or infinite.
    """
    from simhpc.attacks.backoff import with_backoff
    from simhpc.stages import batch_size, runtime
    from simhpc.store import image_set

    device = runtime.set_up_torch(run.study)
    model = run.study.model(task.model)
    chosen = image_set.load(run.dir.images)
    victim = runtime.load_fast(run, model, chosen, device)
    return with_backoff(
        lambda size: runtime.settled(device, lambda: _represent(run, model, report, victim, chosen, size), model.key),
        batch_size.first_try(run, task, device),
        lambda fits: batch_size.remember(run, task, device, fits),
    )


def discard_partial(run: Run, task: Task) -> None:
    """An interrupted attempt leaves nothing behind."""


def _represent(run: Run, model: Model, report: Report, victim: Victim, chosen: ImageSet, size: int) -> dict[str, Any]:
    """Compute in batches of one size, and write the file."""
    import numpy as np
    import torch

    from simhpc.attacks.input_gradients import directions
    from simhpc.images import choose
    from simhpc.seeds import derive_seed
    from simhpc.stages import runtime

    study, n = run.study, len(chosen.labels)
    settings, total = study.representations, n + n_gradients(study)
    report(0, total, "image")
    try:
        shown = torch.from_numpy(runtime.to_be_attacked(run, model, chosen.images))
        values, features_from = _features(victim.target, shown, size, lambda done: report(done, total, "image"))
        del shown
        if not torch.isfinite(values).all():
            raise ModelError(f"model {model.key!r}: its features are NaN or infinite; is its precision broken?")
        index = choose(chosen.labels, n_gradients(study), derive_seed(study.seed, STAGE))
        found = directions(
            _at_stored_size(victim.target),
            torch.from_numpy(chosen.images[index]),
            torch.from_numpy(chosen.labels[index]).long(),
            # The same noise for every model.
            [(derive_seed(study.seed, STAGE, int(i), 0), derive_seed(study.seed, STAGE, int(i), 1)) for i in index],
            settings.noise_std_255 / 255.0,
            batch_size=size,
            on_batch=lambda done: report(n + done, total, "image"),
        )
        scale = _scale(float(values.abs().max()) if values.numel() else 0.0)
        representations.Representations(
            provenance=runtime.provenance(run, model, victim, size),
            settings=settings_of(study),
            features_from=features_from,
            forward_passes=n if values.shape[1] else 0,
            gradient_passes=PASSES_PER_GRADIENT * len(index),
            features=(values / scale).numpy().astype(np.float16),
            scale=scale,
            index=index.astype(np.int32),
            gradients=found.unit.numpy(),
            norms=found.norms.numpy(),
            noise_cosines=found.noise_cosines.numpy(),
        ).save(run.dir.representations(model.key))
    except Interrupted:
        report(0, total, "image")
        raise
    return {"images": n, "gradients": len(index), "features": values.shape[1]}


def _features(target: Target, images: Tensor, size: int, on_batch: Callable[[int], None]) -> tuple[Tensor, str]:
    """float32 (N, D) features of uint8 (N, 3, H, W) images, and where they are from; D is 0 if there are none."""
    import torch

    from simhpc.attacks.batches import at, fixed_size_batches
    from simhpc.zoo.classifier import PixelClassifier
    from simhpc.zoo.penultimate import penultimate

    assert isinstance(target.classifier, PixelClassifier)
    two = target.pixels(target.moved(images[torch.arange(2) % len(images)]))
    network, where = penultimate(target.classifier, two)
    if network is None:
        return torch.empty(len(images), 0), f"none: {where}"
    parts = []
    with torch.no_grad():
        for positions, count in fixed_size_batches(len(images), size):
            parts.append(network(target.pixels(target.moved(at(images, positions))))[:count].cpu())
            on_batch(int(positions[0]) + count)
    return torch.cat(parts), where


def _at_stored_size(target: Target) -> Target:
    """The same for the stored images, with the resize to its own input inside."""
    from simhpc.zoo.classifier import PixelClassifier

    classifier = target.classifier
    assert isinstance(classifier, PixelClassifier)
    inside = PixelClassifier(
        classifier.model, classifier.data, fits_inside=True, in_bfloat16=classifier.in_bfloat16
    ).to(target.device)
    return replace(target, classifier=inside)


def _scale(largest: float) -> float:
    """A power of two by which values up to `largest` are divided to lie just within what 16 bits can hold."""
    return 2.0 ** (math.frexp(largest)[1] - 15) if largest > 0 else 1.0
