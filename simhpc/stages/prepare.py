"""From a study file to a run directory: check everything, complete the study, freeze it, store the images.

Nothing is written before everything has been checked, and what a run directory holds is never contradicted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from simhpc import __version__
from simhpc.errors import StudyError
from simhpc.rundir import Run, RunDir, open_run
from simhpc.store.atomic import write_text
from simhpc.study import Model, Study, differences, dump_study

if TYPE_CHECKING:
    from simhpc.images import Source

_HEADER = "# The frozen copy of the study that this run directory answers. Do not edit: make a new run instead.\n"


def check(study: Study) -> Study:
    """Check a study against timm, its checkpoints and its image sources; return it fully resolved.

    Raises:
        ModelError, ImageSourceError, StudyError: the first thing that is wrong.
    """
    return _resolve(study, _open_source(study), {})


def prepare(study: Study, root: Path) -> Run:
    """Make or complete the run directory `root` for a study, and open it.

    Args:
        study: as loaded from its file.
        root: an existing run directory, or a path where one can be made.

    Raises:
        StudyError: `root` answers another study, or holds something else.
        ModelError, ImageSourceError: see `check`.
    """
    run_dir = RunDir(root.resolve())
    if not run_dir.study.exists():
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StudyError(f"{root} exists and is not a run directory: choose another --out")
        source = _open_source(study)
        resolved = _resolve(study, source, {})
        with _removed_on_failure(root):
            _store_images(resolved, source, run_dir)
            _freeze(resolved, run_dir)
        return Run(run_dir, resolved)

    held = open_run(root).study
    resolved = _resolve(study, None, {model.key: model for model in held.models})
    if lines := differences(held, resolved):
        raise StudyError(
            "\n  ".join([f"{root} answers another study than the one given; differences:", *lines])
            + "\nOnly models can be added to a run. Choose another --out for a changed study."
        )
    if resolved != held:
        _freeze(resolved, run_dir)
    return Run(run_dir, resolved)


def version_changes(run: Run) -> list[str]:
    """Libraries whose version is no longer the one that the run directory was made with, one line each."""
    try:
        held: dict[str, str] = json.loads(run.dir.versions.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [
        f"{name} was {held[name]}, is {now}" for name, now in _versions().items() if name in held and held[name] != now
    ]


def _resolve(study: Study, source: Source | None, known: dict[str, Model]) -> Study:
    """Complete every model that is not, but for its data config, among the `known` ones."""
    new = [model for model in study.models if not _is_known(model, known.get(model.key))]
    resolved = dict(known)
    if new:
        # timm and torch take seconds to import: not needed to resume what has been resolved before.
        from simhpc.zoo.resolve import resolve_model

        source = source or _open_source(study)
        for model in new:
            resolved[model.key] = resolve_model(model, len(source.classes))
        _check_training(study, source)
    images = study.images.model_copy(update={"size_px": study.images.size_px or 8})
    return study.model_copy(update={"images": images, "models": tuple(resolved[model.key] for model in study.models)})


def _is_known(given: Model, held: Model | None) -> bool:
    """Whether the held, resolved entry is what resolving the given one would give."""
    if held is None or given.data.model_dump(exclude_none=True).items() - held.data.model_dump().items():
        return False
    if given.model_copy(update={"data": held.data, "checkpoint_sha256": held.checkpoint_sha256}) != held:
        return False
    if given.weights.startswith("checkpoint:"):
        from simhpc.store.checkpoint import file_sha256

        path = given.checkpoint_path
        return path.is_file() and file_sha256(path) == held.checkpoint_sha256
    return True


def _open_source(study: Study) -> Source:
    from simhpc.images import open_source, selection

    source = open_source(study.images.source, study.images.labels)
    selection(study.images, source, study.seed)
    return source


def _check_training(study: Study, source: Source) -> None:
    """Every model that is trained here has images to train on, and settings that timm takes."""
    from simhpc.images import open_source
    from simhpc.zoo.training import check_settings

    sections = {model.key: model.training for model in study.models if model.training is not None}
    for key, training in sections.items():
        check_settings(key, training)
    for where in {training.images for training in sections.values()}:
        if where is None and len(source.labels) == study.images.n:
            raise StudyError(
                f"images.n = {study.images.n} takes every image of {study.images.source}: none is left to train on. "
                "Lower n, or set training.images"
            )
        if where is not None and len(open_source(where, study.images.labels).classes) > len(source.classes):
            raise StudyError(f"training.images: {where} has more classes than {study.images.source}")


def _store_images(study: Study, source: Source, run_dir: RunDir) -> None:
    from simhpc.images import build_image_set

    image_set = build_image_set(study.images, source, study.seed, study.settings_sha256())
    image_set.save(run_dir.images)


def _freeze(study: Study, run_dir: RunDir) -> None:
    if not run_dir.versions.exists():
        write_text(run_dir.versions, json.dumps(_versions(), indent=1) + "\n")
    write_text(run_dir.study, _HEADER + dump_study(study))


def _versions() -> dict[str, str]:
    libraries = ("torch", "timm", "numpy", "h5py", "scipy", "scikit-learn", "submitit")
    return {"simhpc": __version__, **{name: version(name) for name in libraries}}


@contextmanager
def _removed_on_failure(root: Path) -> Iterator[None]:
    """A new run directory is either whole or not there; parent folders that were made for it go too."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in (RunDir(root).images, RunDir(root).versions):
            path.unlink(missing_ok=True)
        # rmdir, not rmtree: another run may have been made in the same parent meanwhile.
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise
