"""`simhpc suggest-ensemble` as it is typed."""

from __future__ import annotations

import json

import pytest


def test_what_is_printed(simhpc, finished):
    code, out, err = simhpc("suggest-ensemble", finished.dir.root, "--size", "2")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("2 of 3 models; accuracy on 70 images")
    names = ("greedy", "the most accurate", "the least similar", "best single model")
    for line, name in zip(lines[1:5], names, strict=True):
        assert line.startswith(name)
        assert "%" in line
    assert lines[5].startswith("greedy gains ")
    assert " points on the most accurate" in lines[5]


def test_a_rule_that_does_better_is_recommended(capsys):
    from simhpc.cli.suggest_ensemble import _show

    def choice(rule, gain, low, high):
        return {
            "rule": rule, "members": ["a", "b"], "halves": [["a", "b"], ["a", "c"]], "accuracy": 0.5, "ci_low": 0.4,
            "ci_high": 0.6, "gain": gain, "gain_ci_low": low, "gain_ci_high": high,
        }  # fmt: skip

    choices = [choice("greedy", 0.0, 0.0, 0.0), choice("most_accurate", -0.02, -0.03, -0.01),
               choice("least_similar", -0.02, -0.03, 0.01)]  # fmt: skip
    _show({"size": 2, "n_images": 9, "candidates": ["a", "b", "c"], "choices": choices, "notes": []})
    lines = capsys.readouterr().out.splitlines()
    assert "greedy gains -2.0 [-3.0, -1.0] points on the most accurate; take these instead" in lines
    assert "greedy gains -2.0 [-3.0, +1.0] points on the least similar" in lines
    assert lines[-1] == "the halves of the images chose differently: a, b and a, c"


def test_json_and_options(simhpc, finished):
    code, out, _ = simhpc(
        "suggest-ensemble", finished.dir.root, "--size", "2", "--among", "cnn, vit", "--include", "vit", "--seed", "3",
        "--json",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert (found["candidates"], found["include"], found["seed"]) == (["cnn", "vit"], ["vit"], 3)
    assert found["choices"][0]["members"] == ["vit", "cnn"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none is not a run directory"),
        (["RUN", "--size", "1"], "2 to 3 members, not 1"),
        (["RUN", "--size", "9"], "2 to 3 members, not 9"),
        (["RUN", "--among", "cnn,resnet"], "has no model 'resnet'"),
        (["RUN", "--include", "vitt"], "has no model 'vitt'; did you mean 'vit'"),
    ],
)
def test_bad_input_is_exit_code_2(simhpc, finished, arguments, message):
    given = [finished.dir.root if each == "RUN" else each for each in arguments]
    code, out, err = simhpc("suggest-ensemble", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_run_without_a_matrix_says_what_makes_one(simhpc, copied):
    copied.dir.similarity.unlink()
    code, _, err = simhpc("suggest-ensemble", copied.dir.root)
    assert code == 2
    assert "run `simhpc aggregate` first" in err


def test_a_candidate_that_is_damaged_is_a_problem(simhpc, copied):
    copied.dir.predictions("vit").write_bytes(b"damaged")
    code, out, err = simhpc("suggest-ensemble", copied.dir.root, "--size", "2")
    assert code == 1
    assert out.startswith("2 of 2 models; accuracy on 70 images")
    assert err.startswith("problem: vit is left out: ")


def test_help_shows_examples(simhpc):
    code, out, _ = simhpc("suggest-ensemble", "--help")
    assert code == 0
    assert "simhpc suggest-ensemble runs/imagenet69 --size 5 --include resnet50" in out
