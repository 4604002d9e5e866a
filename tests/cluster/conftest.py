"""Fixtures for clusters: a fake one for the fast tests, and the real development cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cluster.devcluster import DevCluster
from cluster.fakes import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Stand-ins for Slurm's programs at the front of PATH."""
    fake = FakeSlurm(tmp_path / "slurm-bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture(scope="session")
def devcluster() -> DevCluster:
    """The real cluster. Without one the tests fail: they are only chosen by `-m cluster`."""
    if "DEVCLUSTER_DIR" not in os.environ:
        pytest.fail("no development cluster: run `make test-cluster`, or slurm/devcluster/up.sh and source its env")
    cluster = DevCluster()
    _measured.append(cluster.measured)
    return cluster


_measured: list[list[str]] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests have measured on the cluster."""
    for line in (line for lines in _measured for line in lines):
        terminalreporter.write_line(f"measured: {line}")
