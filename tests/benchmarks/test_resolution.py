from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks import resolution
from benchmarks.resolution import Answers, answers_of, compare, sat
from simhpc.store import similarity


def made(seed: int, m: int = 4, n: int = 60, ease: float = 0.5) -> Answers:
    random = np.random.default_rng(seed)
    correct = random.random((m, n)) < 0.9
    return Answers(correct, (random.random((m, m, n)) < ease) & correct[:, None] & correct)


def test_sat_of_a_resample_is_that_of_its_images_one_by_one():
    answers, counts = made(0), np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), 3).astype(float)
    found = sat(answers, counts, 0.01)
    for r in range(3):
        drawn = [n for n in range(60) for _ in range(int(counts[r, n]))]
        for a in range(4):
            for b in range(4):
                common = [n for n in drawn if answers.correct[a, n] and answers.correct[b, n]]
                rates = [sum(answers.fooled[x, y, n] for n in common) / len(common) for x, y in ((a, b), (b, a))]
                assert found[r, a, b] == pytest.approx(math.log(max(0.01, 50 * sum(rates))))


def test_a_grid_against_itself_and_against_one_that_transfers_less():
    native = made(0)
    same = compare(native, native, [24, 24, 32, 32], 0.01)
    assert same["mean_difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (same["pairs"], same["pairs_that_differ"], same["spearman"]["value"]) == (6, 0, pytest.approx(1.0))
    less = Answers(native.correct, native.fooled & made(3).fooled)
    found = compare(native, less, [24, 24, 32, 32], 0.01)
    assert found["mean_difference"]["low"] <= found["mean_difference"]["value"] <= found["mean_difference"]["high"] < 0
    assert found["pairs_that_differ"] == 6
    values = [sat(each, np.ones((1, 60)), 0.01)[0][np.triu_indices(4, 1)] for each in (native, less)]
    assert found["spearman"]["value"] == pytest.approx(spearmanr(*values).statistic)
    equal = [k for k, pair in enumerate(zip(*np.triu_indices(4, 1), strict=True)) if pair in ((0, 1), (2, 3))]
    expected = (values[1] - values[0])[equal].mean()
    assert found["mean_difference_equal_sizes"]["value"] == pytest.approx(expected)


def test_it_reads_the_stages_files_as_aggregation_does(finished):
    matrix = similarity.load(finished.dir.similarity)
    found = sat(answers_of(finished), np.ones((1, finished.study.images.n)), matrix.floor_percent)
    np.testing.assert_allclose(found[0], matrix.sat, rtol=1e-12)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["resolution", "--quick", "--out", str(tmp_path / "out" / "r.json")])
    resolution.main()
    found = json.loads((tmp_path / "out" / "r.json").read_text())
    assert found["models"] == ["resnet-24", "resnet-32", "efficientnet-24", "efficientnet-32"]
    assert set(found["accuracy_percent"]) == {"native", "canonical"}
    assert found["pairs"] == 6
