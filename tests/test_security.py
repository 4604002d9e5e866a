"""Nobody is let in: what is read cannot execute anything, and names cannot leave their place."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny, write_study

from simhpc.cluster.profile import parse_profile
from simhpc.errors import SimhpcError
from simhpc.rundir import RunDir
from simhpc.store import attack_parts, checkpoint, hdf5
from simhpc.store.atomic import replacing, write_text
from simhpc.store.step_log import StepLog
from simhpc.study import load_study
from simhpc.zoo.training.states import States

PACKAGE = Path(__file__).parents[1] / "simhpc"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Each can execute what stands in a file or in a text.
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "subprocess.getoutput"}


def calls_in(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_that_is_read_can_execute_anything(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.partition(".")[0] for name in names} & FORBIDDEN_IMPORTS
    for name, words in calls_in(path):
        assert name not in FORBIDDEN_CALLS
        assert words.get("shell", "False") == "False"
        assert words.get("allow_pickle", "False") == "False"
        if name.endswith("torch.load"):
            assert words.get("weights_only") == "True"


def test_the_search_would_find_something(tmp_path):
    (tmp_path / "a.py").write_text("import torch\ntorch.load(x)\nsubprocess.run(x, shell=True)\nos.system(y)\n")
    assert [name for name, _ in calls_in(tmp_path / "a.py")] == ["torch.load", "subprocess.run", "os.system"]


EVIL = [
    "../../x",
    "/etc/x",
    "..",
    ".",
    "",
    "x; rm -rf ~",
    "$(id)",
    "`id`",
    "a b",
    "a\nb",
    "a\n#SBATCH --uid=0",
    "a\x00b",
    "-x",
]
EVIL += ["a/b", "a\\b", "~", "*", "a" * 101, "<script>", "é", "\u202e", "_all"]


@pytest.mark.parametrize("name", EVIL)
def test_names_that_mean_something_elsewhere_are_refused(tmp_path, name):
    raw = tiny(("cnn",))
    raw["models"][0]["key"] = name
    with pytest.raises(SimhpcError, match="letters, digits and"):
        load_study(write_study(tmp_path / "s.toml", raw))
    with pytest.raises(SimhpcError, match="letters, digits and"):
        load_study(write_study(tmp_path / "s.toml", tiny(("cnn",), name=name)))


@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}\Z"))
def test_names_that_are_taken_stay_inside_the_run_directory(key):
    root = Path("/runs/r")
    run_dir = RunDir(root)
    paths = [
        *(run_dir.checkpoint(key), run_dir.adversarial(key), run_dir.predictions(key), run_dir.attack_parts(key)),
        *(run_dir.partial_predictions(key), run_dir.batch_size("attack", key), run_dir.progress("attack", key)),
    ]
    for path in paths:
        assert Path(os.path.normpath(path)) == path
        assert path.is_relative_to(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"partition": "main\n#SBATCH --uid=0"},
        {"account": "a b"},
        {"gres": "gpu:1\nrm -rf ~"},
        {"sbatch": {"comment": "a\n#SBATCH --uid=0"}},
        {"sbatch": {"comment\n#SBATCH --uid": "0"}},
        {"sbatch": {"wrap": "rm -rf ~"}},
        {"sbatch": {"export": "ALL"}},
    ],
)
def test_no_value_of_a_profile_is_another_directive(changes):
    with pytest.raises(SimhpcError):
        parse_profile({"attack": changes}, where="p.toml")


# ----- files


@pytest.fixture
def umask():
    """Set the process's umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_files_are_made_with_the_users_umask(tmp_path, umask, mask, expected):
    umask(mask)
    write_text(tmp_path / "sub" / "a.txt", "x")
    hdf5.write(tmp_path / "a.h5", kind="k", version=1, attributes={}, datasets={"a": np.arange(3)})
    checkpoint.save(tmp_path / "a.safetensors", {"a": np.arange(3)}, {})
    StepLog(tmp_path / "a.jsonl", after_step=0).flush()
    States(tmp_path / "states", "0" * 64).save(1, {})
    made = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix: mode(path) for path in made} == dict.fromkeys(
        (".txt", ".h5", ".safetensors", ".jsonl", ".pt"), expected
    )


def test_nothing_is_writable_for_all_whatever_the_umask(tmp_path):
    """A whole task in a process that was started with umask 0."""
    program = (
        "import os, sys; os.umask(0)\nfrom simhpc.cli.app import main\nsys.argv = ['simhpc', *sys.argv[1:]]\nmain()"
    )
    study = write_study(tmp_path / "study.toml", tiny(("cnn",), training={"epochs": 1}))
    command = [sys.executable, "-c", program, "run", study, "--out", tmp_path / "run", "--stages", "train"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    made = [path for path in (tmp_path / "run").rglob("*") if not path.is_symlink()]
    assert (tmp_path / "run" / "checkpoints" / "cnn.safetensors") in made
    assert [path for path in made if mode(path) & 0o002] == []


def test_temporary_files_cannot_be_guessed_and_are_removed(tmp_path):
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
            assert temporary.parent == tmp_path
            names.add(temporary.name)
    assert len(names) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_is_replaced_and_not_written_through(tmp_path):
    (tmp_path / "elsewhere.txt").write_text("mine")
    (tmp_path / "a.txt").symlink_to(tmp_path / "elsewhere.txt")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "elsewhere.txt").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "new"


def test_what_a_link_leads_to_is_not_removed_with_it(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.h5").write_text("mine")
    (tmp_path / "cnn").symlink_to(tmp_path / "elsewhere")
    attack_parts.remove(tmp_path / "cnn")
    assert (tmp_path / "elsewhere" / "mine.h5").exists()


def test_no_secret_of_the_environment_is_kept(copied, simhpc, tmp_path, monkeypatch):
    """A task in a process of its own, as `simhpc run` starts it: nothing of its environment lies in the run."""
    for name in ("HF_TOKEN", "SLURM_JWT", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD"):
        monkeypatch.setenv(name, f"secret-of-{name}")
    copied.dir.similarity.unlink()
    study = write_study(tmp_path / "study.toml", tiny())
    code, out, err = simhpc("run", study, "--out", copied.dir.root, "--stages", "aggregate")
    assert code == 0, err
    assert "secret-of" not in out + err
    files = [path for path in copied.dir.root.rglob("*") if path.is_file()]
    assert any(path.is_relative_to(copied.dir.submissions) for path in files)
    assert [path for path in files if b"secret-of" in path.read_bytes()] == []
