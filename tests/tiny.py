"""A tiny study that trains, attacks and compares three real timm models on real digits in seconds."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w

from simhpc.rundir import Run
from simhpc.stages import STAGES, stage_module
from simhpc.stages.task import Task

DATA = {"input_size_px": 16, "crop_pct": 1.0, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"timm": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}},
    "convnext": {
        "timm": "convnext_atto",
        "args": {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16], "patch_size": 1},
    },
    "vit": {
        "timm": "vit_tiny_patch16_224",
        "args": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
        "training": {"epochs": 8, "lr": 3e-3},
    },
    "cnn-again": {"timm": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}},
}


def tiny(keys: Iterable[str] = ("cnn", "convnext", "vit"), **changes: Any) -> dict[str, Any]:
    """The tiny study as plain data; `changes` replace or extend its sections."""
    raw: dict[str, Any] = {
        "name": "tiny",
        "seed": 7,
        "images": {"source": "sklearn-digits", "n": 70},
        "training": {"epochs": 6, "lr": 4e-3, "hflip_prob": 0.0},
        "attack": {"eps_255": 32, "steps": 4, "step_size_eps": 0.4},
        "resources": {"batch_size": 32, "device": "cpu"},
        "models": [{"key": key, "weights": "train", "data": DATA, **copy.deepcopy(MODELS[key])} for key in keys],
    }
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
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


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, timeout_s: float = 20) -> bool:
    """Whether a process ends within that time."""
    deadline = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_alive(pid)
