"""The program as it is typed: messages, JSON and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from tiny import tiny, wait_until_gone, write_study

from simhpc.stages.task import ALL


@pytest.fixture
def study_file(tmp_path):
    return write_study(tmp_path / "study.toml", tiny())


def test_version_and_help(simhpc):
    assert simhpc("--version") == (0, "simhpc 0.1.0\n", "")
    for command in ("validate", "run", "aggregate"):
        code, out, _ = simhpc(command, "--help")
        assert code == 0
        assert "Examples" in out
        assert f"simhpc {command}" in out


def test_validate(simhpc, study_file):
    code, out, _ = simhpc("validate", study_file)
    assert code == 0
    assert "valid study: 3 models, 70 images of sklearn-digits" in out
    code, out, _ = simhpc("validate", study_file, "--json")
    assert json.loads(out)["models"][0]["data"]["interpolation"] == "bicubic"
    assert sorted(path.name for path in study_file.parent.iterdir()) == ["study.toml"]


@pytest.mark.parametrize("command", ["validate", "run"])
def test_a_bad_study_is_exit_code_2_without_a_traceback(simhpc, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path / "study.toml", tiny(attack={"epss_255": 4, "eps_255": 0}))
    code, out, err = simhpc(command, path)
    assert code == 2
    assert "attack.epss_255: unknown key; did you mean 'eps_255'?" in err
    assert "attack.eps_255: must be a whole number" in err
    assert "Traceback" not in out + err
    assert [entry.name for entry in tmp_path.iterdir()] == ["study.toml"]


def test_debug_shows_the_traceback(simhpc, tmp_path):
    from simhpc.errors import StudyError

    with pytest.raises(StudyError):
        simhpc("--debug", "validate", tmp_path / "none.toml")


@pytest.mark.parametrize(
    "arguments", [("run", "--stages", "atack"), ("run", "--workers", "0"), ("validate",), ("nonsense",)]
)
def test_bad_options_are_exit_code_2(simhpc, study_file, arguments):
    code, _, err = simhpc(*arguments, *([study_file] if arguments[0] == "run" else []))
    assert code == 2
    assert err
    if "atack" in arguments:
        assert "did you mean 'attack'" in err


def test_the_same_command_again_does_nothing(simhpc, study_file, copied):
    code, out, _ = simhpc("run", study_file, "--out", copied.dir.root)
    assert code == 0
    assert "0 task(s) executed" in out
    assert str(copied.dir.similarity_csv) in out


def test_run_executes_what_is_missing_and_says_so(simhpc, study_file, copied):
    """The whole way through submitit's processes for one added model, counted."""
    write_study(study_file, tiny(("cnn", "convnext", "vit", "cnn-again")))
    code, out, err = simhpc("run", study_file, "--out", copied.dir.root, "--json")
    assert code == 0, err
    executed = [(entry["stage"], entry["model"]) for entry in json.loads(out)["executed"]]
    assert sorted(executed) == sorted(
        [("train", "cnn-again"), ("attack", "cnn-again"), ("aggregate", ALL)]
        + [("evaluate", key) for key in ("cnn", "convnext", "vit", "cnn-again")]
    )
    assert "train      cnn-again" in err


def test_a_failed_task_is_exit_code_1_with_its_log(simhpc, tmp_path):
    # A loss that is not finite: the learning rate is legal, and absurd.
    raw = tiny(("cnn",), training={"lr": 1000.0, "optimizer": "sgd", "epochs": 2})
    code, out, _ = simhpc("run", write_study(tmp_path / "study.toml", raw), "--out", tmp_path / "run")
    assert code == 1
    assert "train      cnn" in out
    assert "FAILED" in out
    assert "lower training.lr" in out
    assert "skipped: train failed" in out
    log = next(line.split("log: ")[1] for line in out.splitlines() if line.strip().startswith("log: "))
    assert "TrainingDivergedError" in open(log).read()  # noqa: PTH123, SIM115


def test_a_contradicting_study_is_refused(simhpc, tmp_path, copied):
    path = write_study(tmp_path / "other.toml", tiny(attack={"eps_255": 4}))
    code, _, err = simhpc("run", path, "--out", copied.dir.root)
    assert code == 2
    assert "attack.eps_255: run directory has 32, study has 4" in err
    assert "Choose another --out" in err


def test_aggregate(simhpc, copied, tmp_path):
    code, out, _ = simhpc("aggregate", copied.dir.root)
    assert code == 0
    assert "6 of 6 pairs known" in out
    copied.dir.predictions("vit").unlink()
    code, out, err = simhpc("aggregate", copied.dir.root, "--json")
    assert code == 1
    assert json.loads(out)["pairs"] == 3
    assert "predictions/vit.h5 does not exist" in err
    for nowhere in (tmp_path / "none", tmp_path):
        code, _, err = simhpc("aggregate", nowhere)
        assert code == 2
        assert "is not a" in err


def test_an_unreadable_run_directory(simhpc, copied):
    copied.dir.study.write_text("name = 3")
    for arguments in (("aggregate", copied.dir.root),):
        code, _, err = simhpc(*arguments)
        assert code == 2
        assert "not a readable run directory" in err


def test_problems_of_an_unchanged_matrix_are_told_again(simhpc, study_file, copied):
    copied.dir.predictions("vit").unlink()
    assert simhpc("aggregate", copied.dir.root)[0] == 1
    code, out, _ = simhpc("run", study_file, "--out", copied.dir.root, "--stages", "aggregate")
    assert code == 1
    assert "0 task(s) executed" in out
    assert "predictions/vit.h5 does not exist" in out


@pytest.mark.parametrize(
    ("name", "at_start"),
    [
        ("SIGINT", signal.SIG_DFL),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGTERM", signal.SIG_IGN),  # as `simhpc run &` in a script starts it
        ("SIGHUP", signal.SIG_DFL),
    ],
)
def test_an_interrupted_run_leaves_no_task_behind_and_goes_on(tmp_path, name, at_start):
    """In a session of its own, so that only the program itself gets the signal, as from `kill` or a closed terminal.

    `at_start`: what SIGINT does in the process that is started.
    """
    study = write_study(tmp_path / "study.toml", tiny(("cnn",), training={"epochs": 100_000}))
    main = "from simhpc.cli.app import main; main()"
    command = [sys.executable, "-c", main, "run", str(study), "--out", str(tmp_path / "run")]
    program = subprocess.Popen(
        command,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, at_start),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress = tmp_path / "run" / "progress" / "train" / "cnn.json"
    deadline = time.time() + 60
    while time.time() < deadline and not (progress.exists() and json.loads(progress.read_text())["done"]):
        time.sleep(0.2)
    pid = json.loads(progress.read_text())["pid"]
    program.send_signal(getattr(signal, name))
    _, err = program.communicate(timeout=30)
    assert program.returncode == 130
    assert "the same command again goes on from here" in err
    assert "Traceback" not in err
    assert wait_until_gone(pid)


def test_no_permission_and_no_folder_are_messages(simhpc, study_file):
    code, _, err = simhpc("run", study_file, "--out", "/dev/null/run")
    assert code == 2
    assert "/dev/null/run" in err
    assert "Traceback" not in err


def test_an_optional_stage_runs_where_it_is_named_and_not_else(simhpc, study_file, copied):
    _, out, _ = simhpc("run", study_file, "--out", copied.dir.root)
    assert "representations" not in out
    code, out, _ = simhpc("run", study_file, "--out", copied.dir.root, "--stages", "representations", "--json")
    executed = json.loads(out)["executed"]
    assert code == 0
    assert [(task["stage"], task["gradients"]) for task in executed] == [("representations", 70)] * 3
    _, out, _ = simhpc("run", study_file, "--out", copied.dir.root, "--stages", "representations")
    assert "3 task(s), 3 done already" in out
