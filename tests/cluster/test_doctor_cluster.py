"""`simhpc doctor` on the real development cluster, as an ordinary user."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

pytestmark = pytest.mark.cluster

GOOD = {"partition": "main", "account": "lab", "timeout_min": 10, "mem_gb": 1.5}


@pytest.fixture
def examine(devcluster):
    """Run the program; gives its exit code and its checks by name."""
    folder = devcluster.folder("doctor")

    def run(*options, **defaults):
        profile = devcluster.write(folder / "profile.toml", {"defaults": defaults})
        words = ("doctor", "--profile", profile, "--dir", folder / "runs", "--json", *options)
        done = devcluster.simhpc(*words, code=None)
        assert sorted(path.name for path in folder.iterdir()) == ["profile.toml"]  # nothing stays behind
        assert done.stdout, done.stderr
        data = json.loads(done.stdout)
        assert data["ok"] == (done.returncode == 0)
        return done.returncode, {check["name"]: check for check in data["checks"]}

    yield run
    shutil.rmtree(folder)


def failed(checks):
    return sorted(name for name, check in checks.items() if check["level"] == "FAILED")


def wait_for_nodes(timeout_s=90):
    """A controller that was just started does not know its nodes yet."""
    started_s = time.monotonic()
    while True:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        states = set(done.stdout.split())
        if states and states <= {"idle", "mixed", "allocated", "completing"}:
            return
        assert time.monotonic() - started_s < timeout_s, (states, done.stderr)
        time.sleep(1)


def test_a_healthy_cluster(examine):
    wait_for_nodes()
    code, checks = examine(**GOOD)
    assert (code, failed(checks)) == (0, [])
    # The machine of the tests may be nearly full.
    assert {name for name, check in checks.items() if check["level"] == "warning"} <= {"disk space"}
    assert {"shared disk", "HDF5", "software", "torch on the node", "clock of the node"} <= set(checks)


def test_gpus_that_torch_does_not_see(examine):
    """The cluster's GPUs are made up."""
    code, checks = examine(**GOOD, gpus_per_node=1)
    assert (code, failed(checks)) == (0, [])
    assert checks["torch on the node"]["level"] == "warning"


@pytest.mark.parametrize(
    ("wrong", "name", "words"),
    [
        ({"partition": "mian"}, "partition (all stages)", "did you mean 'main'?"),
        ({"account": "labb"}, "sbatch (all stages)", "Invalid account"),
        ({"qos": "large"}, "sbatch (all stages)", "Invalid qos"),
        ({"mem_gb": 9}, "nodes (all stages)", "no node of main has 1 CPU(s), 9 GiB together"),
        ({"gres": "gpu:a100:1"}, "nodes (all stages)", "gpu:a100:1"),
        ({"partition": "short"}, "time limit (all stages)", "timeout_min = 10, but short allows 2 min"),
    ],
)
def test_what_the_cluster_does_not_give(examine, wrong, name, words):
    code, checks = examine(**{**GOOD, **wrong})
    assert code == 1
    assert name in failed(checks)
    assert words in checks[name]["found"]
    assert checks[name]["advice"]
    assert checks["trial job"]["level"] == "warning"


def test_accounts_that_could_be_used_are_named(examine):
    _, checks = examine("--no-probe", **{**GOOD, "account": "labb"})
    assert "you may use account lab" in checks["sbatch (all stages)"]["advice"]


def test_nodes_without_the_software(examine):
    code, checks = examine(**GOOD, setup=["export PYTHONHOME=/nowhere"])
    assert (code, failed(checks)) == (1, ["trial job"])
    assert "must be there and run on the nodes" in checks["trial job"]["advice"]


def test_a_disk_that_nodes_do_not_see(devcluster, examine):
    """The job hides the user's home from itself, as a node on which it is another disk."""
    hide = f"mount -t tmpfs none {devcluster.home}"
    code, checks = examine(**GOOD, setup=[f"""exec unshare -Urm sh -c '{hide} && exec "$0" "$@"' "$@\""""])
    assert (code, failed(checks)) == (1, ["shared disk"])
    assert "did not see a file" in checks["shared disk"]["found"]
    assert "HDF5" not in checks


def test_a_run_directory_that_cannot_be_written(devcluster, tmp_path):
    profile = devcluster.write(devcluster.home / "doctor.toml", {"defaults": GOOD})
    done = devcluster.simhpc("doctor", "--profile", profile, "--dir", tmp_path / "runs", code=1)
    profile.unlink()
    assert "cannot be written: Permission denied" in done.stdout


def test_accounting_off(devcluster, examine):
    devcluster.operate("accounting", "off")
    try:
        code, checks = examine("--no-probe", **GOOD)
    finally:
        devcluster.operate("accounting", "on")
    assert (code, failed(checks)) == (0, [])
    assert checks["accounting"]["level"] == "warning"
    assert "squeue alone" in checks["accounting"]["advice"]


def test_controller_off(devcluster, examine):
    devcluster.operate("controller", "off")
    try:
        code, checks = examine(**GOOD)
    finally:
        devcluster.operate("controller", "on")
        wait_for_nodes()
    assert (code, failed(checks)) == (1, ["controller"])
    assert "not checked" in checks["stages"]["found"]
