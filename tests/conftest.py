"""Fixtures shared by all tests; the tiny study itself is in tiny.py."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster.fakes import FakeSlurm
from hypothesis import settings
from tiny import execute_all, tiny, write_study

from simhpc.cli import app
from simhpc.rundir import Run, open_run
from simhpc.stages.prepare import prepare
from simhpc.study import Study, load_study

# The same examples in every run: a test that fails once fails again.
settings.register_profile("simhpc", derandomize=True, deadline=None)
settings.load_profile("simhpc")


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
    shutil.copytree(finished.dir.root, tmp_path / "run")
    return open_run(tmp_path / "run")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Stand-ins for Slurm's programs at the front of PATH."""
    fake = FakeSlurm(tmp_path / "slurm-bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def simhpc(monkeypatch, capfd):
    """Run the program in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["simhpc", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            app.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run
