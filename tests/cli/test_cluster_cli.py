"""The commands for clusters as they are typed, with stand-ins for Slurm's programs."""

from __future__ import annotations

import json

import pytest
import tomli_w
from cluster.fakes import FakeSlurm, sacct_line
from tiny import tiny, write_study

from simhpc.cluster import ledger
from simhpc.rundir import open_run


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    fake = FakeSlurm(tmp_path / "slurm-bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path / "study.toml", tiny(("cnn", "vit")))


@pytest.fixture
def profile(tmp_path):
    path = tmp_path / "profile.toml"
    path.write_text(tomli_w.dumps({"defaults": {"partition": "main", "mem_gb": 1.0}}))
    return path


def aged(root):
    """As if everything had been submitted an hour ago."""
    from dataclasses import replace

    run = open_run(root)
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=entry.submitted_unix_s - 3600))
    return run


@pytest.mark.parametrize("command", ["submit", "status", "logs", "cancel", "retry"])
def test_help_has_examples(simhpc, command):
    code, out, _ = simhpc(command, "--help")
    assert code == 0
    assert f"simhpc {command}" in out.split("Examples")[1]


def test_submit_status_logs_cancel_retry(simhpc, slurm, study_file, profile, tmp_path):
    root = tmp_path / "run"
    code, out, _ = simhpc("submit", "all", study_file, "--profile", profile, "--out", root)
    assert code == 0, out
    assert "submitted  train      array 101, 2 task(s)" in out
    assert "submitted  attack     array 102, 2 task(s), aftercorr:101" in out
    assert "submitted  aggregate  job 104, 1 task(s), afterany:103" in out
    code, out, _ = simhpc("submit", "attacks", study_file, "--profile", profile, "--out", root)
    assert (code, "2 queued already, 0 to submit" in out, "nothing to submit" in out) == (0, True, True)

    code, out, _ = simhpc("status", root)
    assert (code, out.count("queued")) == (0, 4 + 7)
    run = aged(root)
    slurm.says(
        "sacct",
        sacct_line("101_0", "FAILED", "1:0", start="100", end="160")
        + sacct_line("101_1", "RUNNING", start="100")
        + sacct_line("102_0", "CANCELLED", reason="DependencyNeverSatisfied")
        + sacct_line("102_1", "PENDING", reason="Dependency")
        + sacct_line("103_[0-1]", "PENDING", reason="Dependency")
        + sacct_line("104", "PENDING", reason="Dependency"),
    )
    (submission,) = [entry for entry in ledger.read(run.dir) if entry.stage == "train"]
    log = run.dir.submissions / submission.folder / "101_0_0_log"
    log.with_suffix(".out").write_text("===== simhpc: attempt 1\nhello\n")
    log.with_suffix(".err").write_text("Traceback\nValueError: no weights\n")
    code, out, _ = simhpc("status", root)
    assert code == 1
    assert "exit code 1: ValueError: no weights" in out
    assert out.index("train of cnn did not succeed") < out.index("vit")
    code, out, _ = simhpc("status", root, "--json")
    data = json.loads(out)
    assert code == 1
    assert {task["state"] for task in data["tasks"]} == {"failed", "cancelled", "running", "queued"}

    assert simhpc("logs", "cnn", "--run", root)[1] == "===== simhpc: attempt 1\nhello\n"  # all else has not started
    code, _, err = simhpc("logs", "cnn", "--run", root, "--stage", "attacks")
    assert (code, "has job 102_0 started?" in err) == (2, True)
    code, out, err = simhpc("logs", "cnn", "--run", root, "--stage", "train")
    assert (code, out) == (0, "===== simhpc: attempt 1\nhello\n")
    assert "1 attempt(s) in all" in err
    assert "ValueError: no weights" in simhpc("logs", "cnn", "--run", root, "--stage", "train", "--stderr")[1]
    code, _, err = simhpc("logs", "cnn", "--run", root, "--stage", "train", "--attempt", "2")
    assert (code, "has 1 attempt(s)" in err) == (2, True)

    code, out, _ = simhpc("cancel", "vit", "--run", root, "--stage", "train")
    assert (code, "cancelled  train      vit (job 101_1)" in out) == (0, True)
    assert slurm.calls("scancel") == ["scancel 101_1"]

    code, out, _ = simhpc("retry", "--failed", "--run", root)
    assert code == 0
    assert "again      train      cnn: exit code 1: ValueError: no weights" in out
    assert "again      attack     cnn: train of cnn did not succeed" in out
    assert "submitted  train      job 105, 1 task(s)" in out


def test_a_dry_run_writes_nothing(simhpc, slurm, study_file, profile, tmp_path):
    root = tmp_path / "run"
    code, out, _ = simhpc("submit", "all", study_file, "--profile", profile, "--out", root, "--dry-run")
    assert code == 0
    assert "#SBATCH --array=0-1%2" in out
    assert "# element 1: attack of vit" in out
    assert "# the job: aggregate of all models" in out
    assert not root.exists()
    assert slurm.calls("sbatch") == []
    code, out, _ = simhpc("submit", "train", study_file, "--profile", profile, "--out", root, "--dry-run", "--json")
    assert json.loads(out)["would_submit"][0]["models"] == ["cnn", "vit"]


def test_only_some_models_as_json(simhpc, slurm, study_file, profile, tmp_path):
    command = ("submit", "train", study_file, "--profile", profile, "--out", tmp_path / "run", "--json")
    code, out, _ = simhpc(*command, "--only", "vit")
    assert code == 0
    (entry,) = json.loads(out)["submitted"]
    assert (entry["models"], entry["job_id"], entry["is_array"]) == (["vit"], "101", False)
    code, _, err = simhpc(*command, "--only", "vti")
    assert (code, "did you mean 'vit'" in err) == (2, True)


def test_refusals_are_exit_code_2(simhpc, slurm, study_file, profile, tmp_path):
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Invalid account\n")
    command = ("submit", "train", study_file, "--profile", profile, "--out", tmp_path / "run")
    code, _, err = simhpc(*command)
    assert (code, "Slurm refused the train array of 2 task(s): sbatch: error:" in err) == (2, True)
    code, _, err = simhpc("submit", "attaks", study_file, "--profile", profile)
    assert (code, "did you mean" in err) == (2, True)
    code, _, err = simhpc("submit", "train", study_file, "--profile", tmp_path / "none.toml")
    assert (code, "no profile file" in err) == (2, True)


def test_the_run_is_found(simhpc, slurm, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = simhpc("status")
    assert (code, "no run directory here" in err) == (2, True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(copied.dir.root)
    assert simhpc("status")[0] == 0
    (tmp_path / "runs" / "two").symlink_to(copied.dir.root)
    code, _, err = simhpc("status")
    assert (code, "several runs" in err) == (2, True)
    monkeypatch.chdir(copied.dir.root)
    assert simhpc("status")[0] == 0


def test_naming_nothing_or_both(simhpc, slurm, copied):
    for command in ("cancel", "retry"):
        flag = "--all" if command == "cancel" else "--failed"
        for words in ([], ["cnn", flag]):
            code, _, err = simhpc(command, *words, "--run", copied.dir.root)
            assert (code, "name the models" in err) == (2, True)
    code, _, err = simhpc("logs", "cnn", "--run", copied.dir.root)
    assert (code, "has not been submitted" in err) == (2, True)


def test_waiting_ends_with_the_tasks(simhpc, slurm, copied, study_file, profile, monkeypatch):
    """--wait on what is done already, then on what has failed."""
    from simhpc.cli import status

    monkeypatch.setattr(status, "_LOOK_S", 0.05)
    full = write_study(study_file.parent / "full.toml", tiny())
    command = ("submit", "attacks", full, "--profile", profile, "--out", copied.dir.root, "--wait")
    code, out, _ = simhpc(*command)
    assert (code, "nothing to submit" in out) == (0, True)
    copied.dir.adversarial("cnn").unlink()
    slurm.says("sacct", sacct_line("101", "FAILED", "1:0", start="1", end="2"))
    code, out, err = simhpc(*command)
    assert code == 1
    assert "attack cnn: failed" in err
    # Only what was asked for counts.
    slurm.says("sacct", sacct_line("101", "FAILED", "1:0", start="1", end="2") + sacct_line("102", "RUNNING"))
    assert simhpc(*command, "--only", "vit")[0] == 0


def test_nothing_is_cancelled_blindly(simhpc, slurm, study_file, profile, tmp_path):
    root = tmp_path / "run"
    simhpc("submit", "train", study_file, "--profile", profile, "--out", root)
    aged(root)
    slurm.fails("sacct", "Connection refused\n")
    slurm.fails("squeue", "Connection refused\n")
    code, _, _ = simhpc("cancel", "--all", "--run", root)
    assert (code, slurm.calls("scancel")) == (0, ["scancel 101_0 101_1"])  # scancel may work all the same
    code, _, err = simhpc("submit", "train", study_file, "--profile", profile, "--out", root)
    assert (code, "nothing was submitted" in err) == (2, True)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_thousand_tasks_fit_any_window(columns):
    from rich.console import Console

    from simhpc.cli.status import _View
    from simhpc.cluster.status import STATES, RunStatus, TaskStatus

    tasks = [
        TaskStatus("attack", f"model-{number}", STATES[number % len(STATES)], reason="a long reason " * 20)
        for number in range(1000)
    ]
    console = Console(width=columns, height=24, record=True, force_terminal=True)
    console.print(_View(RunStatus(tuple(tasks), "sacct", ("Slurm is away",), 0.0)))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= columns for line in lines)
    assert "attack" in lines[0]
    rows = [line.split() for line in lines if "a long" in line]
    assert len(rows) > 10
    assert {row[2] for row in rows} == {"failed"}
    assert "more: " in lines[-1]
