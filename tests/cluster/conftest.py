"""The real development cluster, for the tests that need one."""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path

import pytest
from cluster.devcluster import CHECKOUT, DevCluster
from cluster.scenario import DEMO_MODELS, PROFILE, Scenario
from tiny import tiny


@pytest.fixture(scope="session")
def devcluster() -> DevCluster:
    """The real cluster. Without one the tests fail: they are only chosen by `-m cluster`."""
    if "DEVCLUSTER_DIR" not in os.environ:
        pytest.fail("no development cluster: run `make test-cluster`, or slurm/devcluster/up.sh and source its env")
    cluster = DevCluster()
    _measured.append(cluster.measured)
    return cluster


@pytest.fixture(scope="session")
def demo(devcluster: DevCluster) -> Path:
    """Four of the demo's models in the container, submitted before everything else, so that they live through all."""
    folder = devcluster.folder("demo")
    raw = tomllib.loads((CHECKOUT / "jobs" / "demo.toml").read_text())
    raw["models"] = [model for model in raw["models"] if model["key"] in DEMO_MODELS]
    study, run = devcluster.write(folder / "study.toml", raw), folder / "run"
    started_s = time.monotonic()
    profile = CHECKOUT / "slurm" / "devcluster-container.toml"
    devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", run)
    submitted_s = time.monotonic()
    devcluster.wait(run, lambda found: any(task["state"] == "running" for task in found["tasks"]), "a first task runs")
    devcluster.measure(
        "four models of the demo, all stages submitted after",
        f"{submitted_s - started_s:.1f} s (models checked, images made)",
    )
    devcluster.measure("first task seen running after the submission", f"{time.monotonic() - submitted_s:.1f} s")
    return run


@pytest.fixture(scope="session")
def trained(devcluster: DevCluster, demo: Path) -> Path:
    """Checkpoints of the tiny study's models, trained on the cluster."""
    folder = devcluster.folder("trained")
    study = devcluster.write(folder / "study.toml", tiny())
    profile = devcluster.write(folder / "profile.toml", PROFILE)
    devcluster.simhpc("submit", "train", study, "--profile", profile, "--out", folder / "run", "--wait")
    return folder / "run" / "checkpoints"


@pytest.fixture(scope="session")
def whole(devcluster: DevCluster, trained: Path) -> bytes:
    """The adversarial set of an attack that nothing happened to."""
    scenario = Scenario(devcluster, trained, "whole")
    scenario.submit()
    assert scenario.done()["restarts"] == 0
    return scenario.bytes()


_measured: list[list[str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests have measured on the cluster."""
    for line in (line for lines in _measured for line in lines):
        terminalreporter.write_line(f"measured: {line}")
