"""From a study file to a run directory: check everything, complete the study, freeze it, store the images.

Nothing is written before everything has been checked, and what a run directory holds is never contradicted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from simhpc import __version__, image_list
from simhpc.errors import BadFileError, StudyError
from simhpc.rundir import Run, RunDir, frozen_text, open_run
from simhpc.stages.method import resolve_attack
from simhpc.store import image_set
from simhpc.store.atomic import remove_leftovers, write_text
from simhpc.store.checkpoint import file_sha256
from simhpc.study import Model, Study, differences, is_list_gone
from simhpc.zoo.registry import expected_top1_percent

if TYPE_CHECKING:
    from simhpc.images import Source


def check(study: Study) -> Study:
    """Check a study against timm, its checkpoints and its image sources; return it fully resolved.

    Raises:
        ModelError, ImageSourceError, StudyError: the first thing that is wrong.
    """
    shown, _ = _look_at_source(study)
    return _resolve(study, shown, {}, list_sha256=_list_sha256(study))


def prepare(study: Study, root: Path, *, dry_run: bool = False) -> Run:
    """Make or complete the run directory `root` for a study, and open it.

    Args:
        study: as loaded from its file.
        root: an existing run directory, or a path where one can be made.
        dry_run: check everything, but write nothing: the run that is returned may not exist, and an image set that has
            gone is not drawn again and compared.

    Raises:
        StudyError: `root` answers another study, or holds something else.
        BadFileError: `root` holds a damaged or foreign image set.
        ModelError, ImageSourceError: see `check`.
    """
    run_dir = RunDir(root.resolve())
    given = {model.key: model.sha256() for model in study.models}
    if not run_dir.study.exists():
        if root.exists() and (not root.is_dir() or any(not _is_unfinished(entry, run_dir) for entry in root.iterdir())):
            raise StudyError(f"{root} exists and is not a run directory: choose another --out")
        shown, source = _look_at_source(study)
        resolved = _resolve(study, shown, {}, list_sha256=_list_sha256(study))
        if dry_run:
            return Run(run_dir, resolved)
        with _removed_on_failure(root):
            remove_leftovers([root])
            chosen = _store_images(resolved, source, run_dir)
            _write_list(chosen.ids, run_dir)
            frozen = _Frozen(_versions(), given, image_set.identity(run_dir.images), shown.imagenet)
            _freeze(resolved, frozen, run_dir)
        return Run(run_dir, resolved)

    held = open_run(root).study
    frozen = _read_frozen(run_dir)
    known = {model.key: model for model in held.models if _is_known(model, given.get(model.key), frozen)}
    list_sha256 = _list_sha256(study, held)
    if dry_run and not run_dir.images.exists():
        shown, _ = _look_at_source(held)
    else:
        images = _held_images(held, frozen, run_dir)
        shown = _Shown(images.classes, imagenet=frozen.shows_imagenet, leaves_images=True)
    checked = {student.sha256() for student in held.students}
    resolved = _resolve(study, shown, known, list_sha256=list_sha256, checked=checked)
    if lines := differences(held, resolved):
        raise StudyError(
            "\n  ".join([f"{root} answers another study than the one given; differences:", *lines])
            + "\nOnly models and students can be added to a run. Choose another --out for a changed study, or delete "
            "the folder if nothing in it is wanted."
        )
    if not dry_run and not run_dir.image_list.exists():
        _write_list(images.ids, run_dir)
    if not dry_run and (resolved != held or given != frozen.given):
        _freeze(resolved, replace(frozen, given=given), run_dir)
    return Run(run_dir, resolved)


def version_changes(run: Run) -> list[str]:
    """Libraries whose version is no longer the one that the run directory was made with, one line each."""
    held = _read_frozen(run.dir).versions
    return [
        f"{name} was {held[name]}, is {now}" for name, now in _versions().items() if name in held and held[name] != now
    ]


@dataclass(frozen=True)
class _Frozen:
    """What stands beside the frozen study.

    Attributes:
        versions: of the libraries that the run directory was begun with.
        given: SHA-256 of each model's entry as its author wrote it, before it was resolved.
        images_sha256: identity of the image set.
        shows_imagenet: `_Shown.imagenet`; absent in runs that were begun before this was written down.
    """

    versions: dict[str, str]
    given: dict[str, str]
    images_sha256: str
    shows_imagenet: bool = False


@dataclass(frozen=True)
class _Shown:
    """What models have to know of the images that they are shown.

    Attributes:
        classes: name of each class by class index.
        imagenet: whether they are drawn from all of ImageNet's classes; with a list, whether it has images of all.
        leaves_images: whether the image set leaves any image of its source to train on.
    """

    classes: list[str]
    imagenet: bool
    leaves_images: bool


def _read_frozen(run_dir: RunDir) -> _Frozen:
    if run_dir.frozen.exists() and not run_dir.frozen.is_file():
        raise BadFileError(f"{run_dir.frozen} cannot be read: it is not a file")
    try:
        stated = json.loads(run_dir.frozen.read_text(encoding="utf-8"))
        # Files of before have none.
        checksum = stated.pop("sha256", None)
        found = _Frozen(**stated)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadFileError(f"{run_dir.frozen} cannot be read: {error}") from None
    if checksum is not None and checksum != _checksum(found):
        raise BadFileError(f"{run_dir.frozen} is damaged or was edited: put it back as it was")
    return found


def _checksum(frozen: _Frozen) -> str:
    return hashlib.sha256(json.dumps(asdict(frozen), sort_keys=True).encode()).hexdigest()


def check_frozen(run: Run) -> str:
    """Compare what stands beside the frozen study with its checksum; returns the identity of the image set.

    Raises:
        BadFileError: it is damaged, or is not there.
    """
    return _read_frozen(run.dir).images_sha256


def _resolve(
    study: Study,
    shown: _Shown,
    known: dict[str, Model],
    *,
    list_sha256: str | None,
    checked: Collection[str] = (),
) -> Study:
    """Complete the image section, the attack, and every model that is not `known`; check the students.

    Args:
        known: resolved entries by key.
        checked: identities of students that need no check.
    """
    attack, resolved = resolve_attack(study.attack), dict(known)
    new = [model for model in study.models if model.key not in known]
    if new:
        # timm and torch take seconds to import: not needed to resume what has been resolved before.
        from simhpc.zoo.resolve import resolve_model

        for model in new:
            resolved[model.key] = resolve_model(model, len(shown.classes))
        _check_training(study, new, shown)
    images = study.images.model_copy(update={"size_px": study.images.size_px or 8, "list_sha256": list_sha256})
    # Of known models too: the expectation may change between runs.
    models = tuple(
        resolved[model.key].model_copy(
            update={"expected_top1_percent": expected_top1_percent(model, shows_imagenet=shown.imagenet)}
        )
        for model in study.models
    )
    complete = study.model_copy(update={"images": images, "attack": attack, "models": models})
    students = [student for student in complete.students if student.sha256() not in checked]
    if students:
        from simhpc.zoo.distillation import check_student

        for student in {student.distillation.name: student for student in students}.values():
            check_student(student, len(shown.classes))
        _check_training(study, [student.model for student in students], shown)
    return complete


def _is_known(held: Model, given_sha256: str | None, frozen: _Frozen) -> bool:
    """Whether the held, resolved entry is what resolving the given one again would give."""
    if given_sha256 != frozen.given.get(held.key):
        return False
    checkpoint = (held.checkpoint_path,) if held.checkpoint_sha256 else ()
    needed = [(checkpoint, held.checkpoint_sha256), (held.module_files, held.module_sha256)]
    return all(
        any(path.is_file() and file_sha256(path) == sha256 for path in paths) for paths, sha256 in needed if paths
    )


def _look_at_source(study: Study) -> tuple[_Shown, Source]:
    from simhpc.images import is_all_of_imagenet, open_source, selection

    source = open_source(study.images)
    positions = selection(study.images, source, study.seed)
    labels = source.labels if study.images.list is None else source.labels[positions]
    imagenet = is_all_of_imagenet(source.classes, labels)
    return _Shown(source.classes, imagenet, leaves_images=len(source.labels) > study.images.n), source


def _list_sha256(study: Study, held: Study | None = None) -> str | None:
    """Identity of the study's list; once a run is begun from it, the list itself is not needed any more."""
    from simhpc.images import list_sha256

    if held is not None and is_list_gone(study.images, held.images):
        return study.images.list_sha256 or held.images.list_sha256
    return list_sha256(study.images)


def _check_training(study: Study, models: list[Model], shown: _Shown) -> None:
    """Every model that is trained here has images to train on, and settings that timm takes."""
    from simhpc.images import check_classes, open_source
    from simhpc.zoo.training import check_settings

    sections = {model.key: model.training for model in models if model.training is not None}
    for key, training in sections.items():
        check_settings(key, training)
    for where in {training.images for training in sections.values()}:
        if where is None and not shown.leaves_images:
            raise StudyError(
                f"images.n = {study.images.n} takes every image of {study.images.source}: none is left to train on. "
                "Lower n, or set training.images"
            )
        if where is not None:
            check_classes(open_source(study.images, where).classes, shown.classes, where)


def _store_images(study: Study, source: Source, run_dir: RunDir) -> image_set.ImageSet:
    from simhpc.images import build_image_set

    chosen = build_image_set(study.images, source, study.seed, study.settings_sha256())
    chosen.save(run_dir.images)
    return chosen


def _held_images(held: Study, frozen: _Frozen, run_dir: RunDir) -> image_set.ImageSet:
    """The run's image set, checked; drawn again from its source if the file has gone.

    Raises:
        BadFileError: it is damaged, or not this run's.
    """
    is_drawn_again = not run_dir.images.exists()
    if is_drawn_again:
        _store_images(held, _look_at_source(held)[1], run_dir)
    found = image_set.load(run_dir.images)
    if found.sha256 != frozen.images_sha256 or found.settings_sha256 != held.settings_sha256():
        if is_drawn_again:
            run_dir.images.unlink()
        raise BadFileError(
            f"{run_dir.images} is not the image set that this run was begun with: it belongs to another run, or "
            f"{held.images.source} has changed since"
        )
    return found


def _write_list(ids: list[str], run_dir: RunDir) -> None:
    write_text(run_dir.image_list, image_list.text(ids))


def _freeze(study: Study, frozen: _Frozen, run_dir: RunDir) -> None:
    write_text(run_dir.frozen, json.dumps({**asdict(frozen), "sha256": _checksum(frozen)}, indent=1) + "\n")
    # Last: with this file the folder is a run directory.
    write_text(run_dir.study, frozen_text(study))


def _versions() -> dict[str, str]:
    libraries = ("torch", "timm", "numpy", "h5py", "scipy", "scikit-learn", "submitit")
    return {"simhpc": __version__, **{name: version(name) for name in libraries}}


def _is_unfinished(entry: Path, run_dir: RunDir) -> bool:
    """Whether an entry is what a preparation that was killed leaves behind."""
    ours = (run_dir.images.name, run_dir.image_list.name, run_dir.frozen.name)
    return entry.name in ours or any(entry.name.startswith(f"{name}.tmp.") for name in (*ours, run_dir.study.name))


@contextmanager
def _removed_on_failure(root: Path) -> Iterator[None]:
    """A new run directory is either whole or not there; parent folders that were made for it go too."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in (RunDir(root).images, RunDir(root).image_list, RunDir(root).frozen):
            path.unlink(missing_ok=True)
        # rmdir, not rmtree: another run may have been made in the same parent meanwhile.
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise
