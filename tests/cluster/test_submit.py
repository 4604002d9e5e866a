"""Submitting, cancelling and retrying; with stand-ins for Slurm's programs."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from cluster.fakes import sacct_line, squeue_line, status
from cluster.sif import write_sif
from submitit.core.utils import JobPaths
from tiny import MODELS, tiny, write_study

from simhpc.cluster import container, control, ledger, planning, submit
from simhpc.cluster.profile import Container, load_profile, parse_profile
from simhpc.cluster.status import Monitor, RunStatus, TaskStatus
from simhpc.errors import BadFileError, ContainerError, SchedulerError, SchedulerUnavailableError, SimhpcError
from simhpc.stages import STAGES
from simhpc.stages.prepare import prepare
from simhpc.stages.task import ALL, Task
from simhpc.study import load_study
from simhpc.zoo import weights

PROFILE = parse_profile({"defaults": {"partition": "main", "mem_gb": 2, "array_parallelism": 5}}, where="test")


def test_the_batch_script_says_what_the_profile_says(make_study, tmp_path):
    run = prepare(make_study(("cnn", "vit")), tmp_path / "run")
    profile = parse_profile(
        {
            "defaults": {
                "partition": "gpu", "account": "lab", "qos": "fast", "gres": "gpu:a100:1", "cpus_per_task": 3,
                "mem_gb": 1.5, "timeout_min": 7, "array_parallelism": 4, "setup": ["module load x"],
                "sbatch": {"constraint": "a&b", "exclusive": True, "contiguous": False, "comment": "a b"},
            }
        },
        where="test",
    )  # fmt: skip
    plans = planning.plan(Monitor(run).look(), STAGES, profile, profile_name="p")
    script = submit.script(run.dir, plans[1].batches[0])
    for line in (
        "--partition=gpu", "--account=lab", "--qos=fast", "--gres=gpu:a100:1", "--cpus-per-task=3", "--mem=1536M",
        "--time=7", "--array=0-1%2", "--signal=USR2@105", "--requeue", "--constraint='a&b'", "--exclusive",
        "--comment='a b'",
        "--kill-on-invalid-dep=yes", f"--dependency='aftercorr:<job of {plans[0].batches[0].id}>'",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "contiguous" not in script  # false undoes a default of the profile
    assert "wckey" not in script  # submitit's own is one that a site may not know
    assert script.index("module load x") < script.index("srun ")
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_a_training_of_several_processes(slurm, make_study, tmp_path):
    run = prepare(make_study(("cnn", "vit")), tmp_path / "run")
    wanted = {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "cpus_per_task": 3}
    profile = parse_profile({"train": wanted}, where="p")
    plans = planning.plan(Monitor(run).look(), STAGES, profile, profile_name="p.toml")
    script = submit.script(run.dir, plans[0].batches[0])
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=3"):
        assert f"#SBATCH {line}\n" in script
    assert "--nodes=1\n" in submit.script(run.dir, plans[1].batches[0])
    submit.check_shares(run, STAGES, profile, "p.toml")
    assert [arguments[-1] for of_stage in plans[:2] for arguments in submit._arguments(run, of_stage.batches[0])] == [
        8, 8, 1, 1,
    ]  # fmt: skip


def test_processes_that_cannot_share_a_step_are_refused(simhpc, slurm, make_study, tmp_path):
    run = prepare(make_study(("cnn",), training={"batch_size": 36}), tmp_path / "run")
    profile = tmp_path / "p.toml"
    profile.write_text("[train]\nnodes = 4\ntasks_per_node = 2\n")
    code, _, err = simhpc("submit", "all", tmp_path / "study.toml", "--profile", profile, "--out", run.dir.root)
    assert code == 2
    assert "8 processes (nodes x tasks_per_node) cannot share the 36 images of a step of model 'cnn'" in err
    assert "a multiple of 8" in err
    submit.check_shares(run, ("attack",), load_profile(profile), "p.toml")


@pytest.mark.parametrize(
    ("code", "restarts", "requeued", "ends_with"),
    [
        (0, 0, False, 0),
        (1, 0, False, 1),
        (75, 9, True, 75),
        (140, 2, True, 75),
        (12, 0, True, 75),
        (140, 3, False, 140),
    ],
)
@pytest.mark.parametrize("setup", ["true", "set -euo pipefail"])
def test_the_end_of_the_batch_script_requeues_its_job(slurm, run, setup, code, restarts, requeued, ends_with):
    """The script that is submitted, run by bash, with a task that ends so."""
    profile = parse_profile({"defaults": {"setup": [setup]}}, where="test")
    (plan, *_) = planning.plan(Monitor(run).look(), ["train"], profile, profile_name="p")
    folder = run.dir.root / "bin"
    folder.mkdir()
    (folder / "srun").write_text(f'#!/bin/sh\n[ "$SIMHPC_JOB_STARTED_UNIX_S" -gt 1000000000 ] && exit {code}\n')
    (folder / "sleep").write_text("#!/bin/sh\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    environment = {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": "77",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(
        ["bash"], input=submit.script(run.dir, plan.batches[0]), text=True, env=environment, check=False
    )
    assert done.returncode == ends_with
    assert slurm.calls("scontrol") == (["scontrol requeue 77"] if requeued else [])


@pytest.mark.parametrize("name", ["a\\b", "a%jb", "a\udcffb"])
def test_folders_that_a_batch_script_cannot_name(tmp_path, name):
    with pytest.raises(SimhpcError, match="choose another --out"):
        submit.check_root(tmp_path / name)
    submit.check_root(tmp_path / 'it\'s "a" $HOME, é')


@pytest.fixture
def run(make_study, tmp_path):
    return prepare(make_study(("cnn", "vit")), tmp_path / "run")


def submitted(run, stages=STAGES, **options):
    plans = planning.plan(Monitor(run).look(), stages, PROFILE, profile_name="p.toml", **options)
    return list(submit.submit(run, plans))


def test_submitting_writes_the_ledger_and_plain_data(slurm, run):
    entries = submitted(run)
    assert [entry.stage for entry in entries] == list(STAGES)
    assert [entry.job_id for entry in entries] == ["101", "102", "103", "104"]
    assert [entry.after for entry in entries] == ["", "aftercorr:101", "afterany:102", "afterany:103"]
    assert ledger.read(run.dir) == entries
    assert entries[1].jobs() == ["102_0", "102_1"]
    assert entries[3].jobs() == ["104"]
    (pickled,) = run.dir.submissions.glob("attack-*/102_1_submitted.pkl")
    delayed = pickle.loads(pickled.read_bytes())
    assert delayed.args == (str(run.dir.root), "attack", "vit", 60, 120, 1)
    assert delayed.function.__name__ == "run_task"
    assert len(pickled.read_bytes()) < 2000  # the function by its name, not by its code
    script = (run.dir.submissions / entries[1].folder / "102_submission.sh").read_text()
    assert "--dependency=aftercorr:101" in script


def test_the_dry_run_prints_what_would_be_submitted(slurm, run):
    (plan, *_) = planning.plan(Monitor(run).look(), STAGES, PROFILE, profile_name="p.toml")
    shown = submit.script(run.dir, plan.batches[0])
    (entry,) = submit.submit(run, [plan])
    assert (run.dir.submissions / entry.folder / f"{entry.job_id}_submission.sh").read_text() == shown


def test_twice_submits_once(slurm, run):
    slurm.says("squeue", "".join(squeue_line(f"{job}_{n}", "PENDING") for job in (101, 102, 103) for n in (0, 1)))
    assert len(submitted(run)) == 4
    assert submitted(run) == []  # within a minute, whatever Slurm says
    assert len(slurm.calls("sbatch")) == 4


def test_a_refusal_is_told_in_slurms_words_and_forgotten(slurm, run):
    slurm.fails("sbatch", "sbatch: error: invalid partition specified: nowhere\n")
    with pytest.raises(
        SchedulerError,
        match="refused the train array of 2.*nothing was submitted: .*invalid partition specified: nowhere",
    ):
        submitted(run)
    assert ledger.read(run.dir) == []
    assert {task.state for task in Monitor(run).look().tasks} == {"todo"}


def test_slurm_is_asked_of_all_before_anything_is_submitted(slurm, run):
    slurm.fails("sbatch --test-only", "sbatch: error: invalid partition specified: mian\n")
    with pytest.raises(SchedulerError, match=r"nothing was submitted: .*mian\nChange p.toml; `simhpc doctor"):
        submitted(run)
    assert slurm.calls("sbatch") == []
    assert ledger.read(run.dir) == []
    slurm.fails("sbatch --test-only", "sbatch: error: Unable to contact slurm controller (connect failure)\n")
    with pytest.raises(SchedulerUnavailableError, match="controller does not answer, nothing was submitted"):
        submitted(run)
    # A job may wait for nodes that are down.
    slurm.fails("sbatch --test-only", "allocation failure: Requested node configuration is not available\n")
    assert len(submitted(run)) == 4


def test_what_was_submitted_before_a_refusal_stays(slurm, run):
    plans = planning.plan(Monitor(run).look(), STAGES, PROFILE, profile_name="p.toml")
    entries = submit.submit(run, plans)
    first = next(entries)
    slurm.fails("sbatch", "sbatch: error: QOSMaxSubmitJobPerUserLimit\n")
    with pytest.raises(SchedulerError, match=r"stays \(jobs 101\): .*QOSMaxSubmit"):
        next(entries)
    assert ledger.read(run.dir) == [first]


def test_without_slurm(run, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(SchedulerUnavailableError, match="sbatch or srun was not found"):
        submitted(run)
    assert ledger.read(run.dir) == []


def test_an_answer_that_was_never_heard(slurm, run):
    """The submitting process died between sbatch and its note: the jobs are found by their name."""
    (train, *_) = submitted(run, ["train"])
    ledger.write(run.dir, replace(train, job_id=None))
    assert {task.state for task in Monitor(run).look().of_stage("train")} == {"queued"}  # just submitted
    lost = replace(train, job_id=None, submitted_unix_s=time.time() - 100)
    ledger.write(run.dir, lost)
    slurm.says("squeue", f"555|{train.job_name}|555\n")
    slurm.says("sacct", sacct_line("555_0", "RUNNING") + sacct_line("555_1", "PENDING"))
    found = Monitor(run).look()
    assert [(task.job, task.state) for task in found.of_stage("train")] == [("555_0", "running"), ("555_1", "queued")]
    # Slurm knows no such job: it was never accepted.
    slurm.says("squeue", "")
    slurm.says("sacct", "")
    assert {task.state for task in Monitor(run).look().of_stage("train")} == {"todo"}


def test_a_new_submission_settles_what_was_left_open(slurm, run):
    """Before anything is submitted again, whatever its age: the queue knows it, or it never got there."""
    (train, *_) = submitted(run, ["train"])
    ledger.write(run.dir, replace(train, job_id=None))
    slurm.says("squeue", f"555|{train.job_name}|555\n")
    for argument in (run.dir.submissions / train.folder).glob("101_*_submitted.pkl"):
        argument.rename(argument.with_name(argument.name.replace("101", "555")))
    submit.settle(run)
    assert ledger.read(run.dir) == [replace(train, job_id="555")]
    ledger.write(run.dir, replace(train, job_id=None))
    slurm.fails("squeue", "Unable to contact slurm controller\n")
    with pytest.raises(SchedulerUnavailableError, match="nothing was submitted.*Unable to contact"):
        submit.look_before_submitting(run)
    slurm.says("squeue", "")
    submit.settle(run)
    assert ledger.read(run.dir) == []


def test_a_clock_that_is_set_back_does_not_make_the_newest_submission_an_older_one(slurm, run, monkeypatch):
    """Nor are other hosts' clocks the same. The order is that in which the ledger was written to."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    first = submitted(run)
    assert [(entry.stage, entry.number) for entry in first] == list(zip(STAGES, range(1, 5), strict=True))
    now[0] -= 5000.0
    slurm.says("sacct", "".join(sacct_line(job, "FAILED", "1:0") for entry in first for job in entry.jobs()))
    again = submitted(run)
    assert ledger.read(run.dir) == [*first, *again]
    assert [entry.number for entry in again] == [5, 6, 7, 8]
    assert all(entry.submitted_unix_s < first[0].submitted_unix_s for entry in again)
    jobs = {task.job for task in Monitor(run).look().of_stage("train")}
    assert jobs == set(again[0].jobs())
    slurm.says("sacct", "".join(sacct_line(job, "PENDING") for entry in again for job in entry.jobs()))
    assert submitted(run) == []  # each stage is newer than its inputs


def test_nothing_is_submitted_blindly(slurm, run):
    submitted(run, ["train"])
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=time.time() - 1000))
    slurm.fails("sacct", "Connection refused\n")
    slurm.fails("squeue", "timed out\n")
    with pytest.raises(SchedulerUnavailableError, match="nothing was submitted"):
        submit.look_before_submitting(run)


def test_an_array_that_slurm_took_although_it_failed_to_say_so(slurm, run):
    """A busy controller: sbatch fails, and the job is there. It has no arguments to work with: cancelled."""
    (plan, *_) = planning.plan(Monitor(run).look(), ["train"], PROFILE, profile_name="p")
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
    slurm.says("squeue", f"777|simhpc-train-{plan.batches[0].id}|777\n")
    with pytest.raises(SchedulerError, match="Socket timed out"):
        list(submit.submit(run, [plan]))
    assert slurm.calls("scancel") == ["scancel 777"]
    assert ledger.read(run.dir) == []
    slurm.says("squeue", "")  # it may appear later
    with pytest.raises(SchedulerError, match="may or may not have been queued"):
        list(submit.submit(run, [plan]))
    assert len(ledger.read(run.dir)) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_submission_that_breaks_off_leaves_no_jobs_without_arguments(slurm, run, monkeypatch, error):
    """submitit stores what each element is to do after sbatch has taken the array."""
    (plan, *_) = planning.plan(Monitor(run).look(), ["train"], PROFILE, profile_name="p")
    slurm.says("squeue", f"101|simhpc-train-{plan.batches[0].id}|101\n")

    def breaks(*words, real=JobPaths.move_temporary_file, **options):
        if "submitted_pickle" in words:
            raise error
        real(*words, **options)

    monkeypatch.setattr(JobPaths, "move_temporary_file", breaks)
    with pytest.raises(type(error)):
        list(submit.submit(run, [plan]))
    assert len(slurm.calls("sbatch")) == 1
    assert slurm.calls("scancel") == ["scancel 101"]
    assert ledger.read(run.dir) == []


def test_an_array_without_its_arguments_is_cancelled_not_adopted(slurm, run):
    """The submitting process was killed in that moment."""
    (train, *_) = submitted(run, ["train"])
    ledger.write(run.dir, replace(train, job_id=None))
    slurm.says("squeue", f"101|{train.job_name}|101\n")
    (run.dir.submissions / train.folder / "101_1_submitted.pkl").unlink()
    submit.settle(run)
    assert slurm.calls("scancel") == ["scancel 101"]
    assert ledger.read(run.dir) == []


@pytest.mark.parametrize("words", ["Zero Bytes were transmitted or received", "Connection reset by peer"])
def test_an_answer_that_is_none_is_not_taken_for_a_refusal(slurm, run, words):
    slurm.fails("sbatch", f"sbatch: error: Batch job submission failed: {words}\n")
    slurm.fails("squeue", "timed out\n")
    with pytest.raises(SchedulerError, match="may or may not have been queued"):
        submitted(run, ["train"])
    assert len(ledger.read(run.dir)) == 1


def test_two_at_once_are_refused(run):
    with (
        ledger.locked(run.dir),
        pytest.raises(SchedulerError, match=f"process {os.getpid()} on "),
        ledger.locked(run.dir),
    ):
        pass
    with ledger.locked(run.dir):
        pass


def test_a_lock_whose_owner_has_died_is_taken_over(run):
    lock = run.dir.submissions / "submit.lock"
    lock.parent.mkdir()
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": gone}))
    with ledger.locked(run.dir):
        pass
    lock.write_text(json.dumps({"host": "elsewhere", "pid": gone}))
    with (
        pytest.raises(SchedulerError, match=f"process {gone} on elsewhere.*delete .*submit.lock"),
        ledger.locked(run.dir),
    ):
        pass


def test_of_two_that_find_a_dead_owners_lock_only_one_takes_it_over(run, monkeypatch):
    """The second looks while the first one's own lock has just taken the place of the dead owner's."""
    lock = run.dir.submissions / "submit.lock"
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    monkeypatch.setattr(ledger, "_holder", lambda path, real=ledger._holder: dead.pop() if dead else real(path))
    dead = [(socket.gethostname(), 2**22 + 1)]
    with pytest.raises(SchedulerError, match="another simhpc is submitting"), ledger.locked(run.dir):
        pass
    assert json.loads(lock.read_text())["host"] == "elsewhere"
    assert list(lock.parent.iterdir()) == [lock]


def test_an_entry_that_is_taken_back_while_the_ledger_is_read(run):
    run.dir.ledger.mkdir(parents=True)
    (run.dir.ledger / "gone.json").symlink_to(run.dir.ledger / "nowhere")
    assert ledger.read(run.dir) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 99}'])
def test_a_damaged_ledger_entry_is_named(run, text):
    run.dir.ledger.mkdir(parents=True)
    (run.dir.ledger / "x.json").write_text(text)
    with pytest.raises(BadFileError, match=r"x\.json"):
        ledger.read(run.dir)


def test_retry_raises_memory_only_for_who_ran_out_of_it(slurm, run):
    submitted(run)
    now = time.time()
    for entry in ledger.read(run.dir):  # long ago, so that Slurm's silence would mean something
        ledger.write(run.dir, replace(entry, submitted_unix_s=now - 1000))
    slurm.says(
        "sacct",
        sacct_line("101_0", "OUT_OF_MEMORY", "0:125")
        + sacct_line("101_1", "FAILED", "1:0")
        + sacct_line("102_0", "CANCELLED", reason="DependencyNeverSatisfied")
        + sacct_line("102_1", "CANCELLED", reason="DependencyNeverSatisfied")
        + sacct_line("103_0", "FAILED", "1:0")
        + sacct_line("103_1", "FAILED", "1:0")
        + sacct_line("104", "COMPLETED", start="1", end="2"),
    )
    profile = parse_profile(
        {"defaults": {"mem_gb": 2}, "retry": {"oom_memory_factor": 2, "max_mem_gb": 3}}, where="test"
    )
    found = Monitor(run).look()
    assert found.task("train", "cnn").reason.startswith("out of memory (2 GiB)")
    assert found.task("attack", "cnn").reason == "train of cnn did not succeed"
    planned = control.plan_retry(run, found, models=None, profile=profile, max_array_size=1001)
    assert {(task.stage, task.model) for task in planned.tasks} == {
        (stage, model) for stage in ("train", "attack", "evaluate") for model in ("cnn", "vit")
    }
    assert planned.raised == {("cnn", "train"): 3}
    by_stage = {plan.stage: plan.batches for plan in planned.plans}
    assert {batch.models: batch.resources.mem_gb for batch in by_stage["train"]} == {("vit",): 2, ("cnn",): 3}
    again = list(submit.submit(run, planned.plans))
    assert {entry.stage for entry in again} == set(STAGES)
    assert len(Monitor(run).attempts(Task("train", "cnn"))) == 2


def test_retry_of_one_model_leaves_the_others(slurm, run):
    submitted(run, ["train"])
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=time.time() - 1000))
    slurm.says("sacct", sacct_line("101_0", "FAILED", "1:0") + sacct_line("101_1", "CANCELLED by 7"))
    found = Monitor(run).look()
    planned = control.plan_retry(run, found, models=["vit"], profile=None, max_array_size=1001)
    assert [(task.model, task.state) for task in planned.tasks] == [("vit", "cancelled")]
    (plan,) = planned.plans
    assert [batch.models for batch in plan.batches] == [("vit",)]
    assert plan.batches[0].resources.mem_gb == 2  # as it was submitted
    everything = control.plan_retry(run, found, models=None, profile=None, max_array_size=1001)
    assert [task.model for task in everything.tasks] == ["cnn"]  # who was cancelled on purpose stays so


def test_a_retry_gets_what_its_own_last_job_had(slurm, run):
    """One model was given more memory before: the others do not get it, and it does not lose it."""
    plans = planning.plan(Monitor(run).look(), ["train"], PROFILE, profile_name="p")
    more = PROFILE.train.model_copy(update={"mem_gb": 64.0})
    list(submit.submit(run, plans))
    (raised,) = planning.plan(
        status(train="cnn:todo"), ["train"], PROFILE, profile_name="p", special={"train": {"cnn": more}}
    )
    list(submit.submit(run, [raised]))
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=entry.submitted_unix_s - 1000))
    slurm.says(
        "sacct",
        sacct_line("101_0", "OUT_OF_MEMORY")
        + sacct_line("101_1", "FAILED", "1:0")
        + sacct_line("102", "FAILED", "1:0"),
    )
    planned = control.plan_retry(run, Monitor(run).look(), models=None, profile=None, max_array_size=1001)
    memory = {batch.models: batch.resources.mem_gb for plan in planned.plans for batch in plan.batches}
    assert memory == {("vit",): 2, ("cnn",): 64}


def test_what_was_cancelled_on_purpose_is_not_retried_by_the_way(slurm, run):
    submitted(run)
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=time.time() - 1000))
    ended = [sacct_line(f"{job}_0", "COMPLETED", start="1", end="2") for job in (101, 102, 103)]
    cancelled = [sacct_line(job, "COMPLETED", start="1", end="2") for job in ("101_1", "104")]
    cancelled += [sacct_line(f"{job}_1", "CANCELLED by 7") for job in (102, 103)]
    slurm.says("sacct", "".join([*ended, *cancelled]))
    found = Monitor(run).look()
    assert found.task("evaluate", "vit").reason == "cancelled"
    assert control.plan_retry(run, found, models=None, profile=None, max_array_size=1001).tasks == ()


def test_cancel_names_elements(slurm, run):
    submitted(run)
    slurm.says("sacct", sacct_line("101_0", "RUNNING") + sacct_line("101_1", "COMPLETED", start="1", end="2"))
    found = Monitor(run).look()
    cancelled = control.cancel(found, models=["cnn"], stages=STAGES)
    # The last stage first: nothing starts because what it waited for is over.
    assert [task.job for task in cancelled] == ["103_0", "102_0", "101_0"]
    assert slurm.calls("scancel") == ["scancel 103_0 102_0 101_0"]


def test_cancelling_all_names_whole_arrays(slurm, run):
    """One request to the controller, not a thousand."""
    submitted(run)
    slurm.says("sacct", sacct_line("101_0", "RUNNING") + sacct_line("101_1", "COMPLETED", start="1", end="2"))
    found = Monitor(run).look()
    control.cancel(found, models=None, stages=["attack", "train"])
    assert slurm.calls("scancel") == ["scancel 102 101"]


def test_what_is_just_being_submitted_is_not_said_to_be_cancelled(slurm):
    task = TaskStatus("attack", "a", "queued", live_jobs=("",))
    assert control.cancel(RunStatus((task,), "sacct", (), 0.0), models=None, stages=STAGES) == []
    assert slurm.calls("scancel") == []


@pytest.fixture
def three(make_study, tmp_path):
    return prepare(make_study(("cnn", "vit", "convnext")), tmp_path / "three")


def test_a_retry_does_what_became_necessary_and_nothing_else(slurm, three):
    """cnn's attack failed, vit was cancelled on purpose, convnext's evaluation is out of date."""
    submitted(three)
    for entry in ledger.read(three.dir):
        ledger.write(three.dir, replace(entry, submitted_unix_s=time.time() - 1000))
    failed = TaskStatus("attack", "cnn", "failed", n_jobs=1)
    states = {
        ("attack", "cnn"): "failed", ("attack", "vit"): "cancelled", ("attack", "convnext"): "done",
        ("evaluate", "cnn"): "failed", ("evaluate", "vit"): "cancelled", ("evaluate", "convnext"): "todo",
        ("aggregate", ALL): "done",
    }  # fmt: skip
    tasks = [replace(failed, stage=stage, model=model, state=state) for (stage, model), state in states.items()]
    found = RunStatus(tuple(tasks), "sacct", (), 0.0)
    planned = control.plan_retry(three, found, models=None, profile=None, max_array_size=1001)
    assert {plan.stage: [batch.models for batch in plan.batches] for plan in planned.plans} == {
        "attack": [("cnn",)],
        "evaluate": [("cnn", "convnext")],
        "aggregate": [(ALL,)],
    }
    # What was never submitted is not retried.
    never = RunStatus(tuple(replace(task, n_jobs=int(task.state != "todo")) for task in tasks), "sacct", (), 0.0)
    planned = control.plan_retry(three, never, models=["cnn"], profile=None, max_array_size=1001)
    assert [batch.models for plan in planned.plans for batch in plan.batches] == [("cnn",), ("cnn",), (ALL,)]


def test_a_model_that_is_not_there(run):
    with pytest.raises(SchedulerError, match="no model 'vti'; did you mean 'vit'"):
        control.chosen_models(run, ["vti"])


def test_a_pretrained_model_is_attacked_at_once(slurm, copied, tmp_path):
    """With weights from a file there is nothing to train, so nothing to wait for."""
    state = tmp_path / "own.safetensors"
    shutil.copy(copied.dir.checkpoint("cnn"), state)
    raw = tiny(("cnn",))
    args = {**MODELS["cnn"]["args"], "num_classes": 10}
    raw["models"].append({**raw["models"][0], "key": "own", "weights": f"checkpoint:{state}", "args": args})
    run = prepare(load_study(write_study(tmp_path / "s.toml", raw)), tmp_path / "new")
    entries = submitted(run, ["train", "attack"])
    assert [(entry.models, entry.after) for entry in entries] == [
        (("cnn",), ""),
        (("cnn",), "aftercorr:101"),
        (("own",), ""),
    ]


@pytest.fixture
def contained(tmp_path):
    """A profile with a container, whose image is no more than its header."""
    image = write_sif(tmp_path / "it's $X.sif", {})
    return PROFILE.model_copy(update={"container": Container(image=str(image))})


def plan_of(run, profile, stages=STAGES):
    return planning.plan(Monitor(run).look(), stages, profile, profile_name="p.toml")


def test_tasks_in_a_container(slurm, run, contained):
    plans = plan_of(run, contained)
    entries = list(submit.submit(run, plans, submit.look_at_containers(run, plans)))
    for entry in entries:
        assert entry.container["digest"].startswith("sha256:")
        assert entry.container["image"].endswith("it's $X.sif")
        folder = run.dir.submissions / entry.folder
        (script,) = folder.glob("*_submission.sh")
        launcher = folder / "container.sh"
        assert f"bash {shlex.quote(str(launcher))} -u -m submitit.core._submit" in script.read_text()
        # What a FUSE process of the same job does not die of.
        assert "#SBATCH --signal=28@120\n" in script.read_text()
        assert f"source={run.dir.root}" in launcher.read_text()
    assert ledger.read(run.dir) == entries


def test_a_retry_is_in_the_same_container(slurm, run, contained):
    plans = plan_of(run, contained, ["train"])
    list(submit.submit(run, plans, submit.look_at_containers(run, plans)))
    for entry in ledger.read(run.dir):
        ledger.write(run.dir, replace(entry, submitted_unix_s=time.time() - 1000))
    slurm.says("sacct", sacct_line("101_0", "FAILED", "1:0") + sacct_line("101_1", "FAILED", "1:0"))
    found = Monitor(run).look()

    def container_of(**options):
        planned = control.plan_retry(run, found, models=None, max_array_size=1001, **options)
        return planned.plans[0].batches[0].container

    assert container_of(profile=None) == contained.container
    assert container_of(profile=None, is_contained=False) is None
    assert container_of(profile=PROFILE) is None
    assert container_of(profile=contained) == contained.container


def test_nothing_is_submitted_to_an_image_that_is_not_there(slurm, run, contained):
    Path(contained.container.image).unlink()
    with pytest.raises(ContainerError, match=r"there is no image .*/it's \$X\.sif"):
        submit.look_at_containers(run, plan_of(run, contained))
    assert slurm.calls("sbatch") == []
    assert ledger.read(run.dir) == []


def test_entries_from_before_there_were_containers(slurm, run):
    (entry, *_) = submitted(run)
    path = run.dir.ledger / f"{entry.id}.json"
    held = json.loads(path.read_text())
    del held["container"]
    path.write_text(json.dumps(held))
    assert ledger.read(run.dir)[0] == entry


def test_logs_that_no_line_of_a_script_can_name(slurm, make_study, tmp_path):
    run = prepare(make_study(("cnn", "vit")), tmp_path / "two\nlines" / "run")
    (plan, *_) = plan_of(run, PROFILE)
    script = submit.script(run.dir, plan.batches[0])
    assert "#SBATCH --output=/dev/null\n" in script
    environment = submit.sbatch_environment(run.dir, plan.batches[0])
    folder = run.dir.submissions / plan.batches[0].folder
    assert environment["SBATCH_OUTPUT"] == f"{folder}/%A_%a_0_log.out"
    assert environment["SBATCH_ERROR"] == f"{folder}/%A_%a_0_log.err"
    assert [entry.job_id for entry in submit.submit(run, [plan])] == ["101"]


def test_inputs_from_outside_are_shown_to_the_container(slurm, copied, tmp_path, contained):
    """A checkpoint of the user's, read only; the training images where there is training."""
    state = tmp_path / "own.safetensors"
    shutil.copy(copied.dir.checkpoint("cnn"), state)
    raw = tiny(("cnn",))
    args = {**MODELS["cnn"]["args"], "num_classes": 10}
    raw["models"].append({**raw["models"][0], "key": "own", "weights": f"checkpoint:{state}", "args": args})
    run = prepare(load_study(write_study(tmp_path / "s.toml", raw)), tmp_path / "new")
    needs = container.needs_of(run, "attack", ["own"])
    assert [(bind.source, bind.mode) for bind in needs.binds] == [(str(run.dir.root), "rw"), (str(state), "ro")]
    assert needs.environment == {"HF_HUB_OFFLINE": "1"}
    assert [bind.source for bind in container.needs_of(run, "attack", ["cnn"]).binds] == [str(run.dir.root)]


def test_weights_that_are_not_here(slurm, tmp_path, monkeypatch, contained):
    raw = tiny(("cnn",))
    raw["models"] = [{"key": "pre", "timm": "test_resnet", "weights": "pretrained:r160_in1k"}]
    run = prepare(load_study(write_study(tmp_path / "s.toml", raw)), tmp_path / "new")
    monkeypatch.setattr(weights, "is_staged", lambda _: False)
    with pytest.raises(ContainerError, match="the weights of 1 model") as refused:
        submit.look_at_containers(run, plan_of(run, contained, ["attack"]))
    assert "simhpc models fetch STUDY" in str(refused.value)
    outside = submit.downloads(run, plan_of(run, PROFILE, ["attack"]))
    assert "Each task will try to download its own" in outside
    assert "simhpc models fetch STUDY" in outside
    monkeypatch.setattr(weights, "is_staged", lambda _: True)
    assert submit.downloads(run, plan_of(run, PROFILE, ["attack"])) == ""
    needs = container.needs_of(run, "evaluate", ["pre"])
    for variable, folder in weights.caches().items():
        assert needs.environment.get(variable, str(folder)) == str(folder)
