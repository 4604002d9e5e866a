from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import evaluation, precision, scale, scaling, storage, training
from benchmarks.__main__ import main
from benchmarks.measures import OURS, Measure, Part
from benchmarks.options import Options
from simhpc.store import similarity
from simhpc.study import Training

OPTIONS = Options(
    device=torch.device("cpu"),
    threads=1,
    models=(),
    libraries=(),
    configurations=(),
    batch_size=16,
    steps=1,
    repetitions=1,
    frozen_peers=False,
    quick=True,
)


@pytest.mark.parametrize("name", storage.FORMATS)
def test_every_format_gives_back_the_same_images(tmp_path, name):
    images = storage.adversarial_like(3, 20)
    assert images.dtype == np.uint8
    storage.FORMATS[name].write(tmp_path / "images", images)
    np.testing.assert_array_equal(storage.FORMATS[name].read(tmp_path / "images"), images)
    assert storage._bytes_below(tmp_path / "images") > 0


def test_the_loop_and_the_evaluate_stage_answer_the_same(copied):
    target, answers = copied.study.models[0], {}
    evaluation._loop(copied, target, OPTIONS, answers)
    evaluation._evaluate(copied, target, answers)
    ours, loop = answers[OURS], answers[evaluation.LOOP]
    assert list(ours) == list(loop) == ["cnn", "convnext", "vit"]
    for key in ours:
        assert len(ours[key]) > 20
        np.testing.assert_array_equal(ours[key], loop[key])


def test_a_straight_line_is_found():
    assert scaling.line([4, 8, 16], [1.0, 2.0, 4.0]) == pytest.approx((0.25, 0.0, 1.0))
    assert scaling.line([1, 2, 3, 4], [1.0, -1.0, -1.0, 1.0])[2] == pytest.approx(0.0)


def test_the_plot_is_a_picture(tmp_path):
    part = Part(
        [
            Measure(f"{stage}_cost", "CPU s per model", f"{size} models", {OURS: [1.0 * size, 1.1 * size]})
            for stage in ("attack", "evaluate")
            for size in (2, 4)
        ]
    )
    scaling.plot(part, tmp_path / "figures" / "scaling.png")
    assert (tmp_path / "figures" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_line_writes_the_summary_and_leaves_no_scratch(tmp_path, capsys):
    assert main(["--quick", "--only", "storage", "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert "storage_write" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--only", "nothing"], ["--libraries", "cleverhans"], ["--precision", "int8"]])
def test_unknown_names_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        main(wrong)
    assert stop.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_sat_in_another_precision_is_held_against_the_intervals(finished):
    single = similarity.load(finished.dir.similarity)
    differences, outside = precision.compare(single, single)
    assert (differences.tolist(), outside) == ([0.0] * 3, 0)
    beyond = single.ci_high[0, 1] + 0.5 - single.sat[0, 1]
    other = replace(single, sat=single.sat + beyond * (np.arange(3)[:, None] + np.arange(3) == 1))
    differences, outside = precision.compare(single, other)
    assert outside == 1
    assert max(differences) == pytest.approx(beyond)


def test_a_zoo_is_attacked_in_every_precision(tmp_path):
    part = precision.measure(OPTIONS, tmp_path)
    assert [measure.model for measure in part.measures] == ["float32", "bfloat16"]
    assert part.facts["models"] == 2
    assert part.facts["bfloat16: largest difference of SAT"] >= 0
    assert len(part.checks) == 1


def test_timms_own_loop_and_ours_train_alike(tmp_path):
    """Without what is random, one step of each is the same step."""
    folder = training._write_images(tmp_path / "images", 8)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 4))
    recipe = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "hflip_prob": 0.0, "warmup_epochs": 0.0, "epochs": 1}
    given = Training(batch_size=8, **recipe)
    losses = [loop(network, folder, given, OPTIONS.device) for loop in (training.ours, training.theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    part = training.measure(OPTIONS, tmp_path)
    assert {measure.name for measure in part.measures} == {"training_throughput"}
    assert all(set(measure.values) == {OURS, training.TIMM} for measure in part.measures)


@pytest.mark.slow
def test_the_commands_work_on_a_run_of_copies(tmp_path):
    part = scale.measure(OPTIONS, tmp_path)
    assert [check.passed for check in part.checks] == [True]
    assert part.facts["entries per folder"]["predictions"] == part.facts["models"] == 12
