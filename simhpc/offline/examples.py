"""A few attacked images of a run for the report, chosen by nothing but their order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis.similarity import similarity_order
from simhpc.errors import BadFileError, MissingInputError
from simhpc.offline.inputs import without_root
from simhpc.report.page import pictures
from simhpc.report.page.content import Attacked, Example, Examples
from simhpc.rundir import Run
from simhpc.stages.validity import adversarial_header
from simhpc.store import adversarial, image_set
from simhpc.store.image_set import ImageSet
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Model

MOST_MODELS = 6
MOST_IMAGES = 4


def examples(run: Run, matrix: SimilarityMatrix) -> Examples:
    """Images that all chosen models classify correctly, each of another class if there are enough.

    The models are evenly spread over the order that puts alike ones side by side. Only rows that are shown are read.
    """
    if not run.dir.images.exists():
        return Examples(absent="images.h5 is not in this run directory.")
    keys = [matrix.models[k] for k in similarity_order(matrix.sat)]
    models = {model.key: model for model in run.study.models}
    usable: list[Model] = []
    reasons: list[str] = []
    for model in (models[key] for key in keys if key in models):
        try:
            if adversarial_header(run, model).n_attacked > 0:
                usable.append(model)
        except (BadFileError, MissingInputError) as error:
            reasons.append(without_root(run, error))
    if not usable:
        return Examples(absent="There are no attacked images here" + (f": {reasons[0]}." if reasons else "."))
    spread = np.unique(np.linspace(0, len(usable) - 1, MOST_MODELS).round().astype(int))
    chosen = [usable[k] for k in spread]
    try:
        index = {model.key: adversarial.load_index(run.dir.adversarial(model.key)) for model in chosen}
        positions, chosen = _choose(chosen, index, image_set.load_labels(run.dir.images))
        if not len(positions):
            return Examples(absent="None of the models classifies an image correctly, so none was attacked.")
        return _shown(run, chosen, index, image_set.load_some(run.dir.images, positions.tolist()), positions)
    except (BadFileError, MissingInputError) as error:
        return Examples(absent=f"They cannot be read: {without_root(run, error)}.")
    except ImportError as error:
        return Examples(absent=f"What a model sees is computed by torch, which is not installed here ({error}).")


def _choose(
    models: list[Model], index: dict[str, NDArray[np.int32]], labels: NDArray[np.int32]
) -> tuple[NDArray[np.int64], list[Model]]:
    """Positions in the image set, and the models that get all of them right.

    While there is no such image, the model with the fewest is left out.
    """
    while True:
        common = np.arange(len(labels))
        for model in models:
            common = np.intersect1d(common, index[model.key])
        if len(common) or len(models) == 1:
            break
        fewest = min(models, key=lambda model: len(index[model.key]))
        models = [model for model in models if model is not fewest]
    # The first image of each class, then the second ones.
    by_class = np.argsort(labels[common], kind="stable")
    _, first, counts = np.unique(labels[common][by_class], return_index=True, return_counts=True)
    rank = np.empty(len(common), dtype=np.int64)
    rank[by_class] = np.arange(len(common)) - np.repeat(first, counts)
    candidates = common[np.lexsort((labels[common], rank))]
    of_first_rank = candidates[: max(MOST_IMAGES, len(first))]
    spread = np.linspace(0, len(of_first_rank) - 1, min(MOST_IMAGES, len(of_first_rank))).round().astype(int)
    return of_first_rank[spread].astype(np.int64), models


def _shown(
    run: Run, models: list[Model], index: dict[str, NDArray[np.int32]], some: ImageSet, positions: NDArray[np.int64]
) -> Examples:
    clean: dict[str, NDArray[np.uint8]] = {}
    attacked: dict[str, NDArray[np.uint8]] = {}
    answers: dict[str, NDArray[np.int32]] = {}
    differences: dict[str, NDArray[np.int16]] = {}
    for model in models:
        key = model.key
        rows = np.searchsorted(index[key], positions)
        clean[key] = _as_attacked(run, model, some.images)
        attacked[key], answers[key] = adversarial.load_some(run.dir.adversarial(key), rows.tolist())
        if attacked[key].shape != clean[key].shape:
            raise BadFileError(f"{run.dir.adversarial(key)}: its images have another size than {key} sees")
        differences[key] = pictures.difference(clean[key], attacked[key])
    factor = pictures.magnification(list(differences.values()))
    shown = []
    for k in range(len(positions)):
        of_models = []
        for key in (model.key for model in models):
            step = pictures.step_of(clean[key].shape[-1])
            of_models.append(
                Attacked(
                    model=key,
                    clean=pictures.png(clean[key][k], step),
                    adversarial=pictures.png(attacked[key][k], step),
                    difference=pictures.png(pictures.shown_difference(differences[key][k], factor), step),
                    answer=_class_name(some, int(answers[key][k])),
                    is_fooled=bool(answers[key][k] != some.labels[k]),
                )
            )
        shown.append(Example(some.ids[k], _class_name(some, int(some.labels[k])), of_models))
    steps = {pictures.step_of(clean[model.key].shape[-1]) for model in models}
    return Examples(examples=shown, magnification=factor, step=max(steps))


def _as_attacked(run: Run, model: Model, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stored images as they were before the attack, without torch where they are the stored ones."""
    if run.study.attack.grid == "canonical":
        return images
    from simhpc.zoo.geometry import clean_view

    return clean_view(images, model.data)


def _class_name(some: ImageSet, number: int) -> str:
    """Its name if it has one, else its number; a model may have more classes than the images."""
    return (some.classes[number] if number < len(some.classes) else "") or str(number)
