"""Three hundred short array elements on a cluster that does not leave them alone: nothing is lost, nothing doubled.

Slow: `slurm/devcluster/test.sh -m 'cluster and slow'`.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster.devcluster import DevCluster
from cluster.scenario import PROFILE, RUN
from tiny import execute_all, tiny

from simhpc.cluster import ledger
from simhpc.rundir import RunDir, open_run
from simhpc.stages import STAGES
from simhpc.stages.prepare import prepare
from simhpc.study import load_study

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(7200)]

MODELS = 100
"""Each is trained, attacked and evaluated by an element of its own."""
ACCIDENTS = 80
SEED = 300
UNREACHABLE_S = 25
"""Longer than Slurm waits for a node before it runs its jobs elsewhere."""


class Chaos:
    """Accidents to a run's elements and their nodes, one after the other, drawn from a seed.

    Attributes:
        happened: how often each accident did.
    """

    def __init__(self, devcluster: DevCluster, run: Path) -> None:
        self.cluster, self.run = devcluster, run
        self.random = random.Random(SEED)
        self.happened: Counter[str] = Counter()
        self.accidents: dict[Callable[[dict], None], int] = {
            self.requeue: 6, self.kill_task: 6, self.cut_node: 2, self.crash_node: 2, self.stop_controller: 1,
        }  # fmt: skip

    def strike(self) -> None:
        """One accident, to something that runs."""
        running = [task for task in self.cluster.status(self.run)["tasks"] if task["state"] == "running"]
        if not running:
            return
        accident = self.random.choices(list(self.accidents), list(self.accidents.values()))[0]
        # An element may end by itself meanwhile.
        with contextlib.suppress(AssertionError, ProcessLookupError, subprocess.CalledProcessError):
            accident(self.random.choice(running))
            self.happened[accident.__name__] += 1

    def requeue(self, task: dict) -> None:
        self.cluster.slurm("scontrol", "requeue", task["job"])

    def kill_task(self, task: dict) -> None:
        os.kill(self.cluster.pid_of(task["job"]), signal.SIGKILL)

    def cut_node(self, task: dict) -> None:
        """Slurm runs its elements elsewhere, while the old copies go on."""
        self.cluster.operate("cut", task["node"])
        time.sleep(UNREACHABLE_S)
        self.cluster.operate("heal", task["node"])

    def crash_node(self, task: dict) -> None:
        self.cluster.operate("crash", task["node"])
        time.sleep(UNREACHABLE_S)
        self.cluster.operate("start", task["node"])

    def stop_controller(self, task: dict) -> None:
        """Nothing runs longer or less long for it."""
        self.cluster.operate("controller", "off")
        time.sleep(5)
        self.cluster.operate("controller", "on")


def ends(devcluster: DevCluster, run: Path) -> Counter[tuple[str, str]]:
    """How often an element of each (stage, model) ended well, as Slurm's accounting tells it, in whatever job."""
    submissions = ledger.read(RunDir(run))
    task_of = {
        job: (entry.stage, model)
        for entry in submissions
        for model, job in zip(entry.models, entry.jobs(), strict=True)
    }
    jobs = ",".join(entry.job_id for entry in submissions)
    text = devcluster.slurm("sacct", "-X", "-D", "-P", "-n", "-o", "JobID,State", "-j", jobs)
    lines = [line.split("|") for line in text.splitlines()]
    return Counter(task_of[job] for job, state in lines if state == "COMPLETED")


def test_three_hundred_elements_and_nothing_is_lost_or_doubled(devcluster, tmp_path):
    folder = devcluster.folder("soak")
    raw = tiny(("cnn",), images={"n": 24}, attack={"steps": 2}, training={"epochs": 1})
    (model,) = raw["models"]
    raw["models"] = [{**model, "key": f"m{number:03d}"} for number in range(MODELS)]
    raw["resources"] = {"batch_size": 8, "device": "cpu", "threads_per_task": 1}
    study, run = devcluster.write(folder / "study.toml", raw), folder / RUN
    profile = devcluster.write(folder / "profile.toml", PROFILE)
    everything = ("submit", "all", study, "--profile", profile, "--out", run)
    started_s = time.monotonic()
    devcluster.simhpc(*everything)

    chaos, rounds = Chaos(devcluster, run), 1
    while True:
        tasks = devcluster.status(run)["tasks"]
        live = any(task["is_live"] for task in tasks)
        if not live and all(task["state"] == "done" for task in tasks):
            break
        assert time.monotonic() - started_s < 6600, Counter(task["state"] for task in tasks)
        if not live:
            # What somebody does who finds failed elements in the morning.
            rounds += 1
            devcluster.simhpc("retry", "--failed", "--run", run, code=None)
            devcluster.simhpc(*everything)
        if sum(chaos.happened.values()) < ACCIDENTS:
            chaos.strike()
        devcluster.repair()
        time.sleep(chaos.random.uniform(1, 8))
    devcluster.measure(
        "soak",
        f"{len(tasks)} tasks, {dict(chaos.happened)}, {rounds} submissions, "
        f"{sum(task['n_jobs'] for task in tasks)} jobs, {time.monotonic() - started_s:.0f} s",
    )

    assert sum(chaos.happened.values()) > ACCIDENTS / 2
    assert len(tasks) == 3 * MODELS + 1
    # Nothing is lost: every file is what it is where nothing happens.
    calm = open_run(prepare(load_study(study), tmp_path / "calm").dir.root)
    execute_all(calm, STAGES)
    for kind in ("checkpoints", "adversarial", "predictions"):
        made = {path.name: path.read_bytes() for path in (run / kind).iterdir()}
        assert len(made) == MODELS
        assert made == {path.name: path.read_bytes() for path in (calm.dir.root / kind).iterdir()}, kind
    assert RunDir(run).similarity.read_bytes() == calm.dir.similarity.read_bytes()
    # Nothing is doubled: Slurm completed no training and no attack twice. (An evaluation is done again when sets that
    # it went without are there.)
    completed = ends(devcluster, run)
    for stage in ("train", "attack"):
        assert {completed[stage, f"m{number:03d}"] for number in range(MODELS)} <= {0, 1}
        # Killed when its output was there is done, and not completed.
        assert sum(completed[stage, f"m{number:03d}"] for number in range(MODELS)) > 0.9 * MODELS
    assert not [path for path in run.rglob("*") if ".tmp." in path.name]
    devcluster.simhpc("verify", run, "--deep")
