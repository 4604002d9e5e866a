"""Studies on a real Slurm, with the accidents of a real cluster. As an ordinary user; see devcluster.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from cluster.devcluster import CHECKOUT, SIMHPC
from cluster.scenario import DEMO_MODELS, PROFILE, RUN, STEPS, Scenario, study_of
from tiny import tiny

from simhpc.rundir import RunDir, open_run
from simhpc.store import adversarial, similarity
from simhpc.store.image_set import load as load_images

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


def test_requeue_in_mid_attack(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "requeue")
    s.submit()
    task = s.in_mid_attack()
    s.agrees()
    with devcluster.frozen(task["job"]):
        devcluster.slurm("scontrol", "requeue", task["job"])
        started_s = time.monotonic()
        parts = s.parts()
        devcluster.wait(
            s.run, lambda found: any(t["state"] == "running" and t["restarts"] for t in found["tasks"]), "it runs again"
        )
    devcluster.measure("scontrol requeue, running again after", f"{time.monotonic() - started_s:.0f} s")
    assert s.done()["restarts"] == 1
    s.agrees()
    assert parts >= 2
    assert s.bytes() == whole
    first, second = (devcluster.simhpc("logs", "cnn", "--run", s.run, "--attempt", n).stdout for n in (1, 2))
    assert "attempt 1 of job" in first
    assert "attempt 2 of job" in second
    assert "done:" in second
    assert "done:" not in first


def test_a_node_that_is_cut_off_in_mid_attack(devcluster, trained, whole):
    """The copy that Slurm believes dead goes on beside the new one, and both write to the same folder.

    It is frozen until then, so that a short attack will do.
    """
    s = Scenario(devcluster, trained, "cut")
    s.submit()
    task = s.in_mid_attack()
    node, old_pid = task["node"], devcluster.pid_of(task["job"])
    devcluster.operate("cut", node)
    os.kill(old_pid, signal.SIGSTOP)
    started_s = time.monotonic()
    try:
        parts = s.parts()
        devcluster.wait(s.run, lambda _: s.parts() > parts, "another node makes a part", timeout_s=150, repair=True)
        devcluster.measure("node cut off, another one working after", f"{time.monotonic() - started_s:.0f} s")
        os.kill(old_pid, signal.SIGCONT)
        assert devcluster.task(s.run, "attack", "cnn")["node"] != node
        assert s.states()[0] == "NODE_FAIL"
        devcluster.wait_for_state(s.run, "attack", "done", repair=True)
    finally:
        devcluster.operate("heal", node)
    assert s.done(repair=True)["restarts"] >= 1
    s.agrees()
    assert s.bytes() == whole
    deadline = time.monotonic() + 60
    while (Path("/proc") / str(old_pid)).exists() and time.monotonic() < deadline:
        time.sleep(1)
    assert s.bytes() == whole  # whatever the old copy did last


def test_preemption_in_mid_attack(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "preempted")
    s.submit(partition="low", gpus_per_node=2)
    task = s.in_mid_attack()
    blocker = ["sbatch", "--parsable", "-p", "high", "-A", "lab", "-w", task["node"], "--gpus-per-node=2", "--mem=10M"]
    seen: set[str] = set()

    def is_over(found: dict) -> bool:
        (now,) = [task for task in found["tasks"] if task["stage"] == "attack"]
        seen.add(now["state"])
        return now["state"] == "done" and not now["is_live"]

    with devcluster.frozen(task["job"]):
        devcluster.slurm(*blocker, "-o", "/dev/null", "--wrap", "sleep 3", cwd=s.folder)
        devcluster.wait(s.run, is_over, "it went on and is done")
    # Slurm calls it PREEMPTED for a while before it waits again: whoever believed it would submit it twice.
    assert seen <= {"running", "queued", "done"}
    assert s.states() == ["PREEMPTED", "COMPLETED"]
    s.agrees()
    assert s.bytes() == whole


def test_kill_9_and_retry(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "killed")
    s.submit()
    task = s.in_mid_attack()
    os.kill(devcluster.pid_of(task["job"]), signal.SIGKILL)
    devcluster.wait_for_state(s.run, "attack", "failed", 30)
    task = devcluster.task(s.run, "attack", "cnn")
    assert "Killed" in task["reason"]
    s.agrees()
    parts = s.parts()
    assert "again      attack     cnn" in devcluster.simhpc("retry", "--failed", "--run", s.run).stdout
    task = s.done()
    assert (task["n_jobs"], task["restarts"]) == (2, 0)
    assert json.loads((s.run / "progress" / "attack" / "cnn.json").read_text())["resumed"] >= 4 * parts
    assert s.bytes() == whole
    assert "attempt 1" in devcluster.simhpc("logs", "cnn", "--run", s.run, "--attempt", "1").stdout
    assert "Killed" in devcluster.simhpc("logs", "cnn", "--run", s.run, "--attempt", "1", "--stderr").stdout


def test_out_of_memory_and_retry_with_more(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "oom")
    s.submit(mem_gb=0.15, retry={"oom_memory_factor": 10.0, "max_mem_gb": 1.2})
    devcluster.wait_for_state(s.run, "attack", "failed", 60)
    task = devcluster.task(s.run, "attack", "cnn")
    # Slurm 22.05 calls the step so, and its job FAILED.
    assert task["slurm_state"] in ("OUT_OF_MEMORY", "FAILED")
    assert task["reason"].startswith("out of memory (0.15 GiB)")
    s.agrees()
    assert "now with 1.2 GiB" in devcluster.simhpc("retry", "cnn", "--run", s.run).stdout
    assert s.done()["n_jobs"] == 2
    assert s.bytes() == whole


def test_cancel_and_retry(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "cancelled")
    s.submit()
    s.in_mid_attack()
    assert "cancelled  attack     cnn" in devcluster.simhpc("cancel", "cnn", "--run", s.run).stdout
    devcluster.wait_for_state(s.run, "attack", "cancelled", 60)
    s.agrees()
    assert s.parts() >= 2
    assert "nothing" in devcluster.simhpc("retry", "--failed", "--run", s.run).stdout  # it was on purpose
    devcluster.simhpc("retry", "cnn", "--run", s.run)
    assert s.done()["n_jobs"] == 2
    assert s.bytes() == whole


def test_a_full_disk(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "full")
    disk = s.folder / "disk"
    disk.mkdir()
    owner = f"size=4m,uid={devcluster.user.pw_uid},gid={devcluster.user.pw_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", owner, "tmpfs", disk], check=True)
    try:
        s.run = disk / RUN
        s.submit()
        s.in_mid_attack()
        with (disk / "filler").open("wb") as file, contextlib.suppress(OSError):
            file.write(bytes(4 << 20))
        devcluster.wait_for_state(s.run, "attack", "failed", 60)
        assert any("is full" in note for note in devcluster.status(s.run)["notes"])  # its log could not say so
        s.agrees()
        (disk / "filler").unlink()
        devcluster.simhpc("retry", "cnn", "--run", s.run)
        s.done()
        assert s.bytes() == whole
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_run_directory_that_the_nodes_cannot_see(devcluster, trained, whole):
    """Here: gone while the job starts, as a disk that is not mounted there would be."""
    s = Scenario(devcluster, trained, "unseen")
    s.submit(sbatch={"hold": True})
    job = devcluster.task(s.run, "attack", "cnn")["job"]
    hidden = s.run.with_name("hidden")
    s.run.rename(hidden)
    devcluster.slurm("scontrol", "release", job)
    deadline = time.monotonic() + 60
    while not any(start["State"] == "FAILED" for start in devcluster.accounting(job)) and time.monotonic() < deadline:
        time.sleep(1)
    hidden.rename(s.run)
    devcluster.wait_for_state(s.run, "attack", "failed", 30)
    assert "it left no log: can node" in devcluster.task(s.run, "attack", "cnn")["reason"]
    s.agrees()
    devcluster.simhpc("submit", "attacks", s.study, "--profile", s.folder / "profile.toml", "--out", s.run, code=0)
    devcluster.slurm("scontrol", "release", devcluster.task(s.run, "attack", "cnn")["job"])
    s.done()


def test_one_broken_model_among_eight(devcluster, trained):
    folder = devcluster.folder("eight")
    keys = {f"m{number}": ("cnn", "convnext", "vit")[number % 3] for number in range(7)}
    raw = study_of(trained, {**keys, "broken": "cnn"})
    own = folder / "broken.safetensors"
    shutil.copy(trained / "cnn.safetensors", own)
    own.chmod(0o644)
    raw["models"][-1]["weights"] = f"checkpoint:{own}"
    study = devcluster.write(folder / "study.toml", raw)
    profile = devcluster.write(folder / "profile.toml", {**PROFILE, "attack": {"sbatch": {"hold": True}}})
    run = folder / "run"
    devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", run)
    again = devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", run).stdout
    assert "8 queued already, 0 to submit" in again
    assert "nothing to submit" in again
    own.unlink()
    jobs = {task["job"].partition("_")[0] for task in devcluster.status(run)["tasks"] if task["stage"] == "attack"}
    devcluster.slurm("scontrol", "release", *jobs)
    found = devcluster.wait(run, lambda now: not any(task["is_live"] for task in now["tasks"]), "all is over", 600)
    states = {(task["stage"], task["model"]): task["state"] for task in found["tasks"]}
    assert {key: state for key, state in states.items() if state != "done"} == {
        ("attack", "broken"): "failed",
        ("evaluate", "broken"): "failed",
    }
    reasons = {task["stage"]: task["reason"] for task in found["tasks"] if task["model"] == "broken"}
    assert "broken.safetensors" in reasons["attack"]
    assert reasons["evaluate"] == "attack of broken did not succeed"
    matrix = similarity.load(RunDir(run).similarity)
    assert np.isfinite(matrix.sat[:7, :7]).all()
    assert np.isnan(matrix.sat[7]).all()
    for task in found["tasks"]:
        told = devcluster.accounting(task["job"])[-1]
        assert (task["slurm_state"], task["exit_code"]) == (told["State"], int(told["ExitCode"].split(":")[0])), task
    shown = devcluster.simhpc("status", run, code=1).stdout
    assert [line.split()[:3] for line in shown.splitlines() if " broken " in line] == [
        ["attack", "broken", "failed"],
        ["evaluate", "broken", "failed"],
    ]
    # Mended: only the broken model is attacked, everyone looks at it, and the matrix is whole.
    shutil.copy(trained / "cnn.safetensors", own)
    own.chmod(0o644)
    plain = devcluster.write(folder / "plain.toml", PROFILE)
    devcluster.simhpc("retry", "--failed", "--run", run, "--profile", plain)
    for stage in ("attack", "evaluate", "aggregate"):
        devcluster.wait_for_state(run, stage, "done", 300)
    assert np.isfinite(similarity.load(RunDir(run).similarity).sat).all()
    # Nobody has waited for the optional stage.
    assert {task["stage"] for task in found["tasks"]} == {"attack", "evaluate", "aggregate"}


def test_the_optional_stage_needs_no_other(devcluster, trained):
    s = Scenario(devcluster, trained, "optional")
    profile = devcluster.write(s.folder / "profile.toml", PROFILE)
    devcluster.simhpc("submit", "representations", s.study, "--profile", profile, "--out", s.run)
    devcluster.wait_for_state(s.run, "representations", "done", 300)
    assert RunDir(s.run).representations("cnn").exists()


def test_a_failed_training_strands_no_other(devcluster, demo):
    """Its attack is cancelled by Slurm, the other model's is not."""
    folder = devcluster.folder("training")
    raw = tiny(("cnn", "vit"), training={"epochs": 1})
    study = devcluster.write(folder / "study.toml", raw)
    profile = devcluster.write(folder / "profile.toml", {**PROFILE, "train": {"sbatch": {"hold": True}}})
    run = folder / "run"
    devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", run)
    devcluster.slurm("scancel", devcluster.task(run, "train", "vit")["job"])
    devcluster.slurm("scontrol", "release", devcluster.task(run, "train", "cnn")["job"])
    found = devcluster.wait(run, lambda now: not any(task["is_live"] for task in now["tasks"]), "all is over", 300)
    by_task = {(task["stage"], task["model"]): task for task in found["tasks"]}
    assert by_task["train", "cnn"]["state"] == by_task["attack", "cnn"]["state"] == "done"
    assert by_task["train", "vit"]["state"] == "cancelled"
    assert by_task["attack", "vit"]["slurm_state"] == "CANCELLED"
    assert by_task["attack", "vit"]["reason"] == "train of vit did not succeed"
    assert by_task["evaluate", "cnn"]["state"] == "done"


def test_more_models_than_an_array_can_have(devcluster, trained):
    """1,010 models: two arrays; the first and the last element run, the others are cancelled."""
    folder = devcluster.folder("thousand")
    keys = {f"m{number:04d}": "cnn" for number in range(1010)}
    study = devcluster.write(folder / "study.toml", study_of(trained, keys))
    profile = devcluster.write(folder / "profile.toml", {**PROFILE, "attack": {"sbatch": {"hold": True}}})
    run = folder / "run"
    started_s = time.monotonic()
    submitted = json.loads(
        devcluster.simhpc("submit", "attacks", study, "--profile", profile, "--out", run, "--json").stdout
    )["submitted"]
    devcluster.measure("1,010 models checked and submitted after", f"{time.monotonic() - started_s:.0f} s")
    assert [len(entry["models"]) for entry in submitted] == [505, 505]
    started_s = time.monotonic()
    found = json.loads(devcluster.simhpc("status", run, "--json").stdout)
    devcluster.measure("status --json of 1,010 models", f"{time.monotonic() - started_s:.1f} s")
    assert {task["state"] for task in found["tasks"] if task["stage"] == "attack"} == {"queued"}
    first, last = (
        next(task["job"] for task in found["tasks"] if (task["stage"], task["model"]) == ("attack", model))
        for model in ("m0000", "m1009")
    )
    assert (first, last) == (f"{submitted[0]['job_id']}_0", f"{submitted[1]['job_id']}_504")
    devcluster.slurm("scontrol", "release", first, last)

    def both_done(now: dict) -> bool:
        return sum(task["state"] == "done" for task in now["tasks"]) == 2

    found = devcluster.wait(run, both_done, "the first and the last element are done", 240)
    assert [task["model"] for task in found["tasks"] if task["state"] == "done"] == ["m0000", "m1009"]
    devcluster.simhpc("cancel", "--all", "--run", run)
    found = devcluster.wait(run, lambda now: not any(task["is_live"] for task in now["tasks"]), "cancelled", 60)
    assert sum(task["state"] == "cancelled" for task in found["tasks"]) == 1008


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"account": "nobody"}, "Invalid account"),
        ({"partition": "short", "timeout_min": 30}, "time limit"),
        ({"gpus_per_node": 64}, "node configuration is not available"),
    ],
)
def test_refusals_are_told_in_slurms_words(devcluster, trained, resources, words):
    s = Scenario(devcluster, trained, f"refused-{next(iter(resources))}-{len(words)}")
    said = s.submit(code=2, **resources).stderr
    assert "Slurm refused the attack array of 1 task(s), nothing was submitted" in said
    assert words.lower() in said.lower()
    assert devcluster.task(s.run, "attack", "cnn")["state"] == "todo"


def test_a_changed_study_while_jobs_are_queued(devcluster, trained):
    s = Scenario(devcluster, trained, "changed")
    s.submit(sbatch={"hold": True})
    raw = study_of(trained, {"cnn": "cnn"}, attack={"steps": STEPS + 1}, resources={"batch_size": 4})
    devcluster.write(s.study, raw)
    said = s.submit(code=2).stderr
    assert f"attack.steps: run directory has {STEPS}, study has {STEPS + 1}" in said
    raw = study_of(trained, {"cnn": "cnn", "vit": "vit"}, attack={"steps": STEPS}, resources={"batch_size": 4})
    devcluster.write(s.study, raw)
    assert "2 task(s), 0 done, 1 queued already, 1 to submit" in s.submit(sbatch={"hold": True}).stdout
    devcluster.simhpc("cancel", "--all", "--run", s.run)


def test_status_while_slurm_is_away(devcluster, trained, whole):
    s = Scenario(devcluster, trained, "away")
    s.submit()
    s.in_mid_attack()
    devcluster.operate("accounting", "off")
    try:
        found = devcluster.status(s.run)
        assert found["source"] == "squeue"
        assert found["notes"]
        assert [task["state"] for task in found["tasks"] if task["stage"] == "attack"] == ["running"]
    finally:
        devcluster.operate("accounting", "on")
    devcluster.operate("controller", "off")
    try:
        found = devcluster.status(s.run)
        assert [task["state"] for task in found["tasks"] if task["stage"] == "attack"] == ["running"]
        command = ("submit", "evaluate", s.study, "--profile", s.folder / "profile.toml", "--out", s.run)
        refused = devcluster.simhpc(*command, code=2)
        assert "controller does not answer, nothing was submitted" in refused.stderr
    finally:
        devcluster.operate("controller", "on")
    s.done()
    assert s.bytes() == whole


@pytest.mark.slow  # a minute of watching
def test_watching_costs_slurm_little(devcluster, trained):
    """69 queued tasks, watched for a minute until Ctrl-C; what is called is counted by scripts that pass it on."""
    folder = devcluster.folder("watched")
    study = devcluster.write(
        folder / "study.toml", study_of(trained, {f"m{number:02d}": "cnn" for number in range(69)})
    )
    profile = devcluster.write(folder / "profile.toml", {**PROFILE, "attack": {"sbatch": {"hold": True}}})
    run = folder / "run"
    devcluster.simhpc("submit", "attacks", study, "--profile", profile, "--out", run)
    counted = folder / "counted"
    counted.mkdir(mode=0o777)
    counted.chmod(0o777)
    for name in ("sacct", "squeue", "scontrol", "sinfo"):
        program = counted / name
        program.write_text(f'#!/bin/sh\necho "{name}" >> "{counted}/calls"\nexec {shutil.which(name)} "$@"\n')
        program.chmod(0o755)
    path = f"{counted}{os.pathsep}{os.environ['PATH']}"
    watch = ("timeout", "--signal=INT", "--preserve-status", "60", SIMHPC, "status", str(run), "--watch")
    done = devcluster.as_user(["env", f"PATH={path}", *watch])
    assert done.returncode == 130, done.stderr
    assert "69 queued" in done.stdout
    calls = (counted / "calls").read_text().split()
    assert 2 <= len(calls) <= 6, calls
    devcluster.measure(
        "status --watch of 69 queued tasks, calls of Slurm in the first minute", f"{len(calls)} ({calls})"
    )
    devcluster.simhpc("cancel", "--all", "--run", run)


def same_as_on_one_machine(devcluster, run: Path) -> None:
    """Wait for these models of the demo: every adversarial image, and every pair of the matrix, are those of a run here
    of the whole."""
    for stage in ("train", "attack", "evaluate", "aggregate"):
        devcluster.wait_for_state(run, stage, "done", 1200, repair=True)
    local = CHECKOUT / "runs" / "demo"
    if not (local / "similarity.h5").exists():
        local = devcluster.folder("local") / "run"
        devcluster.simhpc("run", CHECKOUT / "jobs" / "demo.toml", "--out", local)
    here, there = RunDir(local), RunDir(run)
    assert load_images(here.images).sha256 == load_images(there.images).sha256
    ours, theirs = similarity.load(here.similarity), similarity.load(there.similarity)
    for key in theirs.models:
        one, other = (adversarial.load(each.adversarial(key)) for each in (here, there))
        assert np.array_equal(one.images, other.images), key
        assert np.array_equal(one.adv_pred, other.adv_pred), key
    places = np.ix_(*2 * [[ours.models.index(key) for key in theirs.models]])
    for name in ("sat", "n_common", "n_fooled", "n_both"):
        assert np.array_equal(getattr(ours, name)[places], getattr(theirs, name)), name


def test_the_demo_is_the_same_as_on_one_machine(devcluster, demo):
    """After all that has happened to it."""
    assert [model.key for model in open_run(demo).study.models] == list(DEMO_MODELS)
    same_as_on_one_machine(devcluster, demo)


@pytest.mark.slow  # a quarter of an hour
def test_the_whole_demo_is_the_same_as_on_one_machine(devcluster):
    run = devcluster.folder("whole-demo") / "run"
    profile = CHECKOUT / "slurm" / "devcluster-container.toml"
    devcluster.simhpc("submit", "all", CHECKOUT / "jobs" / "demo.toml", "--profile", profile, "--out", run)
    same_as_on_one_machine(devcluster, run)
