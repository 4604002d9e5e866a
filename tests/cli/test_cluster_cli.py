"""The commands for clusters as they are typed, with stand-ins for Slurm's programs."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import tomli_w
from cluster.fakes import sacct_line
from tiny import tiny, write_study

from simhpc.cluster import ledger
from simhpc.rundir import open_run
from simhpc.stages.prepare import prepare
from simhpc.study import load_study


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
    assert (code, "tells whether it has started" in err) == (2, True)
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


def test_a_study_whose_list_is_gone_is_still_compared_with_its_run(simhpc, slurm, profile, tmp_path):
    (tmp_path / "list.txt").write_text("digits-0001\ndigits-0002\n")
    raw = tiny(("cnn",))
    raw["images"] = {"source": "sklearn-digits", "list": "list.txt"}
    file = write_study(tmp_path / "study.toml", raw)
    prepare(load_study(file), tmp_path / "run")
    (tmp_path / "list.txt").unlink()
    write_study(file, {**raw, "seed": 8})
    for command in (("submit", "all", file, "--profile", profile), ("plan", file), ("run", file)):
        code, _, err = simhpc(*command, "--out", tmp_path / "run")
        assert (code, "seed: run directory has 7, study has 8" in err) == (2, True)
        code, _, err = simhpc(*command, "--out", tmp_path / "other")
        assert (code, "images.list: cannot read" in err) == (2, True)


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
    assert (code, "Slurm refused the train array of 2 task(s), nothing was submitted: sbatch: error:" in err) == (
        2,
        True,
    )
    assert f"Change {profile}" in err
    code, _, err = simhpc("submit", "attaks", study_file, "--profile", profile)
    assert (code, "did you mean 'attacks'" in err, ", all" in err) == (2, True, True)
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
    assert (code, "no task of cnn has been submitted" in err) == (2, True)
    code, _, err = simhpc("status", copied.dir.root, "--run", copied.dir.root)
    assert (code, "name one run directory" in err) == (2, True)
    code, _, err = simhpc("status", "--run", copied.dir.root, "--watch", "--json")
    assert (code, "give one of them" in err) == (2, True)


def test_all_is_the_model_of_the_aggregation(simhpc, slurm, copied, study_file, profile):
    full = write_study(study_file.parent / "full.toml", tiny())
    copied.dir.similarity.unlink()
    assert simhpc("submit", "aggregate", full, "--profile", profile, "--out", copied.dir.root)[0] == 0
    code, out, _ = simhpc("cancel", "all", "--run", copied.dir.root)
    assert (code, "nothing of that" in out or "cancelled" in out) == (0, True)
    aged(copied.dir.root)
    slurm.says("sacct", sacct_line("101", "CANCELLED by 7"))
    code, out, _ = simhpc("retry", "--failed", "--run", copied.dir.root)
    assert (code, "1 task(s) were cancelled: name their models, or give --cancelled" in out) == (0, True)
    assert "submitted  aggregate" in simhpc("retry", "all", "--run", copied.dir.root)[1]
    aged(copied.dir.root)
    slurm.says("sacct", sacct_line("102", "CANCELLED by 7"))
    assert "submitted  aggregate" in simhpc("retry", "--cancelled", "--run", copied.dir.root)[1]


def test_what_can_only_fail_is_left_out_and_said(simhpc, slurm, study_file, profile, tmp_path):
    command = ("submit", "attacks", study_file, "--profile", profile, "--out", tmp_path / "run")
    code, out, err = simhpc(*command)
    assert (code, "0 to submit" in out) == (1, True)
    assert "attack of 2 model(s) left out, as their train is neither done nor queued: cnn, vit" in err
    assert slurm.calls("sbatch") == []


def test_memory_that_was_not_enough(simhpc, slurm, study_file, profile, tmp_path):
    """Without a factor in the profile, a retry would only come to the same."""
    root = tmp_path / "run"
    simhpc("submit", "train", study_file, "--profile", profile, "--out", root)
    aged(root)
    slurm.says("sacct", sacct_line("101_0", "OUT_OF_MEMORY") + sacct_line("101_1", "RUNNING"))
    code, out, _ = simhpc("retry", "cnn", "--run", root)
    assert (code, "with as much as before: a --profile can give more" in out) == (0, True)
    # The retry has not started: the log is that of the attempt before.
    (first, second) = ledger.read(open_run(root).dir)
    log = open_run(root).dir.submissions / first.folder / "101_0_0_log.out"
    log.write_text("hello\n")
    code, out, err = simhpc("logs", "cnn", "--run", root)
    assert (code, out, f"job {second.job_id} has written nothing yet" in err) == (0, "hello\n", True)
    log.with_name(f"{second.job_id}_0_log.err").parent.joinpath(log.name).unlink()
    error = open_run(root).dir.submissions / second.folder / f"{second.job_id}_0_log.err"
    error.write_text("no such module\n")
    code, _, err = simhpc("logs", "cnn", "--run", root)
    assert (code, "try --stderr" in err) == (2, True)
    slurm.says("sacct", sacct_line("101_0", "OUT_OF_MEMORY") + sacct_line(second.job_id, "FAILED", "1:0"))
    code, out, err = simhpc("logs", "cnn", "--run", root, "--follow")  # at once, as its job is over
    assert (code, out, "try --stderr" in err) == (0, "", True)


def test_a_folder_that_may_not_be_written(simhpc, slurm, study_file, profile):
    code, _, err = simhpc("submit", "train", study_file, "--profile", profile, "--out", "/dev/null/run")
    assert (code, "Errno" in err, "/dev/null" in err) == (2, False, True)


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
    assert (code, slurm.calls("scancel")) == (0, ["scancel 101"])  # scancel may work all the same
    code, _, err = simhpc("submit", "train", study_file, "--profile", profile, "--out", root)
    assert (code, "nothing was submitted" in err) == (2, True)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_thousand_tasks_fit_any_window(columns):
    from rich.console import Console

    from simhpc.cli.view import View
    from simhpc.cluster.status import STATES, RunStatus, TaskStatus

    tasks = [
        TaskStatus("attack", f"model-{number}", STATES[number % len(STATES)], reason="a long reason " * 20)
        for number in range(1000)
    ]
    console = Console(width=columns, height=24, record=True, force_terminal=True)
    console.print(View(RunStatus(tuple(tasks), "sacct", ("Slurm is away",), 0.0)))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= columns for line in lines)
    assert "attack" in lines[0]
    rows = [line.split() for line in lines if "a long" in line]
    assert len(rows) > 10
    assert {row[2] for row in rows} == {"failed"}
    assert "more: " in lines[-1]


def test_in_a_file_nothing_is_cut_and_bars_show_without_colours():
    from rich.console import Console

    from simhpc.cli.view import show
    from simhpc.cluster.status import RunStatus, TaskStatus

    reason = "it left no log: " + "can node2 see a long folder? " * 20
    tasks = (TaskStatus("attack", "a", "failed", job="7_0", reason=reason), TaskStatus("attack", "b", "done"))
    found = RunStatus((*tasks, TaskStatus("evaluate", "a", "todo")), "sacct", (reason,), 0.0)
    file = io.StringIO()
    show(Console(width=80, file=file), found)
    text = file.getvalue()
    assert text.count(reason.strip()) == 2
    assert "7_0" in text
    attack, evaluate = text.splitlines()[:2]
    assert "█" * 20 + "×" * 20 in attack
    assert "·" * 40 in evaluate
    # On a terminal it is folded.
    console = Console(width=80, record=True, force_terminal=True)
    show(console, found)
    text = console.export_text()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.count("node2") == 40


def test_watching_in_a_window_that_changes_its_size(copied, slurm, profile, tmp_path):
    """The real program in a real pseudo-terminal."""
    full = write_study(tmp_path / "full.toml", tiny())
    copied.dir.adversarial("cnn").unlink()
    simhpc = [sys.executable, "-c", "from simhpc.cli.app import main; main()"]
    command = ["submit", "attacks", str(full), "--profile", str(profile), "--out", str(copied.dir.root)]
    subprocess.run([*simhpc, *command], check=True, stdout=subprocess.DEVNULL)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 100, 0, 0))
    # rich believes these two before the terminal; readline sets them in whatever process imports it.
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm"
    program = subprocess.Popen(
        [*simhpc, "status", str(copied.dir.root), "--watch"],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    os.close(theirs)

    def frame(columns):
        """Lines of the next screen that is so wide."""
        text, deadline_s = "", time.monotonic() + 60
        while time.monotonic() < deadline_s:
            text += os.read(ours, 65536).decode(errors="replace")
            screens = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen) for screen in text.split("\x1b[H")]
            for screen in screens[1:-1]:
                lines = screen.replace("\r", "").split("\n")
                if "attack" in screen and max(map(len, lines)) == columns:
                    return lines
        raise AssertionError(text)

    try:
        assert any("just submitted" in line for line in frame(100))
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 60, 0, 0))
        assert len(frame(60)) <= 10
        program.send_signal(signal.SIGINT)
        while program.poll() is None:
            with contextlib.suppress(OSError):
                os.read(ours, 65536)
        assert program.returncode == 130
    finally:
        program.kill()
        os.close(ours)
