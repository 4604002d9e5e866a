"""The launcher, run by bash with a stand-in for Apptainer that writes down how it was called."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster.sif import write_sif
from hypothesis import given
from hypothesis import strategies as st

from simhpc.cluster import capacity, container, image
from simhpc.cluster.container import Needs
from simhpc.cluster.profile import Bind, Container, StageResources
from simhpc.errors import ContainerError

STAND_IN = """#!{python}
import json, os, signal, sys, time
told = []
signal.signal(signal.SIGWINCH, lambda *_: told.append(time.time()))
with open({notes!r}, "w") as file:
    json.dump([sys.argv, dict(os.environ)], file)
{then}
"""


class Launch:
    """A launcher in a folder of its own, and what the stand-in noted."""

    def __init__(self, folder: Path, then: str = "", needs: Needs | None = None, gpus: int = 0, **wanted):
        self.folder = folder
        self.programs = folder / "bin"
        self.programs.mkdir()
        text = STAND_IN.format(python=sys.executable, notes=str(folder / "called"), then=then)
        (self.programs / "apptainer").write_text(text)
        (self.programs / "apptainer").chmod(0o755)
        wanted.setdefault("image", str(write_sif(folder / "it's $X.sif", {})))
        self.checked = container.check(Container.model_validate(wanted, strict=False))
        resources = StageResources(gpus_per_node=gpus)
        self.script = folder / container.LAUNCHER
        self.script.write_text(container.launcher(self.checked, needs or Needs(()), resources))

    def start(self, **environment):
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", str(self.script), "-u", "-m", "module", "a b"]
        return subprocess.Popen(
            command, env={"PATH": path, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, code=0, **environment):
        process = self.start(**environment)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        return said

    def called(self) -> tuple[list[str], dict[str, str]]:
        words, environment = json.loads((self.folder / "called").read_text())
        return words[1:], environment


def test_how_apptainer_is_called(tmp_path):
    bound = Bind(source=str(tmp_path), mode="rw")
    launch = Launch(tmp_path, needs=Needs((bound,), {"HF_HUB_OFFLINE": "1"}), flags=("--userns", "--x=a b"))
    launch.run()
    words, environment = launch.called()
    mount = f'type=bind,"source={tmp_path}","destination={tmp_path}"'
    options = ["--quiet", "exec", "--containall", "--no-eval", "--pwd", "/", "--mount", mount, "--userns", "--x=a b"]
    inside = [str(tmp_path / "it's $X.sif"), image.PYTHON, "-u", "-m", "module", "a b"]
    assert words == [*options, *inside]
    assert environment["APPTAINERENV_HF_HUB_OFFLINE"] == "1"
    assert environment["APPTAINERENV_SIMHPC_CONTAINER_DIGEST"] == launch.checked.digest
    assert launch.checked.digest == f"sha256:{launch.checked.image.sha256()}"


def test_what_goes_in_is_decided_at_task_time(tmp_path):
    launch = Launch(tmp_path, env=("MINE", "UNSET"))
    value = "a $HOME `id` \"b\"\n'c'"
    launch.run(
        SLURM_PROCID="3", SUBMITIT_EXECUTOR="slurm", SIMHPC_JOB_STARTED_UNIX_S="7", CUDA_VISIBLE_DEVICES="1",
        MINE=value, SECRET="s", SLURM_JWT="s", APPTAINERENV_SECRET="s", SINGULARITYENV_SECRET="s",
        APPTAINER_BIND="/etc:/mnt", APPTAINER_TMPDIR="/tmp", SINGULARITY_NV="1",
    )  # fmt: skip
    _, environment = launch.called()
    inside = {
        name.removeprefix("APPTAINERENV_"): value
        for name, value in environment.items()
        if name.startswith("APPTAINERENV_")
    }
    ours = {"SIMHPC_CONTAINER_DIGEST", "SIMHPC_JOB_SUBMITTED_WITH"}
    assert {name: value for name, value in inside.items() if name not in ours} == {
        "SLURM_PROCID": "3",
        "SUBMITIT_EXECUTOR": "slurm",
        "SIMHPC_JOB_STARTED_UNIX_S": "7",
        "CUDA_VISIBLE_DEVICES": "1",
        "MINE": value,
    }
    left = {name for name in environment if name.startswith(("APPTAINER_", "SINGULARITY"))}
    assert left == {"APPTAINER_TMPDIR"}


TEXT = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=("Cs",)), min_size=1, max_size=20)


@given(source=TEXT, target=TEXT, image_name=TEXT)
def test_no_path_means_anything_to_a_shell_or_to_csv(source, target, image_name):
    """What bash makes of the script's settings, and what a CSV reader makes of the mount."""
    import csv

    bind = Bind(source=f"/{source}", target=f"/{target}")
    found = image.Image(Path(f"/{image_name}"), "0" * 32, 1, 1, "x86_64", {})
    checked = container.Checked(Container(image=f"/{image_name}", binds=(bind,)), found, "sha256:0")
    settings = container.launcher(checked, Needs(()), StageResources()).partition("\n\n# Starts")[0]
    script = settings + '\nprintf "%s\\0" "$image" "${sources[@]}" "${options[@]}"'
    said = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True).stdout
    image_path, one, *options = said.decode().split("\0")[:-1]
    assert (image_path, one) == (f"/{image_name}", f"/{source}")
    mount = options[options.index("--mount") + 1]
    assert list(csv.reader([mount.replace("\r", "␍").replace("\n", "␊")])) == [
        [part.replace("\r", "␍").replace("\n", "␊") for part in
         ("type=bind", f"source=/{source}", f"destination=/{target}", "ro")]
    ]  # fmt: skip


def test_outer_folders_are_bound_first_and_each_target_once():
    binds = [
        Bind(source="/a/b/c"),
        Bind(source="/x", target="/a"),
        Bind(source="/a/b/c", mode="rw"),
        Bind(source="/a/b"),
    ]
    assert [(bind.inside, bind.source, bind.mode) for bind in container._in_order(binds)] == [
        ("/a", "/x", "ro"),
        ("/a/b", "/a/b", "ro"),
        ("/a/b/c", "/a/b/c", "rw"),
    ]


@pytest.mark.parametrize(
    ("gpus", "nv", "expected"), [(0, None, False), (1, None, True), (1, False, False), (0, True, True)]
)
def test_nv_is_for_stages_that_ask_for_a_gpu(tmp_path, gpus, nv, expected):
    launch = Launch(tmp_path, gpus=gpus, nv=nv)
    launch.run()
    assert ("--nv" in launch.called()[0]) is expected


@pytest.mark.parametrize("code", [0, 1, 75])
def test_exit_codes_pass_through(tmp_path, code):
    Launch(tmp_path, then=f"sys.exit({code})").run(code)


def test_a_killed_task_looks_like_one(tmp_path):
    Launch(tmp_path, then="sys.exit(137)").run(-signal.SIGKILL)


def test_the_signal_is_handed_on_until_it_is_heeded(tmp_path):
    """Sent to the launcher alone, as proctrack/cgroup does; the first one finds nobody listening yet."""
    heeded = "while len(told) < 3 and time.time() < deadline: time.sleep(0.05)"
    then = f"deadline = time.time() + 30\n{heeded}\nsys.exit(75 if len(told) > 2 else 1)"
    launch = Launch(tmp_path, then=then)
    process = launch.start()
    while not (tmp_path / "called").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(container.SIGNAL)
    assert process.wait(60) == 75


def test_what_a_task_ignores_does_not_end_the_launcher(tmp_path):
    launch = Launch(tmp_path, then="time.sleep(1)\nsys.exit(7)")
    process = launch.start()
    while not (tmp_path / "called").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 7


def test_temporary_files(tmp_path):
    scratch = tmp_path / 'a "b" $X'
    scratch.mkdir()
    launch = Launch(tmp_path, scratch="$MY_SCRATCH", then="sys.exit(3)")
    launch.run(3, MY_SCRATCH=str(scratch))
    words, environment = launch.called()
    own = Path(environment["APPTAINERENV_TMPDIR"])
    assert own.parent == scratch
    quoted = str(own).replace('"', '""')
    assert f'type=bind,"source={quoted}","destination={quoted}"' in words
    assert list(scratch.iterdir()) == []
    said = launch.run(1)
    assert 'container.scratch = "$MY_SCRATCH", but the job has no such variable' in said
    said = launch.run(1, MY_SCRATCH=str(tmp_path / "nowhere"))
    assert "no temporary folder can be made in" in said


def test_what_is_missing_on_the_node(tmp_path):
    bound = tmp_path / "bound"
    bound.mkdir()
    launch = Launch(tmp_path, binds=({"source": str(bound)},))
    bound.rmdir()
    assert f"there is no {bound}, which the container is to be shown" in launch.run(1)
    bound.mkdir()
    write_sif(launch.checked.image.path, {}, identity=b"j" * 16)
    assert "is not the one that was checked when this was submitted" in launch.run(1)
    launch.checked.image.path.unlink()
    assert "is not there or cannot be read" in launch.run(1)
    (launch.programs / "apptainer").unlink()
    for name in ("bash", "hostname"):
        found = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        (launch.programs / name).symlink_to(found)
    assert "apptainer is not in PATH" in launch.run(1, PATH=str(launch.programs))
    assert not (tmp_path / "called").exists()


def test_binds_that_do_not_exist_are_refused(tmp_path):
    path = write_sif(tmp_path / "a.sif", {})
    wanted = Container(image=str(path), binds=(Bind(source=str(tmp_path / "nowhere")),))
    with pytest.raises(ContainerError, match=r"container\.binds: there is no .*/nowhere"):
        container.check(wanted)


def test_a_digest_is_computed_once_for_a_file(tmp_path, monkeypatch):
    path = write_sif(tmp_path / "a.sif", {})
    first = container.check(Container(image=str(path)))
    known = [first.as_plain()]
    monkeypatch.setattr(image.Image, "sha256", lambda _: "new")
    assert container.check(Container(image=str(path)), known).digest == first.digest
    write_sif(path, {"changed": "a little"})
    assert container.check(Container(image=str(path)), known).digest == "sha256:new"


def test_an_image_for_other_nodes_than_this_one(tmp_path, monkeypatch):
    path = write_sif(tmp_path / "a.sif", {}, arch=b"04")
    monkeypatch.setattr(capacity, "architectures", lambda: {"aarch64"})
    assert container.check(Container(image=str(path))).notes == ()
    monkeypatch.setattr(capacity, "architectures", set)
    with pytest.raises(ContainerError, match="is for aarch64"):
        container.check(Container(image=str(path)))


def test_the_launcher_is_a_valid_script(tmp_path):
    script = Launch(tmp_path).script
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert shlex.quote(str(tmp_path / "it's $X.sif")) in script.read_text()
