"""Tasks inside the real image, on a real Slurm, as an ordinary user."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cluster.devcluster import CHECKOUT
from cluster.scenario import IMAGE, PROFILE, Scenario, study_of
from safetensors.torch import save_file
from tiny import tiny

from simhpc.rundir import RunDir
from simhpc.store import adversarial, similarity
from simhpc.zoo.timm_import import timm

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

NASTY = """it's a "run" of $HOME, é: `x`,y\nand a second line"""
INSIDE = {"image": str(IMAGE)}


def digest_of(path: Path) -> str:
    return f"sha256:{subprocess.run(['sha256sum', path], capture_output=True, text=True, check=True).stdout.split()[0]}"


@pytest.fixture(scope="session")
def digest() -> str:
    return digest_of(IMAGE)


def copy_of_image(devcluster, folder: Path, name: str = "copy.sif") -> Path:
    path = folder / name
    shutil.copy(IMAGE, path)
    os.chown(path, devcluster.user.pw_uid, devcluster.user.pw_gid)
    return path


def small_image(folder: Path, name: str, labels: dict[str, str]) -> Path:
    """A real image with these labels and nothing else in it."""
    path = folder / f"{name}.sif"
    # Where root of a user namespace, which it is built as, may write.
    with tempfile.TemporaryDirectory() as work:
        root, made = Path(work) / "root", Path(work) / "made.sif"
        (root / ".singularity.d").mkdir(parents=True)
        (root / ".singularity.d" / "labels.json").write_text(json.dumps(labels))
        subprocess.run(["apptainer", "--quiet", "build", "--fakeroot", made, root], check=True, capture_output=True)
        shutil.copyfile(made, path)
    return path


def test_the_whole_study_inside(devcluster, demo, digest):
    """Every path with spaces, quotes, `$` and a newline: run directory, image, bind.

    That it comes to the same as outside is the demo's to show (test_on_cluster.py), which is in the image as well.
    """
    folder = devcluster.folder("inside")
    study = devcluster.write(folder / "study.toml", tiny(("cnn", "vit")))
    nasty = folder / NASTY
    nasty.mkdir()
    os.chown(nasty, devcluster.user.pw_uid, devcluster.user.pw_gid)
    bound = nasty / "bound"
    bound.mkdir()
    image = copy_of_image(devcluster, nasty, "im,age: $X.sif")
    inside = nasty / "run"
    container = {"image": str(image), "binds": [str(bound)]}
    profile = profile_of(devcluster, folder, container=container)
    devcluster.simhpc("submit", "all", study, "--profile", profile, "--out", inside)
    for stage in ("train", "attack", "evaluate", "aggregate"):
        devcluster.wait_for_state(inside, stage, "done", 600)
    ours = RunDir(inside)
    assert np.isfinite(similarity.load(ours.similarity).sat).all()
    made_inside = [*inside.glob("adversarial/*.h5"), *inside.glob("predictions/*.h5"), ours.similarity]
    assert len(made_inside) == 5
    for path in made_inside:
        with h5py.File(path) as file:
            assert file.attrs["container"] == digest, path
    entries = [json.loads(path.read_text()) for path in ours.ledger.glob("*.json")]
    assert {entry["container"]["digest"] for entry in entries} == {digest}
    assert {entry["container"]["image"] for entry in entries} == {str(image)}
    # The batch script's own words are in the log, too, which no line of it could name.
    (log,) = ours.submissions.glob("aggregate-*/*_log.out")
    assert "attempt 1 of job" in log.read_text()


def profile_of(devcluster, folder: Path, **tables) -> Path:
    name = f"profile-{len(list(folder.glob('profile-*')))}.toml"
    return devcluster.write(folder / name, {**PROFILE, **tables})


def test_what_is_not_listed_stays_outside(devcluster, trained):
    """A running attack, looked at from outside: its environment, its files."""
    s = Scenario(devcluster, trained, "secret")
    (devcluster.home / ".token").write_text("hunter2")
    listed = 'a $HOME `id` "b"\nc'
    environment = {
        "SECRET": "hunter2",
        "APPTAINERENV_TOKEN": "hunter2",
        "APPTAINER_BIND": f"{devcluster.home}/.token:/mnt",
        "LISTED": listed,
    }
    profile = profile_of(devcluster, s.folder, container={**INSIDE, "env": ["LISTED", "UNSET"]})
    command = ["submit", "attacks", s.study, "--profile", profile, "--out", s.run]
    done = devcluster.as_user(["env", *(f"{k}={v}" for k, v in environment.items()), devcluster.program, *command])
    assert done.returncode == 0, done.stderr
    task = s.in_mid_attack()
    process = Path("/proc") / str(devcluster.pid_of(task["job"]))
    inside = dict(entry.split("=", 1) for entry in (process / "environ").read_text().split("\0") if entry)
    assert inside["LISTED"] == listed
    assert "UNSET" not in inside
    assert not [name for name, value in inside.items() if "hunter2" in value]
    ours = ("SLURM", "SUBMITIT", "SIMHPC", "APPTAINER", "SINGULARITY", "HF_HUB_OFFLINE", "LISTED")
    images = ("PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONNOUSERSITE", "PS1", "PROMPT_COMMAND")
    shells = ("HOME", "PWD", "SHLVL", "_", "LC_CTYPE", "OLDPWD")
    assert [name for name in inside if not name.startswith(ours) and name not in (*images, *shells)] == []
    root = process / "root"
    home = Path(*devcluster.home.parts[1:])
    seen = {path.name for path in (root / home).iterdir()}
    assert seen <= {s.folder.name, "trained-" + s.folder.name.split("-")[1]}, seen
    assert list((root / "mnt").iterdir()) == []
    ours = {devcluster.home.parts[2], f"torchinductor_{devcluster.user.pw_name}"}
    assert {path.name for path in (root / "tmp").iterdir()} <= ours
    with pytest.raises(OSError, match="Read-only"):
        (root / Path(*trained.parts[1:]) / "cnn.safetensors").open("ab")
    with pytest.raises(OSError, match="Read-only"):
        (root / "opt" / "simhpc" / "new").write_text("")
    devcluster.simhpc("cancel", "--all", "--run", s.run)


def test_time_limit_in_mid_attack(devcluster, trained, whole, digest):
    """Slurm gives no limits under a minute, and signals up to a minute early: here, at most 50 s after the start.

    Attacks are frozen meanwhile, so that short ones reach their limit: one outside of a container, and at the same time
    one inside, where every process of the job is signalled, as some sites do.
    """
    outside, inside = (Scenario(devcluster, trained, name) for name in ("limit", "inside-limit"))
    scratch = inside.folder / 'a "scratch", $X'
    scratch.mkdir()
    os.chown(scratch, devcluster.user.pw_uid, devcluster.user.pw_gid)
    in_container = {
        "container": {**INSIDE, "scratch": "$MY_SCRATCH"},
        "setup": [f"export MY_SCRATCH={shlex.quote(str(scratch))}"],
    }

    def at_its_limit(s: Scenario) -> None:
        s.submit(timeout_min=2, signal_delay_s=70, **(in_container if s is inside else {}))
        pid = devcluster.pid_of(s.in_mid_attack()["job"])
        if s is inside:
            (own,) = scratch.iterdir()
            assert f"TMPDIR={own}" in (Path("/proc") / str(pid) / "environ").read_text().split("\0")
            assert (Path("/proc") / str(pid) / "root" / Path(*own.parts[1:])).is_dir()
        os.kill(pid, signal.SIGSTOP)
        # Slurm wakes it as it sends the signal; by then it has sent it.
        time.sleep(max(0, 55 - devcluster.task(s.run, "attack", "cnn")["elapsed_s"]))
        for number in devcluster.step_of(pid) if s is inside else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGWINCH)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        # A busy machine may need a second round.
        assert s.done()["restarts"] >= 1

    with ThreadPoolExecutor() as pool:
        list(pool.map(at_its_limit, (outside, inside)))
    for s in (outside, inside):
        assert set(s.states()) == {"REQUEUED", "COMPLETED"}
        s.agrees()
        assert "asks to be requeued" in devcluster.simhpc("logs", "cnn", "--run", s.run).stdout
    assert outside.bytes() == whole
    assert list(scratch.iterdir()) == []
    found = inside.header()
    assert found.content_sha256 == content_of(whole)
    assert found.provenance.container == digest


def content_of(whole: bytes) -> str:
    """The identity of all datasets of a file; its attributes name the container that it was made in."""
    with h5py.File(io.BytesIO(whole)) as file:
        return str(file.attrs["content_sha256"])


def test_scontrol_requeue_and_kill_inside(devcluster, trained, whole, digest):
    s = Scenario(devcluster, trained, "inside-killed")
    s.submit(container=INSIDE)
    task = s.in_mid_attack()
    first = devcluster.pid_of(task["job"])
    with devcluster.frozen(task["job"]):
        devcluster.slurm("scontrol", "requeue", task["job"])
        devcluster.wait(
            s.run, lambda now: any(t["state"] == "running" and t["restarts"] for t in now["tasks"]), "it runs again"
        )
    second, deadline_s = None, time.monotonic() + 60
    while second in (None, first) and time.monotonic() < deadline_s:
        with contextlib.suppress(AssertionError):  # not started yet
            second = devcluster.pid_of(task["job"])
        time.sleep(0.1)
    os.kill(second, signal.SIGKILL)
    devcluster.wait_for_state(s.run, "attack", "failed", 60)
    assert "Killed" in devcluster.task(s.run, "attack", "cnn")["reason"]
    assert "again      attack     cnn" in devcluster.simhpc("retry", "--failed", "--run", s.run).stdout
    s.done()
    found = s.header()
    assert found.content_sha256 == content_of(whole)
    assert found.provenance.container == digest


def test_images_that_are_refused(devcluster, trained):
    s = Scenario(devcluster, trained, "refused-images")
    truncated = s.folder / "truncated.sif"
    with IMAGE.open("rb") as file:
        truncated.write_bytes(file.read(50_000_000))
    other = small_image(s.folder, "other", {"simhpc.version": "0.0.9", "simhpc.git-commit": "abc123"})
    foreign = small_image(s.folder, "foreign", {"hello": "world"})
    missing = s.folder / "missing.sif"
    for image, words in (
        (truncated, "truncated: it has 50000000 bytes of"),
        (other, "holds simhpc 0.0.9, this is simhpc"),
        (foreign, "is no image of simhpc"),
        (missing, f"there is no image {missing}"),
    ):
        said = s.submit(container={"image": str(image)}, code=2).stderr
        assert words in said, said
        assert str(image) in said
    said = s.submit(container={**INSIDE, "binds": [str(s.folder / "nowhere")]}, code=2).stderr
    assert f"container.binds: there is no {s.folder / 'nowhere'}" in said
    assert devcluster.task(s.run, "attack", "cnn")["state"] == "todo"
    assert s.parts() == 0
    s.submit("--no-container", container={"image": str(missing)})
    s.done()
    assert s.header().provenance.container == "none"


def test_what_changes_between_submission_and_start(devcluster, trained):
    """Another image under the same name; a bind that is gone; a node without Apptainer."""
    s = Scenario(devcluster, trained, "changed-image")
    image, bound = copy_of_image(devcluster, s.folder), s.folder / "bound"
    bound.mkdir()
    s.submit(container={"image": str(image), "binds": [str(bound)]}, sbatch={"hold": True})
    job = devcluster.task(s.run, "attack", "cnn")["job"]
    small_image(s.folder, "other", {}).rename(image)
    devcluster.slurm("scontrol", "release", job)
    devcluster.wait_for_state(s.run, "attack", "failed", 60)
    reason = devcluster.task(s.run, "attack", "cnn")["reason"]
    assert "is not the one that was checked when this was submitted: submit again" in reason

    shutil.copy(IMAGE, image)
    s.submit(container={"image": str(image), "binds": [str(bound)]}, sbatch={"hold": True})
    job = devcluster.task(s.run, "attack", "cnn")["job"]
    bound.rmdir()
    devcluster.slurm("scontrol", "release", job)
    devcluster.wait_for_state(s.run, "attack", "failed", 60)
    assert (
        f"there is no {bound}, which the container is to be shown" in devcluster.task(s.run, "attack", "cnn")["reason"]
    )

    programs = s.folder / "programs"
    programs.mkdir()
    for name in ("bash", "srun", "scontrol", "hostname", "date", "sleep"):
        (programs / name).symlink_to(shutil.which(name))
    s.submit(container=INSIDE, setup=[f"export PATH='{programs}'"])
    devcluster.wait_for_state(s.run, "attack", "failed", 60)
    reason = devcluster.task(s.run, "attack", "cnn")["reason"]
    assert "apptainer is not in PATH" in reason
    assert "--no-container" in reason


def test_timms_weights_without_a_network(devcluster, trained, digest):
    """A cache laid out as the hub's own, with weights made here; nodes have no way out of their network."""
    folder = devcluster.folder("pretrained")
    raw = study_of(trained, {"cnn": "cnn"})
    raw["models"] = [{"key": "pre", "timm": "test_resnet", "weights": "pretrained:r160_in1k"}]
    study = devcluster.write(folder / "study.toml", raw)
    profile = profile_of(devcluster, folder, container=INSIDE)
    home = folder / "hub's home"
    command = [devcluster.program, "submit", "attacks", study, "--profile", profile, "--out", folder / "run"]
    refused = devcluster.as_user(["env", f"HF_HOME={home}", *command])
    assert refused.returncode == 2
    assert "the weights of 1 model(s) are not on this machine" in refused.stderr
    assert "simhpc models fetch STUDY" in refused.stderr
    assert str(home) in refused.stderr
    repository = home / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet", pretrained=False).state_dict()
    weights["fc.bias"][:10] += 100  # so that some digits are classified correctly
    save_file(weights, snapshot / "model.safetensors")
    (snapshot / "model.safetensors").chmod(0o644)
    done = devcluster.as_user(["env", f"HF_HOME={home}", *command])
    assert done.returncode == 0, done.stderr
    devcluster.wait_for_state(folder / "run", "attack", "done", 120)
    found = adversarial.header(RunDir(folder / "run").adversarial("pre"))
    assert found.provenance.container == digest
    assert found.provenance.timm_name == "test_resnet.r160_in1k"


def test_gpus_are_let_in_where_a_stage_asks_for_one(devcluster, trained):
    """The cluster's are made up, so --nv finds nothing to let in; Slurm's choice arrives."""
    s = Scenario(devcluster, trained, "inside-gpu")
    s.submit(container=INSIDE, gpus_per_node=1)
    task = s.in_mid_attack()
    inside = (Path("/proc") / str(devcluster.pid_of(task["job"])) / "environ").read_text().split("\0")
    assert [entry for entry in inside if entry.startswith("CUDA_VISIBLE_DEVICES=")]
    (launcher,) = RunDir(s.run).submissions.glob("attack-*/container.sh")
    assert "options=(--containall --no-eval --pwd / --nv " in launcher.read_text()
    devcluster.simhpc("cancel", "--all", "--run", s.run)


def test_the_doctor_looks_inside(devcluster):
    profile = CHECKOUT / "slurm" / "devcluster-container.toml"
    done = devcluster.simhpc("doctor", "--profile", profile, "--dir", devcluster.home / "runs", "--json", code=None)
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, checks
    assert checks["image"]["level"] == "ok"
    assert "inside the image" in checks["trial job"]["found"]
    assert checks["torch on the node"]["found"].startswith("attacks a small model on the CPU")
    assert checks["software"]["found"].startswith("in the image: python 3.11")
    assert checks["requeueing from the node"]["level"] == "ok"


def test_the_image_tells_nothing_of_the_machine_that_built_it(devcluster):
    """No mirror and no folder of it; and everything runs without the host's Python."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    wanted = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()
    listed = [sys.executable, "-m", "pip", "config", "list"]
    for line in subprocess.run(listed, capture_output=True, text=True, check=False).stdout.splitlines():
        if any(key in line for key in ("index-url", "find-links", "trusted-host")):
            wanted += line.partition("=")[2].strip("'\" ").split()
    patterns = [word.rstrip("/") for word in wanted]
    patterns += ["simhpc-image.", str(CHECKOUT)]  # the folder that it was built in, and this one

    def files_with(*patterns: str, places: tuple[str, ...]) -> list[str]:
        words = [word for pattern in patterns for word in ("-e", pattern)]
        command = ["apptainer", "exec", "--containall", IMAGE, "grep", "-rIlsF", *words, *places]
        return devcluster.as_user(command).stdout.splitlines()

    assert "/.singularity.d/labels.json" in files_with("simhpc.git-commit", places=("/.singularity.d",))
    # Not all of /usr: some packages' documentation names Debian's own mirror.
    places = ("/.singularity.d", "/etc", "/opt", "/home", "/var", "/usr/local", "/srv")
    assert files_with(*patterns, places=places) == []
    assert devcluster.as_user(["apptainer", "run", "--containall", IMAGE, "--version"]).stdout.startswith("simhpc ")
