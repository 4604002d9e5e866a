"""`simhpc suggest-teacher` as it is typed."""

from __future__ import annotations

import json

import pytest


def test_without_students_it_says_that_nothing_is_known(simhpc, finished):
    code, out, err = simhpc("suggest-teacher", finished.dir.root, "vit")
    assert code == 0, err
    assert "no student was distilled here" in out
    lines = out.splitlines()
    assert [line.split()[1] for line in lines[1:3]] in (["cnn", "convnext"], ["convnext", "cnn"])
    assert "unknown" in lines[1]
    assert any(line.startswith("vit undistilled: ") for line in lines)


def test_json(simhpc, finished):
    code, out, _ = simhpc("suggest-teacher", finished.dir.root, "vit", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["evidence"], found["rule"], found["n_seen"], found["distillation"]) == ("none", None, 0, None)
    sats = [each["sat"] for each in found["candidates"]]
    assert sats == sorted(sats, reverse=True)
    assert all(each["expected_accuracy"] is None for each in found["candidates"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "vitt"], "no model 'vitt'; did you mean 'vit'"),
        (["RUN", "vit", "--distillation", "x"], "no distillation 'x' of 'vit'; there is none"),
        (["nowhere", "vit"], "not a run directory"),
    ],
)
def test_bad_input_is_exit_code_2(simhpc, finished, arguments, message):
    given = [str(finished.dir.root) if word == "RUN" else word for word in arguments]
    code, out, err = simhpc("suggest-teacher", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_run_without_a_matrix_is_told_what_to_do(simhpc, copied):
    copied.dir.similarity.unlink()
    code, _, err = simhpc("suggest-teacher", copied.dir.root, "vit")
    assert code == 2
    assert "run `simhpc aggregate` first" in err
