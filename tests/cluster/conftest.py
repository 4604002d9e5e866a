"""The real development cluster, for the tests that need one."""

from __future__ import annotations

import os

import pytest
from cluster.devcluster import DevCluster


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
