"""`simhpc report` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def test_a_run(simhpc, copied):
    code, out, err = simhpc("report", copied.dir.root)
    assert code == 0, err
    assert out.startswith(f"{copied.dir.report} (0.")
    assert "note: clusters: Not done. The command simhpc analyze does it, or says why it cannot be done." in err
    assert copied.dir.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_json_and_another_file(simhpc, copied, tmp_path):
    code, out, _ = simhpc("report", copied.dir.root, "--out", tmp_path / "new" / "page.html", "--json")
    assert code == 0
    made = json.loads(out)
    assert made["file"] == str(tmp_path / "new" / "page.html")
    assert made["bytes"] == (tmp_path / "new" / "page.html").stat().st_size
    assert set(made["sections"]) >= {"clusters", "importance"}
    assert not copied.dir.report.exists()


def test_a_matrix_from_elsewhere(simhpc, copied, tmp_path):
    (tmp_path / "m.csv").write_bytes(copied.dir.similarity_csv.read_bytes())
    code, _, _ = simhpc("report", "--similarity", tmp_path / "m.csv")
    assert code == 0
    assert (tmp_path / "m-analysis" / "report.html").exists()
    code, _, _ = simhpc("report", "--similarity", tmp_path / "m.csv", "--analysis", tmp_path / "other")
    assert code == 0
    assert (tmp_path / "other" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a run directory or --similarity"),
        (["RUN", "--similarity", "matrix.csv"], "give either a run directory or --similarity"),
        (["RUN", "--analysis", "x"], "--analysis goes with --similarity"),
        (["RUN"], "not a run directory"),
        (["--similarity", "none.csv"], "none.csv does not exist"),
    ],
)
def test_bad_input_is_exit_code_2(simhpc, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = simhpc("report", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_matrix(simhpc, copied):
    copied.dir.similarity.unlink()
    code, _, err = simhpc("report", copied.dir.root)
    assert code == 2
    assert "run `simhpc aggregate` first" in err


def test_without_images_it_needs_no_torch(copied):
    copied.dir.images.unlink()
    code = (
        "import sys; from simhpc.cli.app import main\n"
        "sys.argv = ['simhpc', 'report', sys.argv[1]]\n"
        "main()\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(copied.dir.root)], capture_output=True, check=True)
    assert copied.dir.report.exists()
