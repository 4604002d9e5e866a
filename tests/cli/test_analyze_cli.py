"""`simhpc analyze` as it is typed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from damage import edit_study

from simhpc.analysis import clusters as clustering
from simhpc.analysis import importance as regression
from simhpc.offline import analyze as stage


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    fast, boosting = replace(regression.Settings(), repeats=2, resamples=100), regression.Boosting(stages=20)
    monkeypatch.setattr(stage.regression, "Settings", lambda **options: replace(fast, **options))
    monkeypatch.setattr(stage.regression, "Boosting", lambda **options: replace(boosting, **{**options, "stages": 20}))
    few = clustering.Settings(runs=10, starts=3, most=6)
    monkeypatch.setattr(stage.clustering, "Settings", lambda **options: replace(few, **options))


@pytest.fixture
def given(tmp_path):
    """A matrix of three planted clusters, and a table in another order."""
    group = np.repeat([0, 1, 2], 4)
    names = [f"model-{k}" for k in range(12)]
    noise = np.random.default_rng(0).normal(0, 0.1, (12, 12))
    sat = np.where(group[:, None] == group, 3.5, 1.5) + (noise + noise.T) / 2
    with (tmp_path / "matrix.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["", *names], *([name, *row] for name, row in zip(names, sat, strict=True))])
    with (tmp_path / "table.csv").open("w", newline="") as file:
        rows = [[name, f"base {g}", f"norm {k % 2}"] for k, (name, g) in enumerate(zip(names, group, strict=True))]
        csv.writer(file).writerows([["Model name", "Base", "Norm"], *reversed(rows)])
    return tmp_path


def test_a_run(simhpc, copied):
    code, out, err = simhpc("analyze", copied.dir.root)
    assert code == 0, err
    for name in ("analysis/importance.csv", "analysis/clusters.csv", "figures/importance.svg", "figures/clusters.png"):
        assert (copied.dir.root / name).exists()
        assert str(copied.dir.root / name) in out
    assert "clusters:   2 by the silhouette" in out
    assert "too few to hold some out" in out


def test_files_of_elsewhere(simhpc, given):
    code, out, _ = simhpc("analyze", "--similarity", given / "matrix.csv", "--components", given / "table.csv")
    assert code == 0
    assert "importance: Base" in out
    assert "clusters:   3 by the silhouette, mean stability 1.00" in out
    assert "model-4, model-5, model-6, model-7  (Base=base 1)" in out
    assert (given / "matrix-analysis" / "analysis" / "cluster_components.csv").exists()


def test_json_options_and_folder(simhpc, given):
    code, out, _ = simhpc(
        "analyze", "--similarity", given / "matrix.csv", "--components", given / "table.csv", "--out", given / "o",
        "--clusters", "4", "--encoding", "value-pairs", "--seed", "3", "--json",
    )  # fmt: skip
    assert code == 0
    summary = json.loads(out)
    assert summary["models"] == 12
    assert summary["clusters"]["n_clusters"] == 4
    assert summary["importance"]["settings"]["encoding"] == "value-pairs"
    assert summary["importance"]["settings"]["boosting"]["max_depth"] == 12
    assert all(path.startswith(str(given / "o")) for path in summary["files"])


def test_the_study_says_how_and_options_come_before_it(simhpc, copied):
    assert "[analysis]" in copied.dir.study.read_text()
    edit_study(copied, 'encoding = "same-different"\n', 'encoding = "value-pairs"\nclusters = 2\n')
    summary = json.loads(simhpc("analyze", copied.dir.root, "--json")[1])
    assert summary["clusters"]["chosen_by"] == "given"
    assert summary["importance"]["settings"]["encoding"] == "value-pairs"
    given = ("--clusters", "auto", "--encoding", "same-different", "--seed", "4", "--json")
    summary = json.loads(simhpc("analyze", copied.dir.root, *given)[1])
    assert summary["clusters"]["chosen_by"] == "silhouette"
    assert summary["importance"]["settings"]["encoding"] == "same-different"
    assert summary["clusters"]["settings"]["seed"] == summary["importance"]["settings"]["seed"] == 4


def test_without_components_it_says_what_was_not_done(simhpc, given):
    code, out, _ = simhpc("analyze", "--similarity", given / "matrix.csv")
    assert code == 0
    assert "note: importance: not done, because it needs components of the models (--components)" in out
    assert "3 by the silhouette" in out


def test_of_equal_models_nothing_is_said_to_come_first(simhpc, given):
    names = [f"model-{k}" for k in range(12)]
    with (given / "equal.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["", *names], *([name, *12 * [2.0]] for name in names)])
    code, out, _ = simhpc(
        "analyze", "--similarity", given / "equal.csv", "--components", given / "table.csv", "--clusters", "3"
    )
    assert code == 0
    assert "importance: 0 of each" in out
    assert "clusters:   1, mean stability 1.00, p = unknown" in out
    assert json.loads((given / "equal-analysis" / "analysis" / "importance.json").read_text())["ranking"] == []


def test_what_could_not_be_done_is_exit_code_1(simhpc, tmp_path):
    (tmp_path / "two.csv").write_text("m,a,b\na,4,1\nb,1,4\n")
    code, out, err = simhpc("analyze", "--similarity", tmp_path / "two.csv")
    assert code == 1
    assert "problem: clusters: it takes 3 models" in err
    assert "Traceback" not in out + err


def test_a_table_of_other_models_is_exit_code_1_and_the_rest_is_done(simhpc, given):
    text = (given / "table.csv").read_text()
    (given / "short.csv").write_text("".join(line for line in text.splitlines(True) if not line.startswith("model-3")))
    (given / "others.csv").write_text(text.replace("model-", "network_"))
    for name, is_done in (("short", True), ("others", False)):
        out_dir = given / name
        code, out, err = simhpc(
            "analyze", "--similarity", given / "matrix.csv", "--components", given / f"{name}.csv", "--out", out_dir
        )
        assert code == 1
        assert f"{name}.csv has no row for 'model-" in err
        assert "clusters:   3 by the silhouette" in out
        assert (out_dir / "analysis" / "importance.csv").exists() == is_done
        assert ("importance: not done" in out) != is_done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a run directory or --similarity"),
        (["RUN", "--similarity", "matrix.csv"], "give either a run directory or --similarity"),
        (["RUN"], "not a run directory"),
        (["--similarity", "none.csv"], "none.csv does not exist"),
        (
            ["--similarity", "matrix.csv", "--clusters", "many"],
            "must be 'auto' or a number from 2, not 'many'",
        ),
        (["--similarity", "matrix.csv", "--clusters", "1"], "--clusters must be"),
        (["--similarity", "matrix.csv", "--clusters", "12"], "12 models can be put in 2 to 11 clusters"),
        (["--similarity", "matrix.csv", "--against", "RUN"], "--against compares two run directories"),
        (["--similarity", "matrix.csv", "--components", "broken.csv"], "line 2 has 1 cells, the header has 2"),
        (["--similarity", "table.csv"], "do not have the same names"),
    ],
)
def test_bad_input_is_exit_code_2_and_nothing_is_written(simhpc, given, monkeypatch, arguments, message):
    (given / "broken.csv").write_text("name,Base\nmodel-0\n")
    monkeypatch.chdir(given)
    before = set(given.rglob("*"))
    code, out, err = simhpc("analyze", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert set(given.rglob("*")) == before


def test_help_shows_examples_and_loads_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from simhpc.cli.app import app\n"
        "try: app(['analyze', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "simhpc analyze runs/demo" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_files_are_analysed_without_torch(given):
    code = (
        "import sys; from simhpc.cli.app import main\n"
        "sys.argv = ['simhpc', 'analyze', '--similarity', sys.argv[1], '--json']\n"
        "main()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(given / "matrix.csv")], capture_output=True, check=True)
