"""`simhpc doctor`: everything that can be wrong with a cluster, on stand-ins for its programs."""

from __future__ import annotations

import json
import os
import sys
import time
from types import SimpleNamespace

import h5py
import pytest
from cluster.sif import write_sif
from hypothesis import given
from hypothesis import strategies as st

from simhpc import __version__
from simhpc.cluster import capacity, checks, doctor, probe, trial
from simhpc.cluster.checks import FAILED, OK, WARNING
from simhpc.cluster.profile import parse_profile
from simhpc.errors import SchedulerError
from simhpc.store import locking

PARTITIONS = (
    "PartitionName=main AllowGroups=ALL Default=YES MaxTime=UNLIMITED Nodes=node[1-2] PreemptMode=OFF State=UP\n"
    "PartitionName=short AllowGroups=ALL Default=NO MaxTime=00:02:00 Nodes=node1 PreemptMode=REQUEUE State=UP\n"
    "PartitionName=shut AllowGroups=ALL Default=NO MaxTime=1-00:00:00 Nodes=node1 PreemptMode=OFF State=INACTIVE\n"
)
NODE = (
    "NodeName={name} Arch=x86_64 CPUAlloc=0 CPUEfctv={cpus} CPUTot=4 Gres={gres} OS=Linux 6.18 #1 SMP Gres=x "
    "RealMemory={mem} State={state} Partitions=main,short,shut Reason=Gres=gpu:99 is broken\n"
)
# The stand-in for scontrol says all of it whatever it is asked.
CONTROL = (
    "Slurmctld(primary) at head is UP\nMaxArraySize = 501\nJobRequeue = 0\nPreemptMode = OFF\nAuthType = auth/munge\n"
)


def nodes(*, state="IDLE", cpus=4, mem=3000, gres="gpu:2(S:0-1)"):
    return "".join(NODE.format(name=f"node{n}", state=state, cpus=cpus, mem=mem, gres=gres) for n in (1, 2))


_SRUN = """#!{python}
import json, pathlib, sys
folder, nonce = pathlib.Path(sys.argv[-2]), sys.argv[-1]
pathlib.Path({calls!r}).write_text(json.dumps(sys.argv))
report = json.loads({report!r})
if report.pop("writes"):
    (folder / "node").write_text(nonce)
print("a line of some library")
print(json.dumps(dict(report, nonce=nonce)))
"""


class Cluster:
    """A healthy cluster, to be broken one piece at a time."""

    def __init__(self, slurm, folder):
        self.slurm = slurm
        self.folder = folder / "runs"
        self.folder.mkdir()
        for name in ("munge", "unmunge", "sacctmgr"):
            self.program(name, "#!/bin/sh\nexit 0\n")
        self.program("sbatch", '#!/bin/sh\n[ "$1" = --version ] && echo slurm 23.02.6\nexit 0\n')
        self.scontrol()
        self.srun()

    def program(self, name, text):
        path = self.slurm.folder / name
        path.write_text(text)
        path.chmod(0o755)

    def scontrol(self, text=None):
        self.slurm.says("scontrol", CONTROL + PARTITIONS + nodes() if text is None else text)

    def refuses(self, words):
        self.program("sbatch", f'#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "{words}" >&2\nexit 1\n')

    def srun(self, *, writes=True, clock_s=0.0, **changes):
        """A node that answers as this machine does, but for `changes`."""
        report = {
            "host": "node7",
            "versions": probe.versions(),
            "seen_after_s": 0.1,
            "not_writable": "",
            "no_locks": "",
            "no_hdf5": "",
            "no_torch": "",
            "devices": [],
            "temporary": "/tmp",
            "temporary_free_bytes": 2**40,
            "has_scontrol": True,
            "unix_s": time.time() + clock_s,
            "writes": writes,
            **changes,
        }
        text = _SRUN.format(
            python=sys.executable, report=json.dumps(report), calls=str(self.slurm.folder / "srun.args")
        )
        self.program("srun", text)

    @property
    def srun_arguments(self):
        return json.loads((self.slurm.folder / "srun.args").read_text())

    def examine(self, probe=True, container=None, **defaults):
        """Checks by name."""
        raw = {"defaults": defaults, **({} if container is None else {"container": container})}
        profile = parse_profile(raw, where="p.toml")
        checks = list(doctor.examine(profile, "p.toml", self.folder, probe=probe))
        found = {check.name: check for check in checks}
        assert len(found) == len(checks)
        assert list(self.folder.iterdir()) == []  # nothing stays behind
        return found


@pytest.fixture
def cluster(slurm, tmp_path):
    return Cluster(slurm, tmp_path)


def levels(checks, *wanted):
    return sorted(name for name, check in checks.items() if check.level in wanted)


def test_all_is_well(cluster):
    checks = cluster.examine(mem_gb=2, gpus_per_node=1, account="lab", sbatch={"constraint": "a", "nice": 5})
    assert levels(checks, FAILED) == []
    assert levels(checks, WARNING) == ["torch on the node"]  # a GPU was asked for
    assert checks["programs"].found.endswith("of Slurm 23.02.6")
    assert "501 elements" in checks["arrays"].found
    assert checks["nodes (all stages)"].found == "2 of 2 in main have 1 CPU(s), 2 GiB, gpu:1"
    arguments = cluster.srun_arguments
    assert {"--gpus-per-node=1", "--account=lab", "--mem=2048M", "--constraint=a", "--time=10"} <= set(arguments)


def test_a_container(cluster, tmp_path):
    """The trial job goes through the launcher; an image's own torch is no fault."""
    path = write_sif(tmp_path / "it's $X.sif", {"simhpc.git-commit": "abc"})
    cluster.srun(versions={**probe.versions(), "torch": "2.13.0+cu130"}, temporary_free_bytes=2**20)
    checks = cluster.examine(container={"image": str(path)})
    assert levels(checks, FAILED, WARNING) == []
    assert str(path) in checks["image"].found
    assert "git-commit abc" in checks["image"].found
    assert "inside the image" in checks["trial job"].found
    assert "torch 2.13.0+cu130" in checks["software"].found
    assert "container.scratch" in checks["temporary files on the node"].found
    *_, bash, script, module, name, _folder, _nonce = cluster.srun_arguments
    assert (bash, script.rsplit("/")[-1], module, name) == ("bash", "container.sh", "-m", "simhpc.cluster.probe")
    cluster.srun(versions={**probe.versions(), "simhpc": "0.0.9"})
    assert (
        f"simhpc {__version__} here, 0.0.9 there" in cluster.examine(container={"image": str(path)})["software"].found
    )


def test_an_image_that_is_not_there(cluster, tmp_path):
    checks = cluster.examine(container={"image": str(tmp_path / "missing.sif")})
    assert levels(checks, FAILED) == ["image"]
    assert "there is no image" in checks["image"].found
    assert checks["trial job"].found == "not started: there is no image to run it in"
    other = write_sif(tmp_path / "other.sif", {"simhpc.source": "0"})
    assert cluster.examine(container={"image": str(other)})["image"].level == WARNING


def test_the_probe_itself_runs(cluster):
    """The stand-in for srun runs what it is given, here."""
    cluster.program("srun", '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"\n')
    checks = cluster.examine(setup=["export FROM_SETUP=1", "no-such-program"])
    assert levels(checks, FAILED, WARNING) == []
    assert "is seen on" in checks["shared disk"].found
    assert f"simhpc {probe.versions()['simhpc']}" in checks["software"].found


def test_stages_that_are_alike_are_checked_once(cluster):
    raw = {"attack": {"gpus_per_node": 1}, "evaluate": {"gpus_per_node": 1}}
    checks = doctor.examine(parse_profile(raw, where="p"), "p", cluster.folder)
    names = [check.name for check in checks]
    assert [name for name in names if name.startswith("nodes")] == [
        "nodes (train, aggregate)",
        "nodes (attack, evaluate)",
    ]
    # The trial job is of the kind that needs a GPU.
    assert "--gpus-per-node=1" in cluster.srun_arguments


def test_without_slurm(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    checks = cluster.examine()
    assert levels(checks, FAILED) == ["controller", "programs"]
    assert "sbatch" in checks["programs"].found
    assert "login node" in checks["programs"].advice
    assert checks["stages"].level == WARNING


def test_without_sacct(cluster, monkeypatch):
    cluster.slurm.removes("sacct")
    monkeypatch.setenv("PATH", f"{cluster.slurm.folder}{os.pathsep}/bin-without-slurm")
    checks = list(doctor.examine(parse_profile({}, where="p"), "p", cluster.folder, probe=False))
    found = {check.name: check for check in checks}
    assert (found["programs"].level, found["programs"].found) == (WARNING, "not in PATH: sacct")
    assert found["accounting"].level == WARNING
    assert "squeue alone" in found["accounting"].advice


@pytest.mark.parametrize(("auth", "level"), [("auth/munge", FAILED), ("auth/slurm", OK)])
def test_munge_is_needed_where_slurm_uses_it(cluster, auth, level):
    cluster.program("unmunge", "#!/bin/sh\necho unmunge: Error: socket not found >&2\nexit 6\n")
    cluster.scontrol(CONTROL.replace("auth/munge", auth) + PARTITIONS + nodes())
    assert cluster.examine(probe=False)["munge"].level == level


@pytest.mark.parametrize("how", ["down", "fails", "silent"])
def test_no_controller(cluster, how):
    if how == "fails":
        cluster.slurm.fails("scontrol", "Unable to contact slurm controller (connect failure)")
    else:
        cluster.scontrol("Slurmctld(primary) at head is DOWN\n" if how == "down" else "")
    checks = cluster.examine()
    assert levels(checks, FAILED) == ["controller"]
    assert checks["run directory"].level == OK
    assert "not checked" in checks["stages"].found


def test_no_accounting(cluster):
    cluster.slurm.fails("sacct", "Slurm accounting storage is disabled")
    checks = cluster.examine()
    assert levels(checks, FAILED) == []
    assert checks["accounting"].found == "sacct failed: Slurm accounting storage is disabled"


def test_arrays_that_are_off(cluster):
    cluster.scontrol(CONTROL.replace("501", "0") + PARTITIONS + nodes())
    assert cluster.examine(probe=False)["arrays"].level == FAILED


def test_an_unknown_partition(cluster):
    checks = cluster.examine(partition="mian")
    check = checks["partition (all stages)"]
    assert (check.level, check.found) == (FAILED, "there is no partition 'mian'; did you mean 'main'?")
    assert check.advice == "change it in p.toml; there are main, short, shut"
    assert "would be refused" in checks["trial job"].found


def test_a_partition_that_takes_no_jobs(cluster):
    assert cluster.examine(partition="shut", probe=False)["partition (all stages)"].level == FAILED
    assert cluster.examine(partition="main,shut", probe=False)["partition (all stages)"].level == WARNING


def test_time_limits(cluster):
    check = cluster.examine(partition="short", timeout_min=30, probe=False)["time limit (all stages)"]
    assert (check.level, check.found) == (FAILED, "timeout_min = 30, but short allows 2 min")
    check = cluster.examine(partition="short,main", timeout_min=30, probe=False)["time limit (all stages)"]
    assert check.level == WARNING
    check = cluster.examine(timeout_min=1, probe=False)["time limit (all stages)"]
    assert check.level == WARNING
    assert "stopped as they start" in check.found


@pytest.mark.parametrize(
    "asked", [{"cpus_per_task": 5}, {"mem_gb": 3}, {"gpus_per_node": 3}, {"gres": "gpu:a100:1"}, {"gres": "shard"}]
)
def test_more_than_any_node_has(cluster, asked):
    cluster.refuses("allocation failure: Requested node configuration is not available")
    checks = cluster.examine(**asked)
    assert levels(checks, FAILED) == ["nodes (all stages)", "sbatch (all stages)"]
    assert "at most 4 CPU(s), 2.9 GiB, gpu:2" in checks["nodes (all stages)"].found


def test_slurms_word_counts_more_than_our_reading(cluster):
    """Nodes that `scontrol` describes in some other way."""
    cluster.scontrol(CONTROL + PARTITIONS + nodes(gres="(null)"))
    checks = cluster.examine(gpus_per_node=1)
    assert levels(checks, FAILED) == []
    assert "yet Slurm takes the job" in checks["nodes (all stages)"].found


def test_nodes_that_are_out_of_service_are_waited_for(cluster):
    cluster.scontrol(CONTROL + PARTITIONS + nodes(state="IDLE+DRAIN"))
    cluster.refuses("allocation failure: Requested node configuration is not available")
    checks = cluster.examine(probe=False)
    assert levels(checks, FAILED) == []
    assert "none is in service" in checks["nodes (all stages)"].found
    assert "wait in the queue" in checks["sbatch (all stages)"].advice


def test_what_slurm_refuses_is_said_in_its_words(cluster):
    cluster.refuses("allocation failure: Invalid account or account/partition combination specified")
    cluster.program("sacctmgr", "#!/bin/sh\necho 'lab||normal,small'\n")
    checks = cluster.examine(account="labb")
    check = checks["sbatch (all stages)"]
    assert (check.level, check.found) == (
        FAILED,
        "allocation failure: Invalid account or account/partition combination specified",
    )
    assert check.advice == "set account in p.toml; you may use account lab, qos normal,small"


def test_sbatch_is_given_what_submit_would_give_it(cluster):
    copy = cluster.slurm.folder / "copy"
    cluster.program("sbatch", f'#!/bin/sh\n[ "$1" = --test-only ] && cat "$2" > {copy}\nexit 0\n')
    cluster.examine(probe=False, mem_gb=2, qos="small", timeout_min=10, array_parallelism=7, sbatch={"nice": 5})
    lines = copy.read_text().splitlines()
    wanted = {"--mem=2048M", "--qos=small", "--time=10", "--nice=5", "--requeue", "--signal=USR2@120", "--array=0-1%2"}
    assert {f"#SBATCH {option}" for option in wanted} <= set(lines)


def test_garbled_answers_leave_it_to_slurm(cluster):
    cluster.scontrol("Slurmctld is UP\n\x00\x01 PartitionName NodeName==\nNodeName=n CPUTot=many\n=\n")
    checks = cluster.examine()
    assert levels(checks, FAILED) == []
    assert levels(checks, WARNING) == ["arrays", "nodes (all stages)", "partition (all stages)"]


@given(st.text())
def test_no_text_breaks_the_readers(text):
    capacity.read_partitions(text)
    capacity.read_nodes(text)
    capacity.read_minutes(text)
    capacity._gres(text)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("00:02:00", 2), ("2:00", 2), ("1-12:00:00", 2160), ("UNLIMITED", float("inf")), ("NONE", None), ("", None)],
)
def test_slurms_times(text, minutes):
    assert capacity.read_minutes(text) == minutes


@pytest.mark.parametrize(
    ("have", "wanted", "enough"),
    [
        ("gpu:2", "gpu:2", True),
        ("gpu:2", "gpu:3", False),
        ("gpu:2", "gpu", True),
        ("gpu:a100:4(S:0,1),gpu:v100:2(S:1),shard:8", "gpu:6", True),
        ("gpu:a100:4(S:0,1),gpu:v100:2(S:1)", "gpu:v100:3", False),
        ("gpu:a100:4", "gpu:a100", True),
        ("gpu:a100:4", "gpu:v100:1", False),
        ("gpu:no_consume:4K", "gpu:4096", True),
        ("gpu:4", "gres/gpu:2", True),
        ("", "none", True),
        ("", "gpu:1", False),
    ],
)
def test_gres(have, wanted, enough):
    assert capacity.has_gres(have, wanted) == enough


@pytest.mark.parametrize(
    ("state", "works"),
    [
        *(("IDLE", True), ("MIXED+CLOUD", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("ALLOCATED+COMPLETING", True)),
        *(("DOWN", False), ("IDLE*", False), ("MIXED+DRAIN", False), ("DOWN*+DRAIN", False), ("", False)),
    ],
)
def test_states_of_nodes(state, works):
    (node, _) = capacity.read_nodes(nodes(state=state))
    assert (node.in_service, node.cpus, node.mem_mb, node.gres) == (works, 4, 3000, "gpu:2(S:0-1)")


@pytest.mark.parametrize(
    ("changes", "name", "level", "words"),
    [
        ({"seen_after_s": None}, "shared disk", FAILED, "node7 did not see a file"),
        ({"seen_after_s": 9.0}, "shared disk", WARNING, "up to 9 s"),
        ({"not_writable": "Read-only file system"}, "shared disk", FAILED, "Read-only file system"),
        ({"no_locks": "errno = 37"}, "HDF5", WARNING, "file locks do not work"),
        ({"no_locks": "errno = 37", "no_hdf5": "errno = 37"}, "HDF5", FAILED, "cannot write"),
        ({"no_torch": "ImportError: libcudart"}, "torch on the node", FAILED, "libcudart"),
        ({"devices": ["H200"]}, "torch on the node", OK, "attacks a small model on the CPU, H200"),
        ({"temporary_free_bytes": 2**20}, "temporary files on the node", WARNING, "0.0 GiB"),
        ({"temporary_free_bytes": None}, "temporary files on the node", WARNING, "unknown"),
        ({"has_scontrol": False}, "requeueing from the node", WARNING, "cannot requeue itself"),
        ({"clock_s": 60}, "clock of the node", WARNING, "s ahead of"),
        ({"clock_s": -60}, "clock of the node", WARNING, "s behind"),
    ],
)
def test_what_is_wrong_with_a_node(cluster, changes, name, level, words):
    cluster.srun(**changes)
    checks = cluster.examine()
    assert checks[name].level == level
    assert words in checks[name].found
    assert (levels(checks, FAILED) == [name]) == (level == FAILED)


def test_what_a_node_writes_is_looked_for(cluster, monkeypatch):
    monkeypatch.setattr(probe, "SEEN_WITHIN_S", 0.3)
    cluster.srun(writes=False)
    check = cluster.examine()["shared disk"]
    assert check.level == FAILED
    assert "was not seen here" in check.found


def test_a_node_with_another_simhpc(cluster):
    cluster.srun(versions={**probe.versions(), "simhpc": "9.9", "torch": "1.0"}, another_field=1)
    checks = cluster.examine()
    assert checks["software"].level == FAILED
    assert f"simhpc {probe.versions()['simhpc']} here, 9.9 there" in checks["software"].found
    assert "torch" in checks["software"].found
    assert "shared disk" not in checks  # another report, which is not guessed at


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'exec: python: not found' >&2; exit 127", "not found"),
        ("echo nothing of use", "cannot be read: 'nothing of use'"),
        ("exit 0", "cannot be read"),
        ('echo \'{"nonce": "of another"}\'', "cannot be read"),
    ],
)
def test_a_trial_job_that_fails(cluster, script, words):
    cluster.program("srun", f"#!/bin/sh\n{script}\n")
    check = cluster.examine()["trial job"]
    assert check.level == FAILED
    assert words in check.found


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_trial_job_that_takes_too_long_is_cancelled(cluster, monkeypatch, state):
    monkeypatch.setattr(trial, "WAIT_S", 0.2)
    monkeypatch.setattr(trial, "RUN_S", 0.2)
    mark = cluster.slurm.folder / "cancelled"
    cluster.program("srun", f"#!/bin/sh\nwhile [ ! -f {mark} ]; do sleep 0.05; done\nexit 1\n")
    cluster.program("scancel", f'#!/bin/sh\necho "$@" > {mark}\n')
    cluster.slurm.says("squeue", f"{state}|Resources\n")
    check = cluster.examine()["trial job"]
    if state == "PENDING":
        assert check.level == WARNING
        assert check.found == "no free node within 0 s (Slurm's reason: Resources)"
        assert "--no-probe" in check.advice
    else:
        assert check.level == FAILED
        assert "did not end" in check.found
    assert mark.read_text().startswith("--name=simhpc-doctor-")


def test_ctrl_c_leaves_nothing(cluster, monkeypatch):
    mark = cluster.slurm.folder / "cancelled"
    cluster.program("srun", f"#!/bin/sh\nwhile [ ! -f {mark} ]; do sleep 0.05; done\nexit 1\n")
    cluster.program("scancel", f"#!/bin/sh\ntouch {mark}\n")

    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "WAIT_S", 0.2)
    monkeypatch.setattr(trial, "_why_waiting", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.examine()
    assert mark.exists()
    assert list(cluster.folder.iterdir()) == []


def test_run_directories(cluster, tmp_path, monkeypatch):
    def of(root):
        return {check.name: check for check in doctor._disk(root, doctor._existing(root))}

    new = of(cluster.folder / "a" / "b")
    assert new["run directory"].found == f"{cluster.folder} can be written ({cluster.folder}/a/b is not there yet)"
    (tmp_path / "file").touch()
    assert of(tmp_path / "file")["run directory"].found.endswith("is a file")
    assert of(tmp_path / "file" / "below")["run directory"].level == FAILED
    assert of(tmp_path / "100%")["run directory"].level == FAILED
    assert of(doctor.Path("/proc/self"))["run directory"].level == FAILED
    gib = 2**30
    for free, total, inodes, level in [
        (9 * gib, 100 * gib, 10**6, WARNING),
        (40 * gib, 1000 * gib, 10**6, WARNING),
        (60 * gib, 1000 * gib, 10**6, OK),
        (60 * gib, 100 * gib, 5, WARNING),
    ]:
        space = SimpleNamespace(f_frsize=1, f_bavail=free, f_blocks=total, f_files=10**7, f_favail=inodes)
        monkeypatch.setattr(os, "statvfs", lambda _, space=space: space)
        assert of(cluster.folder)["disk space"].level == level
    space = SimpleNamespace(f_frsize=1, f_bavail=60 * gib, f_blocks=100 * gib, f_files=0, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    assert of(cluster.folder)["disk space"].level == OK  # does not count its inodes


def test_a_node_that_does_not_see_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "SEEN_WITHIN_S", 0.3)
    report = probe.look(tmp_path / "not-here", "n")
    assert (report.seen_after_s, report.no_hdf5, report.nonce) == (None, "", "n")
    (tmp_path / probe.FROM_LOGIN).write_text("of another")
    assert probe.wait_for_nonce(tmp_path / probe.FROM_LOGIN, "n") is None


def test_a_disk_without_locks(tmp_path, monkeypatch):
    """As NFS without its lock daemon: whoever asks for a lock is refused."""
    real = h5py.File

    def refuse(path, mode="r", *, locking=None):
        if locking is not False:
            raise OSError("unable to lock file, errno = 37")
        return real(path, mode, locking=False)

    monkeypatch.setattr(h5py, "File", refuse)
    assert "errno = 37" in locking.try_locks(tmp_path)
    monkeypatch.setattr(h5py, "File", real)
    assert (locking.try_locks(tmp_path), locking.try_writing(tmp_path)) == ("", "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in locking.try_writing(tmp_path / "file")


def test_the_program(cluster, simhpc, tmp_path):
    profile = tmp_path / "p.toml"
    profile.write_text('[defaults]\npartition = "main"\n')
    code, out, err = simhpc("doctor", "--profile", profile, "--dir", cluster.folder)
    assert (code, out.splitlines()[-1]) == (0, "21 checks, 0 warning(s), 0 FAILED")
    assert "--no-probe" in err
    code, out, err = simhpc("doctor", "--profile", profile, "--dir", cluster.folder, "--no-probe", "--json")
    data = json.loads(out)
    assert (code, data["ok"], err) == (0, True, "")
    assert {"name", "level", "found", "advice"} == set(data["checks"][0])
    cluster.refuses("allocation failure: Invalid qos specification")
    code, out, _ = simhpc("doctor", "--profile", profile, "--dir", cluster.folder, "--no-probe")
    assert code == 1
    assert "FAILED   sbatch (all stages): allocation failure: Invalid qos specification\n" in out
    assert f"         → set qos in {profile}\n" in out
    profile.write_text("[defaults]\npartion = 'main'\n")
    code, out, err = simhpc("doctor", "--profile", profile)
    assert (code, out) == (2, "")
    assert "did you mean 'partition'?" in err


def test_scheduler_errors_are_one_line():
    assert checks.one_line(SchedulerError("a\n\n  b \n")) == "a; b"
