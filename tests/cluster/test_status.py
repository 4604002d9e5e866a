"""Output first, then Slurm's word, then the progress file: every state that a task can be in."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from cluster.fakes import sacct_line, squeue_line

from simhpc.cluster import ledger
from simhpc.cluster.ledger import Submission
from simhpc.cluster.status import Monitor, RunStatus, TaskStatus
from simhpc.rundir import Run
from simhpc.stages import aggregate
from simhpc.stages.progress import Interrupted, ProgressFile
from simhpc.stages.task import ALL, Task
from simhpc.stages.validity import usable_sources
from simhpc.store import adversarial, hdf5, predictions

NOW = 1_795_000_000


@pytest.fixture
def run(copied, slurm):
    """A finished run whose attack of `cnn` has gone, submitted as element 0 of array 7 long ago."""
    copied.dir.adversarial("cnn").unlink()
    submit(copied, "attack", ("cnn", "convnext"), "7")
    return copied


def submit(run, stage, models, job_id, ago_s=1000.0, **changes):
    entry = Submission(
        id=f"20261122-000000-{job_id}", stage=stage, models=models, job_id=job_id, is_array=True,
        folder=f"{stage}-{job_id}", after="", submitted_unix_s=time.time() - ago_s, user="me", host="login1",
        resources={"mem_gb": 2.0, "timeout_min": 30}, retry={}, profile="p.toml",
    )  # fmt: skip
    entry = replace(entry, **changes)
    ledger.write(run.dir, entry)
    return entry


def log(run, job, text, kind="err"):
    path = run.dir.submissions / "attack-7" / f"{job}_0_log.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cnn(run):
    return Monitor(run).look().task("attack", "cnn")


def test_output_comes_first(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING", start=str(NOW)) + sacct_line("7_1", "FAILED", "1:0"))
    found = Monitor(run).look()
    assert found.task("attack", "convnext").state == "done"  # its file is there and valid, whatever Slurm says
    assert found.task("attack", "convnext").exit_code == 1
    assert found.task("attack", "vit").state == "done"  # made outside Slurm
    assert found.task("attack", "cnn").state == "running"


@pytest.mark.parametrize(
    ("state", "exit_code", "expected", "reason"),
    [
        ("PENDING", "0:0", "queued", "Priority"),
        ("REQUEUED", "0:0", "queued", "Priority"),
        ("CONFIGURING", "0:0", "running", ""),
        ("RUNNING", "0:0", "running", ""),
        ("COMPLETING", "0:0", "running", ""),
        ("SUSPENDED", "0:0", "running", ""),
        ("COMPLETED", "0:0", "todo", "its output is missing or out of date"),
        ("FAILED", "3:0", "failed", "exit code 3: srun: error: node1: task 0: Exited"),
        ("FAILED", "0:9", "failed", "killed by signal 9: "),
        ("FAILED", "139:0", "failed", "killed by signal 11: "),
        ("FAILED", "255:0", "failed", "exit code 255: "),
        ("CANCELLED by 1000", "0:0", "cancelled", "cancelled"),
        ("TIMEOUT", "0:0", "failed", "time limit of 30 min"),
        ("NODE_FAIL", "0:0", "failed", "node node1 failed"),
        ("BOOT_FAIL", "0:0", "failed", "node node1 failed"),
        ("PREEMPTED", "0:0", "failed", "preempted"),
        ("OUT_OF_MEMORY", "0:125", "failed", "out of memory (2 GiB)"),
        ("DEADLINE", "0:0", "failed", "deadline"),
    ],
)
def test_slurms_word_comes_second(run, slurm, state, exit_code, expected, reason):
    log(run, "7_0", "===== simhpc: attempt 1\nsrun: error: node1: task 0: Exited\nsrun: Force Terminated StepId=1\n")
    slurm.says("sacct", sacct_line("7_0", state, exit_code, "Priority", start=str(NOW), end=str(NOW + 60)))
    task = cnn(run)
    assert task.state == expected
    assert reason in task.reason
    if expected == "failed":
        assert task.elapsed_s == 60


def test_progress_comes_third(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING", start=str(int(time.time()) - 50)))
    with ProgressFile(run.dir.progress("attack", "cnn"), "7_0") as progress:
        progress.report(10, 60, "image")  # what an earlier attempt had left
        time.sleep(0.6)
        progress.report(30, 60, "image")
        task = cnn(run)
    assert (task.done, task.total, task.unit) == (30, 60, "image")
    assert 0 < task.rate_per_s < 20 / 0.6  # of this attempt alone
    assert task.eta_s == pytest.approx(30 / task.rate_per_s)
    assert 49 <= task.elapsed_s < 70
    # The progress of another job is not this one's.
    with ProgressFile(run.dir.progress("attack", "cnn"), "6_0") as progress:
        progress.report(59, 60, "image")
        assert cnn(run).total == 0


def test_a_task_says_itself_why_it_failed(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "FAILED", "1:0", start="1", end="2"))
    with pytest.raises(ValueError, match="weights"), ProgressFile(run.dir.progress("attack", "cnn"), "7_0"):
        raise ValueError("the weights are gone\nsecond line")
    assert cnn(run).reason == "ValueError: the weights are gone"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("node2: task 1: Killed", "process 1 on node2: Killed: see {}/7_0_1_log.err"),
        ("node2: tasks 4-7: Bus error", "process 4-7 on node2: Bus error: see {}/7_0_4_log.err"),
        ("node2: task 1: Exited with exit code 1", "OSError: lost; process 1 on node2: Exited .*/7_0_1_log.err"),
        ("node2: tasks 0-1: Exited with exit code 1", "OSError: lost"),
    ],
)
def test_what_ended_another_process_of_a_training_is_told(run, slurm, said, wanted):
    """The first one has only lost the connection to it."""
    before = "===== simhpc: attempt 1\nsrun: error: node9: task 9: Killed\n===== simhpc: attempt 2\n"
    log(run, "7_0", f"{before}OSError: lost\nsrun: error: {said}\nsrun: error: node1: task 0: Exited\n")
    slurm.says("sacct", sacct_line("7_0", "FAILED", "1:0", start="1", end="2"))
    with contextlib.suppress(OSError), ProgressFile(run.dir.progress("attack", "cnn"), "7_0"):
        raise OSError("lost")
    assert re.fullmatch(wanted.format(re.escape(str(run.dir.submissions / "attack-7"))), cnn(run).reason)


def test_an_interrupted_task_is_no_failure(run, slurm):
    progress = ProgressFile(run.dir.progress("attack", "cnn"), "7_0")
    with contextlib.suppress(Interrupted), progress:
        progress.report(5, 10, "image")
        raise Interrupted
    slurm.says("sacct", sacct_line("7_0", "REQUEUED") + sacct_line("7_0", "PENDING", reason="BeginTime"))
    task = cnn(run)
    assert (task.state, task.reason, task.restarts, task.done) == ("queued", "requeued, BeginTime", 1, 5)
    assert task.rate_per_s is None


def test_a_job_that_left_no_log_at_all(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "FAILED", "0:53", node="node4", start="1", end="2"))
    assert "can node4 see" in cnn(run).reason
    assert "doctor" in cnn(run).reason


def test_a_job_that_slurm_has_forgotten(run, slurm):
    slurm.says("sacct", sacct_line("99", "RUNNING"))
    assert cnn(run).state == "failed"
    assert "no longer knows job 7_0" in cnn(run).reason


def test_an_element_that_was_cancelled_before_it_started(run, slurm):
    """Slurm keeps no record of it, though it knows the array."""
    slurm.says("sacct", sacct_line("7_1", "RUNNING"))
    assert (cnn(run).state, cnn(run).reason) == ("cancelled", "cancelled")


def test_what_slurm_cancelled_because_of_the_stage_before(run, slurm):
    run.dir.checkpoint("cnn").unlink()
    submit(run, "train", ("cnn",), "6", ago_s=900)
    submit(run, "attack", ("cnn",), "8", ago_s=900, after="aftercorr:6")
    slurm.says("sacct", sacct_line("6_0", "FAILED", "1:0", start="1", end="2") + sacct_line("8_0", "CANCELLED"))
    task = cnn(run)
    assert (task.state, task.reason, task.cause) == ("cancelled", "train of cnn did not succeed", "train")


def test_a_full_disk_is_said(run, slurm, monkeypatch):
    from simhpc.cluster import status

    monkeypatch.setattr(status, "_FULL_MB", 1e12)
    slurm.says("sacct", sacct_line("7_0", "RUNNING"))
    assert "is full" in Monitor(run).look().notes[0]


def test_a_job_that_slurm_has_not_heard_of_yet(run, slurm):
    submit(run, "attack", ("cnn",), "8", ago_s=3)
    task = cnn(run)
    assert (task.state, task.n_jobs, task.is_live) == ("queued", 2, True)


def test_a_job_of_before_the_clock_was_set_back_is_not_new_for_hours(run, slurm):
    submit(run, "attack", ("cnn",), "8", ago_s=-7200)
    assert "no longer knows job 8_0" in cnn(run).reason
    (asked, *_) = slurm.calls("sacct")
    since = time.strptime(asked.split(" -S ")[1].split()[0], "%Y-%m-%dT%H:%M:%S")
    assert time.mktime(since) < time.time() - 3000


def test_without_accounting(run, slurm):
    """squeue knows what is queued or runs; of the others only the files can tell."""
    slurm.fails("sacct", "Slurm accounting storage is disabled\n")
    slurm.says("squeue", squeue_line("7_0", "RUNNING", start=str(NOW)))
    found = Monitor(run).look()
    assert (found.task("attack", "cnn").state, found.source) == ("running", "squeue")
    assert "disabled" in found.notes[0]
    # For some minutes squeue knows what is over too.
    slurm.says("squeue", squeue_line("7_0", "FAILED", "256", start=str(NOW - 60), end=str(NOW - 50), restarts=1))
    task = cnn(run)
    assert (task.state, task.exit_code, task.elapsed_s, task.restarts) == ("failed", 1, 10, 1)
    slurm.says("squeue", "")
    assert cnn(run).state == "failed"


def test_when_slurm_is_away(run, slurm, monkeypatch):
    """The last answer stands, the files are read, and Slurm is asked less and less often."""
    monkeypatch.setattr(Monitor, "MIN_INTERVAL_S", 0.0)
    monitor = Monitor(run)
    slurm.says("sacct", sacct_line("7_0", "RUNNING", start=str(NOW)))
    monitor.look()
    slurm.fails("sacct", "Connection refused\n")
    slurm.fails("squeue", "Unable to contact slurm controller\n")
    found = monitor.look()
    assert (found.task("attack", "cnn").state, found.source) == ("running", "nobody")
    assert "Connection refused" in found.notes[-1]
    fresh = Monitor(run).look()
    assert fresh.task("attack", "cnn").state == "unknown"
    with ProgressFile(run.dir.progress("attack", "cnn"), "7_0") as progress:
        progress.report(1, 10, "image")
        assert Monitor(run).look().task("attack", "cnn").state == "running"


def test_garbled_answers_are_no_answers(run, slurm):
    slurm.says("sacct", "\x00\x01 nonsense|||\n")
    slurm.fails("squeue", "no")
    found = Monitor(run).look()
    assert found.task("attack", "cnn").state == "unknown"
    assert "cannot be read" in found.notes[0]


def test_slurm_is_asked_politely(run, slurm, monkeypatch):
    """Every 10 s while things change, then less and less, at last every minute; one call each time."""
    clock = [time.time()]
    monkeypatch.setattr("simhpc.cluster.status.time.time", lambda: clock[0])
    slurm.says("sacct", sacct_line("7_0", "PENDING") + sacct_line("7_1", "PENDING"))
    monitor = Monitor(run)
    asked_s = []
    for second in range(0, 600, 2):
        before = monitor.calls
        monitor.look()
        if monitor.calls > before:
            asked_s.append(second)
        clock[0] += 2
    gaps = [b - a for a, b in itertools.pairwise(asked_s)]
    assert gaps[0] == 10
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60
    assert len(slurm.calls()) == monitor.calls < 20
    slurm.says("sacct", sacct_line("7_0", "RUNNING") + sacct_line("7_1", "PENDING"))
    clock[0] += 60
    monitor.look()
    clock[0] += 10
    before = monitor.calls
    monitor.look()
    assert monitor.calls == before + 1


def test_a_number_that_slurm_has_given_to_another_job(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "RUNNING", name="somebody-elses"))
    assert cnn(run).state == "failed"
    slurm.says("sacct", sacct_line("7_0", "RUNNING", name="simhpc-attack-20261122-000000-7"))
    assert cnn(run).state == "running"


def test_a_task_with_two_jobs(run, slurm):
    """Its inputs changed while the first was queued: the one that runs is shown, both are live."""
    submit(run, "attack", ("cnn",), "9", ago_s=500)
    slurm.says("sacct", sacct_line("7_0", "RUNNING") + sacct_line("9_0", "PENDING", reason="Dependency"))
    task = cnn(run)
    assert (task.state, task.job, task.live_jobs) == ("running", "7_0", ("7_0", "9_0"))


def test_out_of_memory_that_only_the_log_tells(run, slurm):
    log(
        run, "7_0", "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM\n"
    )
    slurm.says("sacct", sacct_line("7_0", "FAILED", "137:0", start="1", end="2"))
    assert cnn(run).reason.startswith("out of memory (2 GiB)")


def test_the_latest_job_of_a_task_counts(run, slurm):
    submit(run, "attack", ("vit", "cnn"), "9", ago_s=500)
    slurm.says("sacct", sacct_line("7_0", "FAILED", "1:0") + sacct_line("9_1", "RUNNING", node="node3"))
    monitor = Monitor(run)
    task = monitor.look().task("attack", "cnn")
    assert (task.state, task.job, task.node, task.n_jobs) == ("running", "9_1", "node3", 2)
    assert [attempt.job for attempt in monitor.attempts(Task("attack", "cnn"))] == ["7_0", "9_1"]


def test_stages_are_counted_and_plain_data(run, slurm):
    slurm.says("sacct", sacct_line("7_0", "FAILED", "1:0", start="1", end="2"))
    found = Monitor(run).look()
    attack = next(summary for summary in found.stages() if summary.stage == "attack")
    assert (attack.n_tasks, attack.counts["failed"], attack.counts["done"]) == (3, 1, 2)
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert {task["state"] for task in data["tasks"]} == {"failed", "done", "todo"}


def many(copied, n):
    """A run of n models that are all the same one, with adversarial sets and predictions of all."""
    base = copied.study.models[0]
    run = Run(copied.dir, copied.study.model_copy(update={"models": (base,)}))
    keys = [f"m{number}" for number in range(n)]
    held = adversarial.load(run.dir.adversarial(base.key))
    seen = predictions.load(run.dir.predictions(base.key))
    models = tuple(base.model_copy(update={"key": key}) for key in keys)
    for model in models:
        # Of weights that lie elsewhere: nothing to compare with here.
        origin = replace(held.provenance, model=model.key, model_sha256=model.sha256())
        replace(held, provenance=origin).save(run.dir.adversarial(model.key))
        run.dir.checkpoint(model.key).hardlink_to(run.dir.checkpoint(base.key))
    run = Run(copied.dir, copied.study.model_copy(update={"models": models}))
    sources = {key: header.content_sha256 for key, header in usable_sources(run).headers.items()}
    assert list(sources) == keys
    for model in models:
        replace(
            seen,
            provenance=replace(seen.provenance, model=model.key, model_sha256=model.sha256()),
            sources=list(sources),
            source_sha256=list(sources.values()),
            adv_pred=np.repeat(seen.adv_pred[:1], n, axis=0),
            adv_margin=np.repeat(seen.adv_margin[:1], n, axis=0),
        ).save(run.dir.predictions(model.key))
    return run


def test_many_models_in_a_moment(copied, slurm, monkeypatch):
    """Not the time, which no test may fail for, but what makes it: each file is opened once, however often we look."""
    run = many(copied, 40)
    submit(run, "attack", tuple(model.key for model in run.study.models), "7")
    slurm.says("sacct", sacct_line("7_[0-39]", "COMPLETED", start="1", end="2"))
    opened = []
    monkeypatch.setattr(
        hdf5.h5py, "File", lambda path, *a, real=h5py.File, **k: opened.append(path) or real(path, *a, **k)
    )
    monitor = Monitor(run)
    for _ in range(3):
        found = monitor.look()
        assert {task.state for task in found.tasks if task.stage in ("attack", "evaluate")} == {"done"}
    assert len(opened) <= 3 * 40  # adversarial set, predictions, checkpoint
    assert len(slurm.calls()) == 1


def test_jobs_that_nobody_knows_are_not_asked_for_for_ever(run, slurm, monkeypatch):
    """Elements that were cancelled before they started: Slurm keeps no record of those."""
    monkeypatch.setattr(Monitor, "MIN_INTERVAL_S", 0.0)
    submit(run, "attack", ("cnn", "vit"), "8", ago_s=1000)
    run.dir.adversarial("vit").unlink()
    slurm.says("sacct", sacct_line("8_0", "RUNNING"))
    monitor = Monitor(run)
    monkeypatch.setattr(Monitor, "MAX_INTERVAL_S", 0.0)
    for _ in range(3):
        assert monitor.look().task("attack", "vit").state == "cancelled"
    assert len(slurm.calls("sacct")) == 3
    assert len(slurm.calls("squeue")) == 1


def test_a_job_that_slurm_could_not_be_asked_about_counts_as_live(run, slurm):
    """Or it would be submitted a second time."""
    submit(run, "attack", ("cnn",), "8", ago_s=1000)
    just_now = str(int(time.time()) - 5)
    for said in ("", sacct_line("8_0", "PREEMPTED", start=just_now, end=just_now)):
        slurm.says("sacct", said)
        slurm.fails("squeue", "Socket timed out\n")
        task = cnn(run)
        assert (task.state, task.is_live) == ("unknown", True)
        assert "Socket timed out" in Monitor(run).look().notes[0]


def test_an_array_cancelled_before_the_accounting_knew_its_elements(run, slurm):
    """One line without a number, or none at all for an element whose siblings have one."""
    submit(run, "attack", ("cnn", "vit"), "8", ago_s=5)
    slurm.says("sacct", sacct_line("8", "CANCELLED by 1001"))
    assert cnn(run).state == "cancelled"
    slurm.says("sacct", sacct_line("8_1", "PENDING"))
    assert cnn(run).state == "cancelled"  # at once: Slurm knows the array


def test_memory_that_an_evaluation_lacked_is_not_hidden_by_what_failed_before(run, slurm):
    run.dir.predictions("cnn").unlink()
    submit(run, "evaluate", ("cnn", "convnext"), "9")
    slurm.says("sacct", sacct_line("7_0", "FAILED", "1:0") + sacct_line("9_0", "OUT_OF_MEMORY"))
    task = Monitor(run).look().task("evaluate", "cnn")
    assert (task.reason.partition(" (")[0], task.cause) == ("out of memory", "")


def test_a_matrix_that_is_incomplete_is_said_to_be(copied, slurm):
    assert Monitor(copied).look().notes == ()
    copied.dir.predictions("cnn").unlink()
    aggregate.execute(copied, Task("aggregate", ALL), lambda *_: None)
    found = Monitor(copied).look()
    assert found.task("aggregate", ALL).state == "done"
    assert found.notes == ("the matrix is incomplete: of 3 models, 1 are not evaluated",)


def test_a_stage_has_no_eta_while_a_task_has_none():
    known = TaskStatus("attack", "a", "running", eta_s=6.0)
    found = RunStatus((known, TaskStatus("attack", "b", "running")), "sacct", (), 0.0)
    assert found.stages()[0].eta_s is None
    assert RunStatus((known,), "sacct", (), 0.0).stages()[0].eta_s == 6.0


def test_a_job_that_is_held_says_how_to_let_it_go(run, slurm):
    """As Slurm does with a requeued job that meets its own old copy on a node."""
    slurm.says(
        "sacct", sacct_line("7_0", "REQUEUED") + sacct_line("7_0", "PENDING", reason="launch failed requeued held")
    )
    assert cnn(run).reason == "requeued, launch failed requeued held (to let it go on: scontrol release 7_0)"


def test_a_stage_that_nobody_asked_for_is_not_told_of():
    tasks = [TaskStatus("attack", "a", "todo"), TaskStatus("representations", "a", "todo")]
    found = RunStatus(tuple(tasks), "sacct", (), 0.0)
    assert [task.stage for task in found.begun()] == ["attack"]
    assert [summary.stage for summary in found.stages()] == ["attack"]
    for changed in (replace(tasks[1], state="done"), replace(tasks[1], n_jobs=1), replace(tasks[1], state="queued")):
        found = RunStatus((tasks[0], changed, TaskStatus("representations", "b", "todo")), "sacct", (), 0.0)
        assert [(summary.stage, summary.n_tasks) for summary in found.stages()] == [
            ("attack", 1),
            ("representations", 2),
        ]
        assert len(found.as_json()["tasks"]) == 3
