"""Whether one file of a run is what it should be: one function per kind of file.

Each looks at its file and at those that it has to agree with, and tells what is wrong, in lines. They are called in
another process (`isolated`), with plain data. `deep` reads all data, and torch is imported for that alone.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simhpc import image_list
from simhpc.errors import BadFileError, ForeignFileError, MissingInputError, SimhpcError
from simhpc.rundir import Run, open_run
from simhpc.stages import aggregate, distill, prepare, representations, train
from simhpc.stages.task import Task
from simhpc.stages.validity import check_provenance
from simhpc.store import adversarial, answers, attack_parts, checkpoint, hdf5, image_set, predictions, similarity
from simhpc.store import representations as representation_files
from simhpc.store.filecache import cached_by_file
from simhpc.store.predictions import NOT_SHOWN

_MOST_TOLD = 10
"""Of one file."""
_OWN_ANSWERS_MAY_DIFFER = 0.02
"""Share of answers to its own set that may be others than when the model was attacked: other batches, another GPU."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file.

    Attributes:
        what: in words.
        is_damage: the file is of no use to anybody. If not, it may be whole: of another run, or out of date.
    """

    what: str
    is_damage: bool


Faults = Iterator[Fault]


def check(root: str, kind: str, path: str, model: str, deep: bool) -> list[tuple[str, bool]]:
    """What is wrong with one file: `Fault`s as plain tuples.

    Args:
        root: the run directory.
        kind: one of `CHECKS`.
        path: of the file.
        model: whose it is; empty where it is nobody's.
        deep: read all of it.
    """
    run, found = _run(root), []
    try:
        # One by one: what was found before an error is kept.
        for fault in CHECKS[kind](run, Path(path), model, deep):
            found.append((fault.what, fault.is_damage))  # noqa: PERF401
    except ForeignFileError as error:
        found.append((str(error), False))
    except BadFileError as error:
        # What is wrong may be a file that this one is compared with: it has a line of its own.
        found.append((str(error), str(error).startswith(path)))
    except MissingInputError as error:
        if Path(path).is_symlink():
            found.append((f"{path} is a link to nothing", False))
        elif not str(error).startswith(path):
            found.append((str(error), False))
        # Else it was removed meanwhile.
    if (more := len(found) - _MOST_TOLD) > 0:
        found[_MOST_TOLD:] = [(f"and {more} more", any(is_damage for _, is_damage in found))]
    return found


@functools.lru_cache(maxsize=1)
def _run(root: str) -> Run:
    return open_run(Path(root))


def _images(run: Run, path: Path, _model: str, deep: bool) -> Faults:
    # Compared with a damaged one, which has a line of its own, nothing could be said.
    if run.dir.frozen.exists() and image_set.identity(path) != prepare.check_frozen(run):
        raise ForeignFileError(f"{path} is another image set than the one that this run was begun with")
    attributes = hdf5.attributes(path, kind=image_set.KIND, version=image_set.VERSION)
    if attributes.get("study_sha256") != run.study.settings_sha256():
        raise ForeignFileError(f"{path} is the image set of another study, or of other settings")
    if not deep:
        return
    hdf5.check_content(path, kind=image_set.KIND, version=image_set.VERSION)
    found, images = image_set.load(path), run.study.images
    yield from _when(len(found.labels) != images.n, f"has {len(found.labels)} images, the study {images.n}")
    yield from _when(found.images.shape[2:] != (images.size_px,) * 2, f"images are not {images.size_px} pixels wide")
    is_class = (found.labels >= 0) & (found.labels < max(1, found.num_classes))
    yield from _when(not is_class.all(), "a label is none of its classes")
    yield from _when(any(a >= b for a, b in zip(found.ids, found.ids[1:], strict=False)), "its names do not increase")
    if images.list_sha256 is not None:
        yield from _when(image_list.sha256(found.ids) != images.list_sha256, "its names are not those of images.list")


def _image_list(run: Run, path: Path, _model: str, deep: bool) -> Faults:
    try:
        names = image_list.read(path)
    except SimhpcError as error:
        raise BadFileError(f"{path}: {error}") from None
    if deep and run.dir.images.exists():
        yield from _when(names != image_set.load(run.dir.images).ids, "does not name the images of images.h5")


def _checkpoint(run: Run, path: Path, model: str, deep: bool) -> Faults:
    metadata = checkpoint.metadata_of(path)
    is_student = model in {student.key for student in run.study.students}
    entry = run.study.student(model) if is_student else run.study.model(model)
    wanted = {"model": model, "model_sha256": entry.sha256(), "seed": str(run.study.seed)}
    for name, want in wanted.items():
        if metadata.get(name) != want:
            raise ForeignFileError(f"{path}: {name} is {metadata.get(name)}, this run's is {want}: of another run")
    if run.dir.images.exists() and not is_student and not train.is_done(run, Task(train.STAGE, model)):
        raise ForeignFileError(f"{path} was trained beside another image set: of another run, or out of date")
    if is_student and not distill.is_done(run, Task(distill.STAGE, model)):
        raise ForeignFileError(f"{path} was distilled from another teacher, or beside other images: out of date")
    if deep:
        checkpoint.check_content(path)
    yield from ()


def _adversarial(run: Run, path: Path, model: str, deep: bool) -> Faults:
    head = adversarial.header(path)
    adversarial.check_shapes(path)
    if deep:
        hdf5.check_content(path, kind=adversarial.KIND, version=adversarial.VERSION)
    entry = run.study.model(model)
    check_provenance(run, entry, path, head.provenance)
    yield from _settings(run, head.provenance)
    yield from _when(head.n_images != run.study.images.n, f"is of {head.n_images} images")
    if not deep:
        return
    index = adversarial.load_index(path)
    pred, margin, probabilities = adversarial.load_clean(path)
    yield from _answers(pred, probabilities)
    own = _own_answers(path)
    labels = _labels(run)
    if labels is None or len(labels) != len(pred):
        return
    yield from _margins(pred, margin, labels, "clean_margin")
    if not np.array_equal(index, np.flatnonzero(pred == labels)):
        yield Fault("'index' is not the images that the model gets right (X_A)", is_damage=True)
        return
    n_fooled = int(np.count_nonzero(own != labels[index]))
    yield from _when(n_fooled != head.n_fooled, f"n_fooled is {head.n_fooled}, its answers say {n_fooled}")
    yield from _within_eps(run, path, model, index)


def _predictions(run: Run, path: Path, model: str, deep: bool) -> Faults:
    head = predictions.header(path)
    if deep:
        hdf5.check_content(path, kind=predictions.KIND, version=predictions.VERSION)
    entry = run.study.model(model)
    check_provenance(run, entry, path, head.provenance)
    yield from _settings(run, head.provenance)
    own_path = run.dir.adversarial(model)
    has_own = own_path.exists()
    if has_own and adversarial.header(own_path).provenance.weights_sha256 != head.provenance.weights_sha256:
        raise ForeignFileError(f"{path} was made with other weights than {own_path}: out of date")
    if not deep:
        return
    found = predictions.load(path)
    covers = predictions.sources_sha256(path)
    yield from _when(head.sources_sha256 != covers, "'sources_sha256' is not that of the sources it lists")
    yield from _answers(found.clean_pred, found.clean_probabilities)
    yield from _margins(found.clean_pred, found.clean_margin, found.labels, "clean/margin")
    labels = _labels(run)
    if labels is not None:
        yield from _when(not np.array_equal(found.labels, labels), "its labels are not those of images.h5")
    if has_own:
        clean = adversarial.load_clean(own_path)
        same = (
            np.array_equal(found.clean_pred, clean[0])
            and np.array_equal(found.clean_margin, clean[1])
            and np.array_equal(found.clean_probabilities, clean[2], equal_nan=True)
        )
        yield from _when(not same, f"its answers to clean images are not those of {own_path.name} in adversarial/")
    num_classes = found.clean_probabilities.shape[1]
    is_correct = found.clean_pred == found.labels
    for row, key in enumerate(found.sources):
        told = found.adv_pred[row]
        shown = told != NOT_SHOWN
        is_answer = (told[shown] >= 0) & (told[shown] < num_classes)
        yield from _when(not is_answer.all(), f"an answer to the images of {key} is no class")
        yield from _margins(told, found.adv_margin[row], found.labels, f"adversarial/margin of {key}", shown)
        yield from _when(bool(np.isfinite(found.adv_margin[row][~shown]).any()), f"an image of {key} has no answer")
        yield from _of_source(run, key, found.source_sha256[row], told, shown, is_correct, is_own=key == model)


def _of_source(
    run: Run,
    key: str,
    sha256: str,
    told: NDArray[np.int32],
    shown: NDArray[np.bool_],
    is_correct: NDArray[np.bool_],
    *,
    is_own: bool,
) -> Faults:
    """What is shown of one adversarial set, if that set is there still."""
    path = run.dir.adversarial(key)
    if key not in {model.key for model in run.study.models} or not path.exists():
        return
    try:
        index = _index(path)
        stated = adversarial.header(path).content_sha256
    except BadFileError:
        return  # has a line of its own
    if sha256 != stated:
        yield Fault(f"covers an older attack of {key}: run the evaluate stage", is_damage=False)
        return
    wanted = np.zeros(len(shown), dtype=bool)
    wanted[index] = True
    yield from _when(not np.array_equal(shown, wanted & is_correct), f"the images shown of {key} are not X_AB")
    if is_own and len(index):
        differ = int(np.count_nonzero(told[index] != _own_answers(path)))
        yield from _when(
            differ > max(2, _OWN_ANSWERS_MAY_DIFFER * len(index)),
            f"{differ} of {len(index)} answers to its own images are others than when it was attacked",
        )


def _partial_predictions(run: Run, path: Path, model: str, deep: bool) -> Faults:
    head = predictions.header(path)
    if deep:
        hdf5.check_content(path, kind=predictions.KIND, version=predictions.VERSION)
    check_provenance(run, run.study.model(model), path, head.provenance)
    yield from ()


def _attack_part(_run: Run, path: Path, _model: str, deep: bool) -> Faults:
    attributes = hdf5.attributes(path, kind=attack_parts.KIND, version=attack_parts.VERSION)
    is_in_place = (
        str(attributes.get("identity"))[:16] == path.parent.name and f"{attributes.get('first'):07d}" == path.stem
    )
    yield from _when(not is_in_place, "is a part of another attack, or of another batch")
    if deep:
        hdf5.check_content(path, kind=attack_parts.KIND, version=attack_parts.VERSION)


def _representations(run: Run, path: Path, model: str, deep: bool) -> Faults:
    representation_files.header(path)
    if deep:
        hdf5.check_content(path, kind=representation_files.KIND, version=representation_files.VERSION)
    try:
        representations.usable_header(run, run.study.model(model))
    except BadFileError as error:
        raise ForeignFileError(str(error)) from None
    yield from ()


def _teachers_answers(_run: Run, path: Path, model: str, deep: bool) -> Faults:
    attributes = hdf5.attributes(path, kind=answers.KIND, version=answers.VERSION)
    is_in_place = attributes.get("teacher") == model and path.stem == f"{model}-{str(attributes.get('identity'))[:16]}"
    yield from _when(not is_in_place, "holds other answers than its name says")
    if deep:
        hdf5.check_content(path, kind=answers.KIND, version=answers.VERSION)


def _similarity(run: Run, path: Path, _model: str, deep: bool) -> Faults:
    matrix = similarity.load(path)
    if deep:
        hdf5.check_content(path, kind=similarity.KIND, version=similarity.VERSION)
    if not aggregate.is_current(run):
        raise ForeignFileError(f"{path} was not made from the files that lie here now")
    if not deep:
        return
    again = aggregate.aggregate(run, lambda *_: None)
    for name, value in vars(again).items():
        held = getattr(matrix, name)
        is_same = (
            np.array_equal(held, value, equal_nan=value.dtype.kind == "f")
            if isinstance(value, np.ndarray)
            else held == value
        )
        # Messages name paths, and a run may be moved.
        yield from _when(
            not is_same and name not in ("problems", "notes"), f"{name!r} is not what the predictions give"
        )


def _table(run: Run, path: Path, _model: str, deep: bool) -> Faults:
    text = _text(path)
    if not deep or not run.dir.similarity.exists() or not aggregate.is_current(run):
        return
    from simhpc.report import tables

    written = {
        run.dir.similarity_csv.name: tables.write_similarity,
        run.dir.pairs_csv.name: tables.write_pairs,
        run.dir.models_csv.name: tables.write_models,
    }
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder, path.name)
        written[path.name](similarity.load(run.dir.similarity), again)
        yield from _when(again.read_text(encoding="utf-8") != text, "is not what similarity.h5 says")


def _json_file(_run: Run, path: Path, _model: str, _deep: bool) -> Faults:
    _json(path)
    yield from ()


def _frozen(run: Run, path: Path, _model: str, _deep: bool) -> Faults:
    prepare.check_frozen(run)
    given = _json(path).get("given", {})
    keys = {model.key for model in run.study.models}
    yield from _when(set(given) != keys, "is of other models than study.toml")


def _picture(_run: Run, path: Path, _model: str, _deep: bool) -> Faults:
    if path.suffix == ".png":
        from PIL import Image

        try:
            with Image.open(path) as picture:
                picture.verify()  # the checksum of every chunk, which loading does not look at
            with Image.open(path) as picture:
                picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadFileError(f"{path} is no whole picture ({error})") from None
    else:
        is_whole = _text(path).rstrip().endswith("</svg>")
        yield from _when(not is_whole, "is no whole picture")


def _text_file(_run: Run, path: Path, _model: str, _deep: bool) -> Faults:
    _text(path)
    yield from ()


def _settings(run: Run, found: Any) -> Faults:
    """What provenance repeats of the study, besides the hashes."""
    try:
        attack = json.loads(found.attack)
    except ValueError:
        attack = found.attack
    entry = run.study.model(found.model)
    for name, have, want in (
        ("attack", attack, run.study.attack.model_dump(mode="json")),
        ("seed", found.seed, run.study.seed),
        ("precision", found.precision, run.study.precision),
        ("timm_name", found.timm_name, entry.timm_name),
    ):
        yield from _when(have != want, f"{name} is {have}, the study's is {want}")


def _answers(pred: NDArray[np.int32], probabilities: NDArray[np.float16]) -> Faults:
    num_classes = probabilities.shape[1]
    if not ((pred >= 0) & (pred < num_classes)).all():
        yield Fault("an answer to a clean image is no class", is_damage=True)
        return
    if np.isfinite(probabilities).all():
        highest = probabilities.max(axis=1) if len(pred) else probabilities[:, 0]
        theirs = np.take_along_axis(probabilities, pred[:, None].astype(np.int64), axis=1)[:, 0]
        yield from _when(bool((theirs < highest).any()), "an answer to a clean image is not its most probable class")


def _margins(
    pred: NDArray[np.int32],
    margin: NDArray[np.float16],
    labels: NDArray[np.int32],
    name: str,
    where: NDArray[np.bool_] | None = None,
) -> Faults:
    """A margin is positive exactly where the answer is right; 0, which rounding may make of either, is both."""
    if len(pred) != len(labels):
        yield Fault(f"has answers to {len(pred)} images, and {len(labels)} labels", is_damage=True)
        return
    right = pred == labels
    contradicts = (right & (margin < 0)) | (~right & (margin > 0))
    if where is not None:
        contradicts &= where
    yield from _when(bool(contradicts.any()), f"{name!r} contradicts the answers")


def _within_eps(run: Run, path: Path, model: str, index: NDArray[np.int32]) -> Faults:
    """Every stored image lies in the attack's ball around the clean one, as the model sees it."""
    import torch

    from simhpc.attacks.levels import EpsilonExceededError, check_within
    from simhpc.stages.method import settings_of
    from simhpc.stages.runtime import to_be_attacked

    entry, settings, start = run.study.model(model), settings_of(run.study.attack), 0
    for images in adversarial.iterate_images(path, 256):
        positions = index[start : start + len(images)]
        start += len(images)
        stored = image_set.load_span(run.dir.images, int(positions[0]), int(positions[-1]) + 1)
        clean = to_be_attacked(run, entry, stored[positions - positions[0]])
        if clean.shape != images.shape:
            yield Fault(
                f"its images are {images.shape[-1]} pixels wide, those attacked {clean.shape[-1]}", is_damage=True
            )
            return
        try:
            check_within(torch.from_numpy(clean), torch.from_numpy(images), settings.method.norm, settings.eps_255)
        except EpsilonExceededError as error:
            yield Fault(str(error), is_damage=True)
            return


def _when(condition: bool, what: str) -> Faults:
    if condition:
        yield Fault(what, is_damage=True)


def _labels(run: Run) -> NDArray[np.int32] | None:
    """Of the image set, if it is there and whole."""
    try:
        return _load_labels(run.dir.images)
    except (MissingInputError, BadFileError):
        return None


@cached_by_file
def _load_labels(path: Path) -> NDArray[np.int32]:
    return image_set.load_labels(path)


@cached_by_file
def _index(path: Path) -> NDArray[np.int32]:
    return adversarial.load_index(path)


def _own_answers(path: Path) -> NDArray[np.int32]:
    with hdf5.opened(path, kind=adversarial.KIND, version=adversarial.VERSION) as file:
        return hdf5.read(path, file, "adv_pred", dtype="int32", shape=(None,))


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ForeignFileError(f"{path} is not a file")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingInputError(f"{path} does not exist") from None
    except OSError as error:
        raise ForeignFileError(f"{path} cannot be read: {error}") from None
    except UnicodeDecodeError:
        raise BadFileError(f"{path} is no text") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadFileError(f"{path} holds no JSON object")
    return found


CHECKS: dict[str, Callable[[Run, Path, str, bool], Faults]] = {
    "images": _images,
    "image list": _image_list,
    "frozen": _frozen,
    "checkpoint": _checkpoint,
    "adversarial": _adversarial,
    "predictions": _predictions,
    "representations": _representations,
    "teacher's answers": _teachers_answers,
    "partial predictions": _partial_predictions,
    "attack part": _attack_part,
    "similarity": _similarity,
    "table": _table,
    "json": _json_file,
    "picture": _picture,
    "text": _text_file,
}
"""By kind of file."""
