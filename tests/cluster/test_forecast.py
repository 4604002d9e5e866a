"""The schedule against every other order, and the profile's limits one by one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simhpc.cluster.forecast import forecast, makespan_s, uses_gpu, warnings
from simhpc.cluster.profile import parse_profile
from simhpc.stages.estimate import Estimate, TaskEstimate
from simhpc.stages.task import Task
from simhpc.study import Resources

GIB = 1 << 30


def task(stage, model, **changes) -> TaskEstimate:
    fields = {
        "is_done": False,
        "flops": 100,
        "todo_flops": 100,
        "todo_s": 60.0,
        "step_s": 1.0,
        "memory_bytes": GIB,
        "device_bytes": 0,
        "written_bytes": 5,
        "written_most_bytes": 10,
        "read_bytes": 0,
    }
    return TaskEstimate(task=Task(stage, model), **{**fields, **changes})


def of(*tasks) -> Estimate:
    return Estimate(tasks=tasks, accuracy={}, costs={}, speeds=None, files={}, largest_file="", largest_file_bytes=0)


def said(found, **profile) -> list[str]:
    return warnings(found, parse_profile(profile, where="p.toml"), "p.toml")


def test_makespan_by_hand():
    assert makespan_s([3, 3, 2, 2, 2], 2) == 7  # the best is 6: Graham's worst case
    assert makespan_s([5, 1, 1, 1], 2) == 5
    assert makespan_s([2, 2, 2], 10) == 2
    assert makespan_s([], 3) == 0


@given(seconds=st.lists(st.integers(1, 20), min_size=1, max_size=6), at_once=st.integers(1, 3))
def test_makespan_against_every_assignment(seconds, at_once):
    best = min(
        max(sum(s for s, place in zip(seconds, places, strict=True) if place == k) for k in range(at_once))
        for places in itertools.product(range(at_once), repeat=len(seconds))
    )
    found = makespan_s(seconds, at_once)
    assert best <= found <= best * (4 / 3 - 1 / (3 * at_once)) + 1e-9
    assert makespan_s(seconds, 1) == sum(seconds)


def test_stages_follow_each_other_and_done_tasks_take_no_time():
    found = of(
        task("attack", "a", todo_s=10.0),
        task("attack", "b", is_done=True, todo_s=0.0, todo_flops=0),
        task("attack", "c", todo_s=4.0, written_most_bytes=30),
        task("evaluate", "a", todo_s=7.0),
    )
    attack, evaluate = forecast(found, {"attack": 2, "evaluate": 1})
    assert (attack.n_tasks, attack.n_done, attack.flops, attack.todo_flops) == (3, 1, 300, 200)
    assert (attack.device_s, attack.longest_s, attack.wall_s) == (14.0, 10.0, 10.0)
    assert attack.temporary_bytes == 40  # of two at once, the larger ones
    assert (evaluate.stage, evaluate.wall_s) == ("evaluate", 7.0)


def test_without_a_speed_no_time_is_known():
    (stage,) = forecast(of(task("attack", "a", todo_s=None, step_s=None)), {"attack": 1})
    assert (stage.device_s, stage.longest_s, stage.wall_s) == (None, None, None)
    assert said(of(task("attack", "a", todo_s=None, step_s=None)), defaults={"timeout_min": 1}) == []


def test_a_task_that_fits_is_not_mentioned():
    found = of(task("train", "a"), task("attack", "a", todo_s=3400.0, memory_bytes=8 * GIB))
    assert said(found, defaults={"timeout_min": 60, "mem_gb": 8}) == []


def test_a_long_attack_is_requeued():
    (line,) = said(of(task("attack", "vit", todo_s=3600.0)), attack={"timeout_min": 60})
    assert line == (
        "p.toml: attack.timeout_min = 60 is less than vit take(s): requeued until done, with what was finished kept"
    )


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ("train", "a single step takes longer"),
        ("distill", "a single step takes longer"),
        ("attack", "a single batch takes longer"),
        ("evaluate", "a single source takes longer"),
    ],
)
def test_what_would_be_requeued_for_ever(stage, why):
    (line,) = said(of(task(stage, "vit", todo_s=9999.0, step_s=9998.0)), defaults={"timeout_min": 60})
    assert f"{stage}.timeout_min = 60 is too short for vit" in line
    assert why in line


def test_memory_of_cpu_tasks_against_the_profile():
    found = of(*(task("evaluate", f"m{k}", memory_bytes=3 * GIB) for k in range(7)))
    (line,) = said(found, evaluate={"mem_gb": 2})
    assert line == "p.toml: evaluate.mem_gb = 2 is less than m0, m1, m2, m3, m4 and 2 more need(s), up to 3.0 GiB"
    assert said(of(task("attack", "a", memory_bytes=9 * GIB, device_bytes=1)), attack={"mem_gb": 2}) == []
    assert said(of(task("attack", "a", memory_bytes=9 * GIB, is_done=True)), attack={"mem_gb": 2}) == []


def test_processes_of_one_task_share_its_time_and_fill_a_node_together():
    found = of(task("train", "a", todo_s=10.0, memory_bytes=3 * GIB, processes=4), task("train", "b", todo_s=6.0))
    (train,) = forecast(found, {"train": 1})
    assert (train.device_s, train.wall_s) == (46.0, 16.0)
    several = {"nodes": 2, "tasks_per_node": 2}
    assert said(found, train={**several, "mem_gb": 6}) == []
    (line,) = said(found, train={**several, "mem_gb": 5})
    assert line == "p.toml: train.mem_gb = 5 is less than a need(s), up to 6.0 GiB"


def test_which_stages_compute_on_a_gpu():
    profile = parse_profile({"attack": {"gpus_per_node": 1}, "evaluate": {"gres": "gpu:1"}}, where="p")
    gpu = [stage for stage in ("train", "attack", "evaluate") if uses_gpu(profile, Resources(), stage)]
    assert gpu == ["attack", "evaluate"]
    assert not uses_gpu(profile, Resources(device="cpu"), "attack")
