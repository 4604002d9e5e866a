"""A tiny study that trains, attacks and compares three real timm models on real digits in seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from simhpc.rundir import Run
from simhpc.stages import STAGES, stage_module
from simhpc.stages.prepare import prepare
from simhpc.stages.task import Task
from simhpc.study import Study, load_study

DATA = {"input_size_px": 16, "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"timm": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}},
    "convnext": {
        "timm": "convnext_atto",
        "args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16], "patch_size": 2},
    },
    "vit": {
        "timm": "vit_tiny_patch16_224",
        "args": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "training": {"epochs": 6},
    },
    "cnn-again": {"timm": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}},
}


def tiny(keys: Iterable[str] = ("cnn", "convnext", "vit"), **changes: Any) -> dict[str, Any]:
    """The tiny study as plain data; `changes` replace or extend its sections."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "images": {"source": "sklearn-digits", "n": 70},
        "training": {"epochs": 3, "lr": 3e-3, "hflip_prob": 0.0},
        "attack": {"eps_255": 32, "steps": 4, "step_size_eps": 0.4},
        "similarity": {"bootstrap_samples": 200},
        "resources": {"batch_size": 32, "device": "cpu"},
        "models": [{"key": key, "weights": "train", "data": DATA, **copy.deepcopy(MODELS[key])} for key in keys],
    }
    for section, change in changes.items():
        raw[section] = {**raw[section], **change} if isinstance(change, dict) else change
    return raw


def write_study(path: Path, raw: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps(raw))
    return path


def execute_all(run: Run, stages: Iterable[str] = STAGES) -> list[Task]:
    """Every task that is not done, in this process; returns those executed."""
    executed = []
    for stage in stages:
        module = stage_module(stage)
        for task in module.tasks(run):
            if not module.is_done(run, task):
                module.execute(run, task, lambda *_: None)
                executed.append(task)
    return executed


@pytest.fixture(autouse=True)
def _torch_state() -> Any:
    """Stages set torch's threads and determinism for their own process; tests share one."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    def make(*args: Any, **changes: Any) -> Study:
        return load_study(write_study(tmp_path / "study.toml", tiny(*args, **changes)))

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of the tiny study. Read only: tests that change files copy it first."""
    root = tmp_path_factory.mktemp("finished")
    run = prepare(load_study(write_study(root / "study.toml", tiny())), root / "run")
    execute_all(run)
    return run


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may damage."""
    import shutil

    from simhpc.rundir import open_run

    shutil.copytree(finished.dir.root, tmp_path / "run")
    return open_run(tmp_path / "run")
