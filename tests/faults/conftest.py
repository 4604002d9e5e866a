"""A study so small that a task takes a fraction of a second, and what it looks like when nothing happens to it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults.forks import Forks, Work, started
from PIL import Image
from tiny import tiny, write_study

from simhpc.stages.progress import read_progress

KEYS = ("cnn", "vit")
TASKS = (
    ("train", "cnn"),
    ("attack", "cnn"),
    ("evaluate", "cnn"),
    ("aggregate", "_all"),
    ("distill", "vit-from-cnn"),
)
"""One of each stage."""
STILL = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}
"""Training images look alike each time."""


@dataclass(frozen=True)
class Undisturbed:
    """A finished run, and what it was before each of `TASKS` was done.

    Attributes:
        study: its study file.
        root: the run.
        before: a copy of the run before each stage's task, by stage; `prepare`: nothing.
        files: what the files of the finished run hold, see `contents`, by stage after it and at the end.
    """

    study: Path
    root: Path
    before: dict[str, Path]
    after: dict[str, dict[str, bytes]]

    def copy(self, stage: str, to: Path) -> Path:
        """The run as it was before a stage's task."""
        if stage in self.before:
            shutil.copytree(self.before[stage], to)
        return to


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with started() as server:
        yield server


@pytest.fixture(scope="session")
def undisturbed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    home = tmp_path_factory.mktemp("undisturbed")
    raw = tiny(
        KEYS,
        images={"source": f"folder:{_folder(home / 'images')}", "n": 24, "size_px": 8},
        training={"epochs": 2, "batch_size": 12},
        attack={"steps": 2},
        resources={"batch_size": 4, "threads_per_task": 1, "save_every_s": 0.0},
        # The teacher's answers are kept, which is a file more.
        distillations=[{"student": "vit", "teachers": ["cnn"], "cache_teacher": True, "training": STILL}],
    )
    for model in raw["models"]:
        model.pop("training", None)
    study, root = write_study(home / "study.toml", raw), home / "run"
    before, after = {}, {}

    def do(work: Work) -> None:
        (end,) = forks.do(work)
        assert end.code == 0, end.log

    do(Work("prepare", str(root), str(study)))
    after["prepare"] = contents(root)
    for stage, key in TASKS:
        others = [other for other in KEYS if other != key] if key in KEYS else []
        for other in others:
            do(Work("task", str(root), stage=stage, model=other))
        before[stage] = shutil.copytree(root, home / f"before-{stage}")
        do(Work("task", str(root), stage=stage, model=key))
        after[stage] = contents(root)
    return Undisturbed(study, root, before, after)


def _folder(root: Path) -> Path:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    for label in (0, 1, 7):
        (root / str(label)).mkdir(parents=True)
        for k in np.flatnonzero(bunch.target == label)[:20]:
            Image.fromarray(np.rint(bunch.images[k] * 255 / 16).astype(np.uint8)).save(root / str(label) / f"{k}.png")
    return root


def contents(root: Path) -> dict[str, bytes]:
    """What every file holds, by its path; without what differs from one undisturbed run to the next: times and logs."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(root)), path.read_bytes()
        if name.startswith("progress/") and ".tmp." not in name:
            reading = read_progress(path)
            data = reading.state.encode() if reading is not None else b"cannot be read"
        if name.startswith("metrics/"):
            data = re.sub(rb'"images_per_s": [\d.]+', b"", data)
        if not name.startswith(("slurm/", "tensorboard/")):
            found[name] = data
    return found
