"""One study of one slow attack on the development cluster, which a test lets something happen to."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from cluster.devcluster import CHECKOUT, DevCluster
from tiny import MODELS, tiny

from simhpc.rundir import RunDir
from simhpc.store import adversarial

PROFILE = {
    "defaults": {"partition": "main", "account": "lab", "timeout_min": 30, "mem_gb": 1.0, "array_parallelism": 4}
}


# An MLP with a training of its own, two convolutional networks, a transformer.
DEMO_MODELS = ("mixer", "resnet", "efficientnet", "pit")
IMAGE = CHECKOUT / "containers" / "simhpc-cpu.sif"
STEPS = 240
RUN = """it's a "run" of $HOME, é"""
"""Every scenario's run directory: what a shell, Slurm or submitit might read otherwise arrives intact."""


def study_of(trained: Path, copies: dict[str, str], **changes) -> dict:
    """A study of these models with the trained weights: {key: which of the tiny study's models}."""
    raw = tiny(("cnn",), **changes)
    data = raw["models"][0]["data"]
    raw["models"] = []
    for key, kind in copies.items():
        args = {**MODELS[kind]["args"], "num_classes": 10}
        weights = f"checkpoint:{trained / f'{kind}.safetensors'}"
        raw["models"].append({"key": key, "timm": MODELS[kind]["timm"], "args": args, "data": data, "weights": weights})
    return raw


class Scenario:
    """One study of one slow attack, and what it should come to."""

    def __init__(self, devcluster: DevCluster, trained: Path, name: str) -> None:
        self.cluster = devcluster
        self.folder = devcluster.folder(name)
        self.run = self.folder / RUN
        raw = study_of(trained, {"cnn": "cnn"}, attack={"steps": STEPS}, resources={"batch_size": 4})
        self.study = devcluster.write(self.folder / "study.toml", raw)

    def submit(self, *options: str, code: int = 0, **profile) -> subprocess.CompletedProcess[str]:
        """Submit the attack; what is not a table of the profile is the attack's."""
        tables = {key: profile.pop(key) for key in ("retry", "container") if key in profile}
        raw = {**PROFILE, **tables, "attack": profile}
        path = self.cluster.write(self.folder / "profile.toml", raw)
        return self.cluster.simhpc(
            "submit", "attacks", self.study, "--profile", path, "--out", self.run, *options, code=code
        )

    def parts(self) -> int:
        return len(list(RunDir(self.run).attack_parts("cnn").glob("*/*.h5")))

    def in_mid_attack(self, parts: int = 2) -> dict:
        """Wait until some batches are finished and others are not."""
        self.cluster.wait(self.run, lambda _: self.parts() >= parts, f"{parts} finished batches")
        task = self.cluster.task(self.run, "attack", "cnn")
        assert task["state"] == "running", task
        return task

    def done(self, timeout_s: float = 300, *, repair: bool = False) -> dict:
        self.cluster.wait_for_state(self.run, "attack", "done", timeout_s, repair=repair)
        # The output is there a moment before Slurm says that its job is over.
        self.cluster.wait(
            self.run,
            lambda now: not any(task["is_live"] for task in now["tasks"]),
            "its job is over",
            90,
            repair=repair,
        )
        return self.cluster.task(self.run, "attack", "cnn")

    def bytes(self) -> bytes:
        return RunDir(self.run).adversarial("cnn").read_bytes()

    def header(self) -> adversarial.Header:
        return adversarial.header(RunDir(self.run).adversarial("cnn"))

    def states(self) -> list[str]:
        """Of every start of the task's last job, as sacct tells them."""
        job = self.cluster.task(self.run, "attack", "cnn")["job"]
        return [start["State"].split()[0] for start in self.cluster.accounting(job)]

    def agrees(self) -> None:
        """What status says is what sacct says, as soon as the accounting has heard of it."""
        deadline_s = time.monotonic() + 30
        while True:
            task = self.cluster.task(self.run, "attack", "cnn")
            said = {"state": task["slurm_state"], "restarts": task["restarts"], "exit_code": task["exit_code"]}
            starts = self.cluster.accounting(task["job"])
            told = {}
            if starts:
                code = None if task["is_live"] else int(starts[-1]["ExitCode"].split(":")[0])
                told = {"state": starts[-1]["State"].split()[0], "restarts": len(starts) - 1, "exit_code": code}
            if said == told:
                return
            assert time.monotonic() < deadline_s, (said, told)
            time.sleep(1)
