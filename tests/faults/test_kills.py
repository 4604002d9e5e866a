"""Killed wherever a task changes the file system: the same command again ends as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults.conftest import TASKS, Undisturbed, contents
from faults.forks import END, Forks, Point, Work

STAGES = ("prepare", *(stage for stage, _ in TASKS))
FINAL = (
    *("checkpoints/", "adversarial/", "predictions/", "answers/", "similarity", "pairs", "models", "figures/"),
    *("images", "study"),
)
RANDOM_KILLS = 12
"""Of each stage, at any moment, besides those at each point."""


def work(undisturbed: Undisturbed, stage: str, root: Path, **fault) -> Work:
    if stage == "prepare":
        return Work("prepare", str(root), str(undisturbed.study), **fault)
    return Work("task", str(root), stage=stage, model=dict(TASKS)[stage], **fault)


@pytest.fixture(scope="session")
def points(forks: Forks, undisturbed: Undisturbed, tmp_path_factory) -> dict[str, list[Point]]:
    """All points of each stage, in order, and how long it takes."""
    found = {}
    for stage in STAGES:
        root = undisturbed.copy(stage, tmp_path_factory.mktemp("points") / "run")
        (end,) = forks.do(work(undisturbed, stage, root))
        assert end.code == 0, end.log
        assert contents(root) == undisturbed.after[stage]
        found[stage] = [*end.points, END]
    return found


def kill_and_repeat(forks: Forks, undisturbed: Undisturbed, stage: str, root: Path, *faults: dict) -> int:
    """Kill a task once or several times, then let it end; check the files after each. Returns how often it was hit."""
    after, kills = undisturbed.after[stage], 0
    undisturbed.copy(stage, root)
    for fault in faults:
        (end,) = forks.do(work(undisturbed, stage, root, **fault))
        if "kill_at" in fault:
            assert end.was_killed, (fault, end.log)
        kills += end.was_killed
        for name, held in contents(root).items() if root.exists() else ():
            if ".tmp." not in name and name.startswith(FINAL):
                assert held == after[name], (fault, name)
    (end,) = forks.do(work(undisturbed, stage, root))
    assert end.code == 0, (faults, end.log)
    found = contents(root)
    assert found.keys() == after.keys(), faults
    assert [name for name in found if found[name] != after[name]] == [], faults
    return kills


def faults_of(points: list[Point]) -> list[dict]:
    """Every point; where anything is flushed or renamed, also with all that was not flushed cut in half."""
    intact = [{"kill_at": point} for point in points]
    return intact + [{"kill_at": point, "torn": True} for point in points if point[0] in ("fsync", "rename", "end")]


def some(faults: list[dict], n: int) -> list[dict]:
    return random.Random(0).sample(faults, n)


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_some_points(forks, undisturbed, points, tmp_path, stage):
    for number, fault in enumerate(some(faults_of(points[stage]), 5)):
        kill_and_repeat(forks, undisturbed, stage, tmp_path / f"{number}", fault)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_every_point(forks, undisturbed, points, tmp_path, stage, record_property):
    kills = 0
    for number, fault in enumerate(faults_of(points[stage])):
        kills += kill_and_repeat(forks, undisturbed, stage, tmp_path / f"{number}", fault)
    record_property("kills", kills)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment_again_and_again(forks, undisturbed, tmp_path, stage, record_property):
    """From outside, three times in a row, also while a C library writes; the attempts may be of any length."""
    root = undisturbed.copy(stage, tmp_path / "timed")
    (end,) = forks.do(work(undisturbed, stage, root))
    drawn, kills = random.Random(1), 0
    for number in range(RANDOM_KILLS):
        faults = [{"kill_after_s": drawn.uniform(0.0, 1.0) * end.elapsed_s} for _ in range(3)]
        kills += kill_and_repeat(forks, undisturbed, stage, tmp_path / f"{number}", *faults)
    record_property("kills", kills)
