"""A task inside a job: stopped by a signal wherever it is, it goes on from its files and ends the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
from tiny import tiny, write_study

from simhpc import __version__
from simhpc.cluster import image, job
from simhpc.cluster.container import SIGNAL, SUBMITTED_WITH
from simhpc.cluster.job import REQUEUE_EXIT_CODE
from simhpc.errors import ContainerError, SimhpcError
from simhpc.rundir import open_run
from simhpc.stages import aggregate, evaluate, progress
from simhpc.stages.progress import Interrupted, ProgressFile, read_progress
from simhpc.stages.task import ALL, Task, execute
from simhpc.stages.validity import usable_sources
from simhpc.store import attack_parts, step_log
from simhpc.store.checkpoint import metadata_of
from simhpc.zoo import training

PROGRAM = """
import sys
from simhpc.cluster.job import run_task
print(run_task(sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:])))
"""
# What srun gives each of two processes, and submitit its own jobs.
SLURM_OF_TWO = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NODELIST": "node.invalid",  # a name that nobody knows, which for one node is all the same
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SUBMITIT_EXECUTOR": "slurm",
}


def start(run, stage, model, timeout_min=60, delay_s=120, processes=1, rank=0):
    numbers = [str(number) for number in (timeout_min, delay_s, processes)]
    command = [sys.executable, "-c", PROGRAM, str(run.dir.root), stage, model, *numbers]
    environment = {**os.environ, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1"}
    if processes > 1:
        environment |= SLURM_OF_TWO | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        environment["MASTER_PORT"] = str(20_000 + os.getpid() % 40_000)
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, timeout_s=300):
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def slow(copied):
    """The finished run with an attack of many small batches, and trainings that save often, to be interrupted."""
    raw = tiny(resources={"batch_size": 4, "device": "cpu", "save_every_s": 0})
    from simhpc.stages.prepare import prepare
    from simhpc.study import load_study

    return prepare(load_study(write_study(copied.dir.root.parent / "slow.toml", raw)), copied.dir.root)


def parts(run):
    return sorted(run.dir.attack_parts("cnn").glob("*/*.h5"))


def attacked_alone(run):
    """The bytes of an attack that nothing happens to; the file is taken away again."""
    path = run.dir.adversarial("cnn")
    path.unlink()
    process = start(run, "attack", "cnn")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    whole = path.read_bytes()
    path.unlink()
    return whole


@pytest.mark.parametrize("how", [signal.SIGUSR2, signal.SIGKILL])
def test_an_interrupted_attack_ends_with_the_same_bytes(slow, how):
    """Killed or asked to stop in mid-attack, twice: the file is that of an attack that was never stopped."""
    path, whole = slow.dir.adversarial("cnn"), attacked_alone(slow)
    for wanted in (2, 5):
        process = start(slow, "attack", "cnn")
        wait_for(lambda n=wanted: len(parts(slow)) >= n)
        process.send_signal(how)
        out, _ = process.communicate(timeout=60)
        if how == signal.SIGUSR2:
            assert process.returncode == REQUEUE_EXIT_CODE
            assert "asks to be requeued" in out
            assert read_progress(slow.dir.progress("attack", "cnn")).state == "interrupted"
        else:
            assert process.returncode == -how
        assert not path.exists()
    kept = parts(slow)
    process = start(slow, "attack", "cnn")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.startswith("===== simhpc: attempt 2 of job 7_3, attack cnn on ")
    progress = read_progress(slow.dir.progress("attack", "cnn"))
    assert (progress.state, progress.job) == ("finished", "7_3")
    assert progress.resumed >= 4 * len(kept) - 3
    assert path.read_bytes() == whole
    assert not slow.dir.attack_parts("cnn").exists()


def test_two_copies_at_once_write_one_valid_file(slow):
    path, whole = slow.dir.adversarial("cnn"), attacked_alone(slow)
    copies = [start(slow, "attack", "cnn"), start(slow, "attack", "cnn")]
    for copy in copies:
        _, err = copy.communicate(timeout=120)
        assert copy.returncode == 0, err
    assert path.read_bytes() == whole
    assert not list(slow.dir.root.rglob("*.tmp.*"))


def test_an_interrupted_evaluation_keeps_its_sources(slow, monkeypatch):
    """Stopped after its first source: the second attempt shows it the others only, and ends with the same bytes."""
    path, partial = slow.dir.predictions("vit"), slow.dir.partial_predictions("vit")
    path.unlink()
    shown = evaluate.execute(slow, Task("evaluate", "vit"), lambda *_: None)["shown"]
    whole = path.read_bytes()
    path.unlink()
    first = next(iter(usable_sources(slow).headers.values())).n_attacked
    progress = ProgressFile(slow.dir.progress("evaluate", "vit"), "7_3")

    def report(done, total, unit):
        progress.report(done, total, unit)
        if done > first and not partial.exists():
            raise Interrupted

    with pytest.raises(Interrupted), progress:
        evaluate.execute(slow, Task("evaluate", "vit"), report)
    assert progress.has_advanced
    assert partial.exists()
    assert not path.exists()
    assert 0 < evaluate.execute(slow, Task("evaluate", "vit"), lambda *_: None)["shown"] < shown
    assert path.read_bytes() == whole
    assert not partial.exists()


def test_an_interrupted_aggregation_has_saved_nothing(slow):
    """It begins again; at its time limit it must not be requeued for ever."""
    progress = ProgressFile(slow.dir.progress("aggregate", ALL), "7")

    def report(done, total, unit):
        progress.report(done, total, unit)
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted), progress:
        aggregate.execute(slow, Task("aggregate", ALL), report)
    assert not progress.has_advanced


@pytest.fixture
def sigusr2(monkeypatch):
    """What the signal changes in this process is put back."""
    before = signal.getsignal(signal.SIGUSR2)
    monkeypatch.setattr("simhpc.stages.progress._is_interrupted", False)
    yield
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_before_the_task_has_begun_asks_for_a_requeue_too(slow, monkeypatch, sigusr2):
    monkeypatch.setattr(job, "open_run", lambda _: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(SystemExit) as stop:
        job.run_task(str(slow.dir.root), "attack", "cnn", 60, 120)
    assert stop.value.code == REQUEUE_EXIT_CODE


def test_the_time_before_the_task_has_begun_counts(slow, monkeypatch, sigusr2):
    """A slow disk, a container: the limit is the job's."""
    monkeypatch.setattr(job, "open_run", lambda _: signal.raise_signal(signal.SIGUSR2))
    monkeypatch.setenv("SIMHPC_JOB_STARTED_UNIX_S", str(int(time.time()) - 3500))
    with pytest.raises(
        job.TooLittleTimeError,
        match=r"told to, 35\d\d s after its job had begun: raise timeout_min \(now 60\).*batch_size",
    ):
        job.run_task(str(slow.dir.root), "attack", "cnn", 60, 120)


def test_what_another_copy_has_finished_meanwhile_is_no_failure(slow, monkeypatch):
    """It removes the parts with which this one is working."""
    path = slow.dir.adversarial("cnn")
    whole = path.read_bytes()
    path.unlink()

    def save(parts, first, images):
        path.write_bytes(whole)
        raise FileNotFoundError(parts.folder)

    monkeypatch.setattr(attack_parts.AttackParts, "save", save)
    with ProgressFile(slow.dir.progress("attack", "cnn")) as progress:
        assert execute(slow, Task("attack", "cnn"), progress) == {}
    path.unlink()
    monkeypatch.setattr(attack_parts.AttackParts, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        execute(slow, Task("attack", "cnn"), ProgressFile(slow.dir.progress("attack", "cnn")))


def test_a_result_that_was_half_written_is_in_nobodys_way(tmp_path, monkeypatch):
    """submitit would refuse to write its own."""
    for name, value in (("SUBMITIT_FOLDER", str(tmp_path)), ("SUBMITIT_EXECUTOR", "slurm"), ("SLURM_JOB_ID", "7")):
        monkeypatch.setenv(name, value)
    half = tmp_path / "7_0_result.pkl.save_tmp"
    half.touch()
    job._remove_half_written_result()
    assert not half.exists()


def test_a_task_that_is_done_already_does_nothing(slow):
    before = slow.dir.adversarial("cnn").stat().st_mtime_ns
    process = start(slow, "attack", "cnn")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "done already" in out
    assert slow.dir.adversarial("cnn").stat().st_mtime_ns == before


def test_a_limit_that_is_too_short_is_said_and_not_repeated_for_ever(slow, monkeypatch, sigusr2):
    """At the time limit with nothing saved, requeueing would come to the same again."""
    slow.dir.checkpoint("vit").unlink()
    monkeypatch.setattr(training.Trainer, "run", lambda *_: signal.raise_signal(signal.SIGUSR2))
    monkeypatch.setattr(progress, "held_back", nullcontext)  # told to stop before the first step is over
    with pytest.raises(job.TooLittleTimeError, match=r"raise timeout_min \(now 1\) in the profile"):
        job.run_task(str(slow.dir.root), "train", "vit", 1, 15)  # any moment is near this limit
    found = read_progress(slow.dir.progress("train", "vit"))
    assert found.state == "failed"
    assert "raise timeout_min (now 1)" in found.error
    assert "batch_size" not in found.error  # that of a training is its own
    assert open_run(slow.dir.root).study == slow.study


def states(run):
    return sorted(run.dir.training_states("vit").rglob("step-*.pt"))


def test_an_interrupted_training_ends_with_the_same_bytes(slow):
    """Asked to stop, then killed: the checkpoint is that of a training that was never stopped."""
    path, log = slow.dir.checkpoint("vit"), slow.dir.training_log("vit")
    whole, rows = path.read_bytes(), without_speed(step_log.read(log))
    path.unlink()
    process = start(slow, "train", "vit")
    wait_for(lambda: states(slow))
    process.send_signal(signal.SIGUSR2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == REQUEUE_EXIT_CODE, err
    assert "asks to be requeued" in out
    stopped = read_progress(slow.dir.progress("train", "vit"))
    assert stopped.state == "interrupted"
    assert int(states(slow)[-1].stem.removeprefix("step-")) == stopped.done > 0
    process = start(slow, "train", "vit")
    before = states(slow)
    wait_for(lambda: states(slow) != before)
    process.kill()
    process.communicate(timeout=120)
    assert not path.exists()
    reached = int(states(slow)[-1].stem.removeprefix("step-"))
    process = start(slow, "train", "vit")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert reached <= read_progress(slow.dir.progress("train", "vit")).resumed
    assert path.read_bytes() == whole
    assert without_speed(step_log.read(log)) == rows
    assert not slow.dir.training_states("vit").exists()


def without_speed(rows):
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


@pytest.mark.slow
def test_two_processes_train_one_model_and_stop_together(slow):
    """As srun starts them; told to stop, both end with the code that requeues, and then go on together."""
    path, log = slow.dir.checkpoint("vit"), slow.dir.training_log("vit")
    alone = [row["loss_nats"] for row in step_log.read(log)]
    path.unlink()
    for is_stopped in (True, False):
        both = [start(slow, "train", "vit", processes=2, rank=rank) for rank in range(2)]
        if is_stopped:
            wait_for(lambda: states(slow))
            for process in both:
                process.send_signal(signal.SIGUSR2)
        for process in both:
            _, err = process.communicate(timeout=300)
            assert process.returncode == (REQUEUE_EXIT_CODE if is_stopped else 0), err
    assert read_progress(slow.dir.progress("train", "vit")).resumed > 0
    assert metadata_of(path)["processes"] == "2"
    together = [row["loss_nats"] for row in step_log.read(log)]
    # Later, training makes much of the little by which sums of floats differ.
    assert together[:20] == pytest.approx(alone[:20], rel=1e-5)
    assert len(together) == len(alone)
    assert together[-1] == pytest.approx(alone[-1], rel=0.1)


def test_another_number_of_processes_than_asked_for_is_an_error(slow, monkeypatch):
    for name, value in SLURM_OF_TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SimhpcError, match="asks for 3 processes .* and Slurm has started 2"):
        job.run_task(str(slow.dir.root), "train", "vit", 60, 120, 3)


def test_nodes_that_do_not_know_each_others_names_are_an_error_at_once(slow, monkeypatch):
    for name, value in (SLURM_OF_TWO | {"SLURM_JOB_NUM_NODES": "2"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SimhpcError, match=r"cannot find the node node\.invalid, .* take nodes = 1, or let"):
        job.run_task(str(slow.dir.root), "train", "vit", 60, 120, 2)


def test_the_other_signal_stops_a_task_too(slow):
    """In a container it is another one; and it comes again and again."""
    slow.dir.adversarial("cnn").unlink()
    process = start(slow, "attack", "cnn")
    wait_for(lambda: parts(slow))
    for _ in range(5):
        process.send_signal(SIGNAL)
    out, said = process.communicate(timeout=60)
    assert process.returncode == REQUEUE_EXIT_CODE, said
    assert "asks to be requeued" in out


def test_an_image_with_another_simhpc_says_so(copied, monkeypatch):
    monkeypatch.setenv(SUBMITTED_WITH, f"0.0.9 {image.schema_sha256()}")
    with pytest.raises(ContainerError, match=r"submitted by simhpc 0\.0\.9, and the image holds simhpc"):
        job.run_task(str(copied.dir.root), "attack", "cnn", 60, 120)
    monkeypatch.setenv(SUBMITTED_WITH, f"{__version__} other")
    with pytest.raises(ContainerError, match="which reads other studies"):
        job.run_task(str(copied.dir.root), "attack", "cnn", 60, 120)
    monkeypatch.setenv(SUBMITTED_WITH, f"{__version__} {image.schema_sha256()}")
    assert job.run_task(str(copied.dir.root), "attack", "cnn", 60, 120) == {}  # done already
