"""What tasks read from outside the run directory: a container has to be shown it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from simhpc.rundir import Run
from simhpc.study import IMAGE_LAYOUTS, Model

_LOAD_MODELS = ("attack", "evaluate", "distill", "representations")


def paths(run: Run, stage: str, models: Iterable[str]) -> list[Path]:
    """Files and folders that the tasks of these models read, each once; `models` are keys (or `ALL`)."""
    entries = _entries(run, models)
    found: list[str] = []
    read: set[Path] = set()
    if stage in ("train", "distill"):
        images = run.study.images
        for source in {entry.training.images or images.source for entry in entries if entry.training}:
            found += [source, images.labels]
            if source == images.source and images.ground_truth is not None:
                # The folder: the devkit's own tables lie beside its ground truth.
                read.add(Path(images.ground_truth).parent)
    if stage in _LOAD_MODELS:
        found += [entry.weights for entry in entries]
    if stage != "aggregate":
        found += [
            f"folder:{entry.module_folder}" for entry in entries if entry.module and not entry.module_is_installed
        ]
    for kind, _, text in (text.partition(":") for text in found):
        if kind in (*IMAGE_LAYOUTS, "map", "checkpoint"):
            path = Path(text)
            read.add(path.parent if "*" in path.name else path)
    return sorted(read)


def pretrained(run: Run, stage: str, models: Iterable[str]) -> list[Model]:
    """Those of these models whose tasks load timm's own weights."""
    return [entry for entry in _entries(run, models) if entry.is_pretrained] if stage in _LOAD_MODELS else []


def unstaged(run: Run, stage: str, models: Iterable[str]) -> list[Model]:
    """Those of `pretrained` whose weights are not on this machine."""
    entries = pretrained(run, stage, models)
    if not entries:
        return []
    # timm and torch take seconds to import.
    from simhpc.zoo import weights

    return [entry for entry in entries if not weights.is_staged(entry)]


def _entries(run: Run, models: Iterable[str]) -> list[Model]:
    """Entries of models, and those of students with their teachers'."""
    wanted = set(models)
    students = [student for student in run.study.students if student.key in wanted]
    wanted |= {student.teacher for student in students}
    return [entry for entry in run.study.models if entry.key in wanted] + [student.model for student in students]
