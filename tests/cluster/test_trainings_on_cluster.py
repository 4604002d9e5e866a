"""Trainings of several processes, and students, inside the real image on a real Slurm, as an ordinary user."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cluster.scenario import IMAGE, PROFILE, RUN
from safetensors.torch import load_file
from tiny import tiny

from simhpc.cluster.container import SIGNAL
from simhpc.rundir import RunDir
from simhpc.stages.progress import read_progress
from simhpc.store import checkpoint, step_log

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

INSIDE = {"container": {"image": str(IMAGE)}}
# Steps that are few, so that float tolerance stays one, and slow, so that there is a middle. Without whatever would let
# the images of a step depend on each other: then it does not matter how many processes share it.
VIT = {"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
DATA = {"input_size_px": 32, "crop_pct": 1.0}
TRAINING = {"epochs": 5, "batch_size": 192, "optimizer": "sgd", "lr": 0.02, "hflip_prob": 0.0}
STEPS = 5 * (1727 // 192)


class Together:
    """One model that some processes train together."""

    def __init__(self, devcluster, name: str, **resources) -> None:
        self.cluster = devcluster
        self.folder = devcluster.folder(name)
        self.run = self.folder / RUN
        raw = tiny((), training=TRAINING, resources={"save_every_s": 0.0})
        raw["models"] = [{"key": "vit", "timm": "vit_tiny_patch16_224", "weights": "train", "args": VIT, "data": DATA}]
        study = devcluster.write(self.folder / "study.toml", raw)
        profile = devcluster.write(self.folder / "profile.toml", {**PROFILE, **INSIDE, "train": resources})
        devcluster.simhpc("submit", "train", study, "--profile", profile, "--out", self.run)

    def step(self) -> int:
        """The newest state's."""
        names = [path.stem for path in RunDir(self.run).training_states("vit").glob("*/step-*.pt")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)

    def in_the_middle(self) -> str:
        """Wait until some steps are saved and others are not done; the job's number."""
        self.cluster.wait(self.run, lambda _: self.step() >= 4, "a saved state")
        return str(self.cluster.task(self.run, "train", "vit")["job"])

    def done(self) -> dict:
        self.cluster.wait_for_state(self.run, "train", "done", 300)
        self.cluster.wait(self.run, lambda now: not any(t["is_live"] for t in now["tasks"]), "its job is over", 90)
        return self.cluster.task(self.run, "train", "vit")

    def resumed(self) -> int:
        """The step that the newest attempt began after."""
        found = read_progress(RunDir(self.run).progress("train", "vit"))
        assert found is not None
        return found.resumed

    def metadata(self) -> dict[str, str]:
        return checkpoint.metadata_of(RunDir(self.run).checkpoint("vit"))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(RunDir(self.run).checkpoint("vit"))

    def weights_sha256(self) -> str:
        return self.metadata()["weights_sha256"]

    def losses(self) -> list[float]:
        """Of each step; each is there once, whatever happened."""
        rows = step_log.read(RunDir(self.run).training_log("vit"))
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        return [row["loss_nats"] for row in rows]


@pytest.fixture(scope="module")
def alone(devcluster) -> Together:
    """One process. As `pair` and `spread` submitted before the first test, so that none waits for another."""
    return Together(devcluster, "alone")


@pytest.fixture(scope="module")
def pair(devcluster) -> Together:
    """Two processes on one node, to which nothing happens."""
    return Together(devcluster, "pair", tasks_per_node=2, mem_gb=2.0)


@pytest.fixture(scope="module")
def spread(devcluster) -> Together:
    """A process on each of two nodes."""
    return Together(devcluster, "spread", nodes=2)


def attempts(training: Together) -> int:
    """How often its processes were started, by the log of the first one."""
    (log,) = RunDir(training.run).submissions.glob("train-*/*_0_log.out")
    return log.read_text().count("attempt ")


def test_processes_on_two_nodes_go_on_where_they_were(devcluster, alone, pair, spread):
    """First told to save and stop, as before a time limit, then stopped without a word."""
    job = spread.in_the_middle()
    assert devcluster.slurm("squeue", "-h", "-j", job, "-o", "%D").strip() == "2"
    devcluster.slurm("scancel", f"--signal={SIGNAL.value}", job)
    devcluster.wait(spread.run, lambda now: now["tasks"][0]["state"] == "queued", "it has given its nodes back")
    told = spread.step()
    devcluster.wait(spread.run, lambda _: spread.step() > told, "it has gone on")
    assert spread.resumed() == told >= 4
    with devcluster.frozen(job):
        seen = spread.step()
        devcluster.slurm("scontrol", "requeue", job)
        devcluster.wait(spread.run, lambda _: attempts(spread) == 3, "it runs again")
    assert spread.done()["restarts"] == 2
    # The first process saves, and may have been stopped on its way from one step to its state.
    assert seen <= spread.resumed() <= seen + 1
    assert "asks to be requeued" in devcluster.simhpc("logs", "vit", "--run", spread.run, "--attempt", "1").stdout
    pair.done()
    assert spread.weights_sha256() == pair.weights_sha256()
    assert spread.losses() == pair.losses()


def test_two_processes_are_one_with_the_same_images_per_step(alone, pair):
    for each, processes in ((alone, "1"), (pair, "2")):
        assert each.done()["restarts"] == 0
        assert each.metadata()["processes"] == processes
    assert pair.losses() == pytest.approx(alone.losses(), rel=1e-4)
    ours, theirs = pair.weights(), alone.weights()
    assert ours.keys() == theirs.keys()
    assert pair.weights_sha256() != alone.weights_sha256()  # they were not computed alike
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)


def test_one_of_two_processes_is_killed(devcluster, pair):
    """The other one is not left waiting for it; a retry goes on from the state that both had reached."""
    killed = Together(devcluster, "lost", tasks_per_node=2, mem_gb=2.0)
    job = killed.in_the_middle()
    os.kill(devcluster.pid_of(job, rank=1), signal.SIGKILL)
    devcluster.wait_for_state(killed.run, "train", "failed", 60)
    assert "process 1 on node" in devcluster.task(killed.run, "train", "vit")["reason"]
    saved = killed.step()
    assert 4 <= saved < STEPS
    assert "again      train      vit" in devcluster.simhpc("retry", "--failed", "--run", killed.run).stdout
    task = killed.done()
    assert (task["n_jobs"], task["restarts"]) == (2, 0)
    assert killed.resumed() == saved
    pair.done()
    assert killed.weights_sha256() == pair.weights_sha256()
    assert killed.losses() == pair.losses()


def test_students_are_those_of_a_run_on_one_machine(devcluster):
    """All stages at once; one student is stopped without a word while it learns, another one is told to stop."""
    folder = devcluster.folder("students")
    student = {"student": "vit", "kind": "soft", "teachers": ["cnn"], "repeats": 2, "training": {"epochs": 20}}
    raw = tiny(("cnn", "vit"), distillations=[student], resources={"save_every_s": 0.0})
    study = devcluster.write(folder / "study.toml", raw)
    profile = devcluster.write(folder / "profile.toml", {**PROFILE, **INSIDE})
    run, local = folder / RUN, folder / "local"
    devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", run)
    keys = ("vit-from-cnn", "vit-from-cnn-2")

    def running(key: str, restarts: int) -> bool:
        task = devcluster.task(run, "distill", key)
        return (task["state"], task["restarts"]) == ("running", restarts)

    def is_learning(_: object) -> bool:
        return all(running(key, 0) and any(RunDir(run).training_states(key).glob("*/step-*.pt")) for key in keys)

    with ThreadPoolExecutor() as pool:
        # Beside all that follows, which is waiting for the most part.
        alone = pool.submit(devcluster.simhpc, "run", study, "--out", local, "--stages", "train,distill")
        devcluster.wait(run, is_learning, "both students learn")
        stopped, told = (devcluster.task(run, "distill", key)["job"] for key in keys)
        with devcluster.frozen(stopped):
            devcluster.slurm("scancel", f"--signal={SIGNAL.value}", told)
            devcluster.slurm("scontrol", "requeue", stopped)
            devcluster.wait(run, lambda _: running(keys[0], 1), "the first learns again")
        for stage in ("train", "attack", "evaluate", "aggregate", "distill"):
            devcluster.wait_for_state(run, stage, "done", 300)
        alone.result()
    for key in keys:
        assert devcluster.task(run, "distill", key)["restarts"] == 1, key
        read = read_progress(RunDir(run).progress("distill", key))
        assert 0 < read.resumed < read.total == read.done, key
    for key in ("cnn", "vit", *keys):
        here, there = (RunDir(each).checkpoint(key) for each in (local, run))
        ours, theirs = load_file(here), load_file(there)
        assert ours.keys() == theirs.keys(), key
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), key
        # The container's digest, and the hash over it, is all that tells the files apart.
        told_apart = checkpoint.metadata_of(here).items() ^ checkpoint.metadata_of(there).items()
        assert {name for name, _ in told_apart} <= {"container", "metadata_sha256"}, key
