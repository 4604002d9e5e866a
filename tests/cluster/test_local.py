"""Jobs of the local executor: real processes through submitit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tiny import MODELS, tiny, wait_until_gone, write_study

from simhpc.cluster.local import Finished, Running, Skipped, StageStarted, check_root, run_stages
from simhpc.errors import SimhpcError
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import read_progress
from simhpc.stages.task import ALL, Task
from simhpc.study import load_study


def test_a_failing_model_stops_no_other_and_names_its_log(copied, tmp_path):
    """A checkpoint that vanishes after the run was made: one model fails, the others go on."""
    state = tmp_path / "own.safetensors"
    shutil.copy(copied.dir.checkpoint("cnn"), state)
    raw = tiny()
    entry = {**MODELS["cnn"], "args": {**MODELS["cnn"]["args"], "num_classes": 10}, "data": raw["models"][0]["data"]}
    raw["models"].append({"key": "broken", "weights": f"checkpoint:{state}", **entry})
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), copied.dir.root)
    state.unlink()
    events = list(run_stages(run, ("train", "attack", "evaluate", "aggregate"), workers=2))
    failed = [event for event in events if isinstance(event, Finished) and event.error]
    assert [event.task for event in failed] == [Task("attack", "broken")]
    assert "own.safetensors" in failed[0].error
    assert "own.safetensors" in failed[0].log.read_text()
    assert [event.task for event in events if isinstance(event, Skipped)] == [Task("evaluate", "broken")]
    finished = [event for event in events if isinstance(event, Finished) and not event.error]
    assert [event.task for event in finished] == [Task("aggregate", ALL)]
    assert any("broken" in problem for problem in finished[0].summary["problems"])
    assert [event.n_done for event in events if isinstance(event, StageStarted)] == [3, 3, 3, 0]


def test_progress_is_seen_and_left_behind(copied):
    copied.dir.predictions("cnn").unlink()
    copied.dir.predictions("vit").unlink()
    events = list(run_stages(copied, ("evaluate",), workers=1))
    running = [event for event in events if isinstance(event, Running)]
    assert {len(event.readings) for event in running} == {1}
    assert {event.n_waiting for event in running} == {0, 1}
    last = read_progress(copied.dir.progress("evaluate", "vit"))
    assert last.state == "finished"
    assert last.done == last.total > 0


def test_leaving_early_cancels_what_runs(make_study, tmp_path):
    run = prepare(make_study(("cnn",), training={"epochs": 10_000}), tmp_path / "run")
    events = run_stages(run, ("train",), workers=1)
    progress = None
    for event in events:
        if isinstance(event, Running) and (progress := event.readings[Task("train", "cnn")]) and progress.done:
            break
    events.close()
    # Both submitit's controller and the job itself have to go.
    assert wait_until_gone(progress.pid)
    assert not run.dir.checkpoint("cnn").exists()


def test_a_killed_job_is_a_failure_with_a_message(make_study, tmp_path):
    run = prepare(make_study(("cnn",), training={"epochs": 10_000}), tmp_path / "run")
    killed = False
    finished = None
    for event in run_stages(run, ("train",), workers=1):
        if isinstance(event, Running) and not killed:
            progress = event.readings[Task("train", "cnn")]
            if progress is not None and progress.done:
                os.kill(progress.pid, signal.SIGKILL)
                killed = True
        if isinstance(event, Finished):
            finished = event
    assert killed
    assert finished is not None
    assert finished.error


def test_a_path_that_submitit_would_misread(tmp_path):
    check_root(tmp_path / "fine")
    with pytest.raises(SimhpcError, match="reads '%'"):
        check_root(tmp_path / "r%j")


@pytest.mark.parametrize("visible", ["GPU-1234", "0,MIG-7"])
def test_gpus_named_otherwise_are_refused(make_study, monkeypatch, tmp_path, visible):
    from simhpc.cluster import local
    from simhpc.rundir import Run, RunDir

    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setattr(local, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SimhpcError, match="GPU numbers only"):
        local.default_workers(Run(RunDir(tmp_path), make_study(resources={"device": "auto"})))


def test_jobs_import_nothing_that_was_pickled():
    """What a job's pickle refers to is a function of ours by name, and strings."""
    program = "import pickle; from simhpc.cluster.local import run_task; print(len(pickle.dumps(run_task)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100


@pytest.mark.parametrize(
    ("device", "files", "visible", "expected"),
    [
        ("auto", ["nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"], None, [0, 1, 10]),
        ("auto", ["nvidia0", "nvidia1", "nvidia2"], "2,0", [2, 0]),
        ("auto", ["nvidia0"], "", []),
        ("cpu", ["nvidia0"], None, []),
        ("auto", [], None, []),
    ],
)
def test_gpus_are_those_that_may_be_used(make_study, monkeypatch, tmp_path, device, files, visible, expected):
    from simhpc.cluster import local
    from simhpc.rundir import Run, RunDir

    for name in files:
        (tmp_path / "dev" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(local, "Path", lambda path: tmp_path / str(path).lstrip("/"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    study = make_study(resources={"device": device, "threads_per_task": 1})
    run = Run(RunDir(tmp_path), study)
    assert local._gpus(run) == expected
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: set(range(6)))
    assert local.default_workers(run) == (len(expected) or 6)


def test_a_network_of_ones_own_is_imported_in_its_job(copied, tmp_path, monkeypatch):
    """From the study file's folder, whatever the folder that jobs are started in."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "our_own_network.py").write_text(
        "from torch import nn\n"
        "def build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    raw = tiny()
    data = {**raw["models"][0]["data"], "interpolation": "bicubic"}
    raw["models"].append({"key": "ours", "module": "our_own_network:build", "weights": "train", "data": data})
    run = prepare(load_study(write_study(tmp_path / "jobs" / "study.toml", raw)), copied.dir.root)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([path for path in sys.path if path != str(tmp_path / "jobs")]))
    events = list(run_stages(run, ("train", "attack"), workers=1))
    ended = [event for event in events if isinstance(event, Finished)]
    assert [(event.task, event.error) for event in ended] == [
        (Task("train", "ours"), None),
        (Task("attack", "ours"), None),
    ]
    assert ended[0].summary["accuracy"] > 0.4


def test_only_what_a_stage_needs_keeps_it_from_being_done():
    from simhpc.cluster.local import _needs

    assert _needs("evaluate", "train")
    assert _needs("representations", "train")
    assert not _needs("representations", "attack")
    assert not _needs("aggregate", "evaluate")
    assert not _needs("attack", None)


def test_a_cancelled_training_saves_where_it_is_and_goes_on(tmp_path):
    """The signal goes to the task itself: submitit would kill it a second later, which a busy machine may need."""
    raw = tiny(("cnn",), training={"epochs": 1000})
    run = prepare(load_study(write_study(tmp_path / "study.toml", raw)), tmp_path / "run")
    program = f"from simhpc.cluster.local import run_task; run_task({str(run.dir.root)!r}, 'train', 'cnn')"
    path = run.dir.progress("train", "cnn")

    def read():
        found = read_progress(path)
        return found if found is not None and found.done else None

    for attempt in (1, 2):
        task = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and ((found := read()) is None or found.state != "running"):
            time.sleep(0.1)
        task.send_signal(signal.SIGINT)
        task.send_signal(signal.SIGINT)  # as Ctrl-C in a terminal and submitit together
        assert task.wait(timeout=60) != 0
        assert read().state == "interrupted"
        assert (read().resumed > 0) == (attempt == 2)
        assert list(run.dir.training_states("cnn").iterdir())
