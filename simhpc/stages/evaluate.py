"""The evaluate stage: one task per model B, showing it every other model's adversarial set.

Only X_AB is shown: an image that B gets wrong when clean can enter no measure of the pair. Sources that
B's file covers already are kept, so a model added to the study costs each of the others one set.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simhpc.errors import BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Report, Task
from simhpc.stages.validity import adversarial_header, check_provenance, usable_sources
from simhpc.store import adversarial, image_set, predictions
from simhpc.store.predictions import NOT_SHOWN, PredictionSet

if TYPE_CHECKING:
    from simhpc.study import Model

STAGE = "evaluate"

_SAVE_INTERVAL_S = 60.0


def tasks(run: Run) -> Sequence[Task]:
    """One task per model."""
    return [Task(STAGE, model.key) for model in run.study.models]


def is_done(run: Run, task: Task) -> bool:
    """Whether the model's predictions are valid and cover every adversarial set that exists now."""
    held = _header(run, run.study.model(task.model), run.dir.predictions(task.model))
    return held is not None and held.sources_sha256 == usable_sources(run).sha256


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:
    """Predict one model's clean images and all adversarial sets that exist and are not covered yet.

    Returns:
        `sources` covered, `shown` images predicted now, `missing` sources (comma-separated keys).

    Raises:
        MissingInputError: the model itself has not been attacked; its clean predictions come from there.
        BadFileError: a source is damaged; the predictions on all others have been saved.
    """
    import torch

    from simhpc.attacks.ahead import read_ahead
    from simhpc.attacks.backoff import with_backoff
    from simhpc.attacks.batches import predict
    from simhpc.stages import batch_size, runtime
    from simhpc.stages.shown import parts_of
    from simhpc.zoo.geometry import resize_to_input

    device = runtime.set_up_torch(run.study)
    model = run.study.model(task.model)
    own = adversarial_header(run, model)
    clean_pred, clean_margin, clean_probabilities = adversarial.load_clean(run.dir.adversarial(model.key))
    chosen = image_set.load(run.dir.images)
    labels = chosen.labels
    victim = runtime.load_fast(run, model, chosen, device)
    if victim.weights_sha256 != own.provenance.weights_sha256:
        raise BadFileError(
            f"{run.dir.adversarial(model.key)} was made with other weights than {model.key!r} has now: "
            "delete it and run again"
        )
    size = batch_size.first_try(run, task, device)

    def shrink(fits: int) -> None:
        nonlocal size
        size = fits
        batch_size.remember(run, task, device, fits)

    victim = with_backoff(
        functools.partial(runtime.compiled, run, model, victim, chosen, with_gradient=False), size, shrink
    )
    sources = usable_sources(run).headers
    n = len(labels)
    adv_pred = np.full((len(sources), n), NOT_SHOWN, dtype=np.int32)
    adv_margin = np.full((len(sources), n), np.nan, dtype=np.float16)
    covered = _keep(run, model, sources, clean_pred, adv_pred, adv_margin)
    to_show = [key for key in sources if key not in covered]
    total = sum(sources[key].n_attacked for key in to_show)
    done = shown = 0
    damaged: dict[str, str] = {}

    def save(path: Path) -> None:
        rows = [row for row, key in enumerate(sources) if key in covered]
        names = [key for key in sources if key in covered]
        PredictionSet(
            provenance=runtime.provenance(run, model, victim, size),
            labels=labels,
            clean_pred=clean_pred,
            clean_margin=clean_margin,
            clean_probabilities=clean_probabilities,
            sources=names,
            source_sha256=[sources[key].content_sha256 for key in names],
            adv_pred=adv_pred[rows],
            adv_margin=adv_margin[rows],
        ).save(path)

    # On its own grid a model is shown images of any size; on the canonical one the resize is inside the model.
    is_canonical = run.study.attack.grid == "canonical"
    view = None if is_canonical else functools.partial(resize_to_input, data=model.data)
    row_of = {key: row for row, key in enumerate(sources)}
    is_correct = clean_pred == labels
    partial = run.dir.partial_predictions(model.key)
    saved_s = time.monotonic()
    report(0, total, "image")
    try:
        to_read = (part for key in to_show for part in parts_of(key, run.dir.adversarial(key), is_correct, size))
        with closing(read_ahead(to_read)) as parts:
            for part in parts:
                if len(part.images):
                    images, truth = torch.from_numpy(part.images), torch.from_numpy(labels[part.positions]).long()
                    answers = functools.partial(predict, victim.target, images, truth, view=view)
                    pred, margin = with_backoff(answers, size, shrink)
                    at = row_of[part.key], part.positions
                    adv_pred[at], adv_margin[at] = pred.numpy(), runtime.to_float16(margin)
                    shown += len(part.images)
                report(done + part.n_read, total, "image")
                if not part.is_last and not part.error:
                    continue
                if part.error:
                    damaged[part.key] = part.error
                else:
                    covered.add(part.key)
                done += sources[part.key].n_attacked
                if time.monotonic() - saved_s > _SAVE_INTERVAL_S:
                    save(partial)
                    saved_s = time.monotonic()
        save(run.dir.predictions(model.key))
    except Interrupted:
        if covered:
            save(partial)
        report(sum(sources[key].n_attacked for key in to_show if key in covered), total, "image")
        raise
    discard_partial(run, task)
    if damaged:
        raise BadFileError(f"{'; '.join(damaged.values())}; all other sources are done")
    missing = [other.key for other in run.study.models if other.key not in sources]
    return {"sources": len(covered), "shown": shown, "missing": ",".join(missing)}


def discard_partial(run: Run, task: Task) -> None:
    """Delete what unfinished attempts have left."""
    run.dir.partial_predictions(task.model).unlink(missing_ok=True)


def _header(run: Run, model: Model, path: Path) -> predictions.Header | None:
    """The header of a predictions file, or None without one that belongs to this run and this model's own set."""
    try:
        own = adversarial_header(run, model)
        held = predictions.header(path)
        check_provenance(run, model, path, held.provenance)
    except (MissingInputError, BadFileError):
        return None
    return held if held.provenance.weights_sha256 == own.provenance.weights_sha256 else None


def _keep(
    run: Run,
    model: Model,
    sources: dict[str, adversarial.Header],
    clean_pred: np.ndarray[Any, np.dtype[np.int32]],
    adv_pred: np.ndarray[Any, np.dtype[np.int32]],
    adv_margin: np.ndarray[Any, np.dtype[np.float16]],
) -> set[str]:
    """Copy what earlier files say of sources that have not changed since; return their keys."""
    kept: set[str] = set()
    for path in (run.dir.predictions(model.key), run.dir.partial_predictions(model.key)):
        if _header(run, model, path) is None:
            continue
        try:
            earlier = predictions.load(path)
        except (BadFileError, MissingInputError):  # another copy of this task may just have finished, and removed it
            continue
        if not np.array_equal(earlier.clean_pred, clean_pred):  # another X_B: other images were shown
            continue
        row_of = {key: row for row, key in enumerate(earlier.sources)}
        for row, (key, header) in enumerate(sources.items()):
            if key in row_of and earlier.source_sha256[row_of[key]] == header.content_sha256:
                adv_pred[row], adv_margin[row] = earlier.adv_pred[row_of[key]], earlier.adv_margin[row_of[key]]
                kept.add(key)
    return kept
