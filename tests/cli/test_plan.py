"""`simhpc plan` as it is typed."""

from __future__ import annotations

import json

import pytest
from tiny import tiny, write_study

from simhpc.cli.console import scaled, size


@pytest.fixture
def study_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path / "study.toml", tiny(("cnn", "vit")))


def test_help(simhpc):
    code, out, _ = simhpc("plan", "--help")
    assert code == 0
    assert "Examples" in out
    assert "simhpc plan jobs/demo.toml" in out


def test_without_a_speed(simhpc, study_file):
    code, out, err = simhpc("plan", study_file)
    assert (code, err) == (0, "")
    assert "tiny: 2 models, 70 images, pgd-linf with 4 steps, batches of 32; accuracy of 2 assumed, 80.0 %" in out
    assert "--tflops N" in out
    assert "device-hours" not in out
    assert [path.name for path in study_file.parent.iterdir()] == ["study.toml"]


def test_with_a_speed(simhpc, study_file):
    code, out, _ = simhpc("plan", study_file, "--tflops", "1e-3", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["flops"] == found["todo_flops"] == sum(task["flops"] for task in found["tasks"])
    assert found["device_hours"] * 3600 == pytest.approx(sum(task["todo_s"] for task in found["tasks"]))
    # One task at a time: from start to end it is as long as all tasks together.
    assert found["wall_s"] == pytest.approx(found["device_hours"] * 3600)
    cnn = next(task for task in found["tasks"] if (task["stage"], task["model"]) == ("evaluate", "cnn"))
    assert cnn["todo_s"] == pytest.approx(5.0 + cnn["flops"] / 1e9)
    assert found["disk"]["expected_bytes"] == sum(entry["expected_bytes"] for entry in found["disk"]["files"])
    code, out, _ = simhpc("plan", study_file, "--tflops", "1e-3", "--workers", "2", "--json")
    assert json.loads(out)["wall_s"] < found["wall_s"]
    code, out, _ = simhpc("plan", study_file, "--tflops", "1e-3")
    assert "device-hours" in out
    assert "attack time" in out


def test_measured(simhpc, study_file):
    code, out, err = simhpc("plan", study_file, "--measure", "--json")
    assert code == 0
    assert "measuring vit (2 of 2)" in err
    for model in json.loads(out)["models"]:
        assert model["forward_s_per_image"] > 0
        assert model["training_s_per_image"] > 0
        assert model["start_s"] > 0


def test_a_profile_is_checked(simhpc, study_file, tmp_path):
    profile = tmp_path / "p.toml"
    profile.write_text("[defaults]\ntimeout_min = 1\nmem_gb = 0.25\narray_parallelism = 3\n")
    code, out, err = simhpc("plan", study_file, "--profile", profile, "--tflops", "1e-5", "--json")
    found = json.loads(out)
    assert code == 0
    assert {stage["at_once"] for stage in found["stages"]} == {3}
    lines = "\n".join(found["warnings"])
    assert "train.timeout_min = 1 is too short for cnn: a single step takes longer" in lines
    assert "attack.mem_gb = 0.25 is less than cnn, vit need(s)" in lines
    code, out, err = simhpc("plan", study_file, "--profile", profile, "--tflops", "1e-5")
    assert "warning: " in err


def test_a_finished_run(simhpc, tmp_path, finished):
    study = write_study(tmp_path / "study.toml", tiny())
    before = sorted((path, path.stat().st_mtime_ns) for path in finished.dir.root.rglob("*"))
    code, out, _ = simhpc("plan", study, "--out", finished.dir.root, "--tflops", "1", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["todo_flops"] == found["device_hours"] == 0
    assert [(stage["n_tasks"], stage["n_done"]) for stage in found["stages"]] == [(3, 3), (3, 3), (3, 3), (1, 1)]
    assert all(model["is_accuracy_known"] for model in found["models"])
    assert sorted((path, path.stat().st_mtime_ns) for path in finished.dir.root.rglob("*")) == before


def test_images_that_have_gone_are_not_drawn_again(simhpc, tmp_path, copied):
    copied.dir.images.unlink()
    code, _, err = simhpc("plan", write_study(tmp_path / "study.toml", tiny()), "--out", copied.dir.root)
    assert code == 2
    assert "images.h5 has gone" in err
    assert not copied.dir.images.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tflops", "0"), "greater than 0"),
        (("--tflops", "1", "--measure"), "give one of them"),
        (("--profile", "p.toml", "--workers", "2"), "array_parallelism counts"),
        (("--profile", "none.toml"), "none.toml"),
        (("--accuracy", "80"), "less than or equal to 1"),
    ],
)
def test_bad_input_is_exit_code_2(simhpc, study_file, arguments, message):
    code, _, err = simhpc("plan", study_file, *arguments)
    assert code == 2
    assert message in err


def test_a_missing_image_folder_is_the_error_of_validate(simhpc, tmp_path):
    raw = tiny(images={"source": f"folder:{tmp_path}/none", "size_px": 16})
    raw["models"] = [{"key": "cnn", "timm": "resnet18", "weights": "pretrained:a1_in1k"}]
    study = write_study(tmp_path / "study.toml", raw)
    planned, validated = simhpc("plan", study), simhpc("validate", study)
    assert planned == validated
    assert planned[0] == 2
    assert "no folder" in planned[2]


def test_models_that_cost_the_same_are_counted_once(simhpc, tmp_path, monkeypatch):
    from simhpc.zoo import cost

    counted = []
    real = cost.count
    monkeypatch.setattr(
        cost, "count", lambda model, *rest, **more: counted.append(model.key) or real(model, *rest, **more)
    )
    study = write_study(tmp_path / "study.toml", tiny(("cnn", "cnn-again", "vit")))
    code, out, _ = simhpc("plan", study, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert counted == ["cnn", "vit"]
    first, second, _ = json.loads(out)["models"]
    assert {**first, "model": ""} == {**second, "model": ""}


def test_numbers_are_written_for_people():
    assert [scaled(n, "FLOP") for n in (0, 7, 999, 7630720, 999_600, 1.5e21)] == [
        "0 FLOP",
        "7 FLOP",
        "999 FLOP",
        "7.63 MFLOP",
        "1.00 MFLOP",
        "1500 EFLOP",
    ]
    assert [size(n) for n in (0, 512, 1536, 3 * 2**30, 2**50)] == [
        "0 bytes",
        "512 bytes",
        "1.50 KiB",
        "3 GiB",
        "1024 TiB",
    ]


def test_an_optional_stage_is_counted_where_it_is_asked_for(simhpc, study_file):
    code, out, _ = simhpc("plan", study_file, "--tflops", "1e-3", "--json")
    without = json.loads(out)
    assert {task["stage"] for task in without["tasks"]} == {"train", "attack", "evaluate", "aggregate"}
    code, out, _ = simhpc("plan", study_file, "--tflops", "1e-3", "--with", "representations", "--json")
    assert code == 0
    found = json.loads(out)
    added = [task for task in found["tasks"] if task["stage"] == "representations"]
    assert [task["model"] for task in added] == ["cnn", "vit"]
    # 96 padded images forward, and 3 gradients of each of 96.
    costs = {model["model"]: model for model in found["models"]}
    for task in added:
        cost = costs[task["model"]]
        gradients = cost["forward_and_gradient_flops_per_image"]
        assert task["flops"] == 96 * cost["forward_flops_per_image"] + 3 * 96 * gradients
        assert task["step_s"] == task["todo_s"] > 0
    assert found["flops"] == without["flops"] + sum(task["flops"] for task in added)
    assert "representations" in {entry["kind"] for entry in found["disk"]["files"]}
    code, _, err = simhpc("plan", study_file, "--with", "representation")
    assert code == 2
    assert "--with representation: did you mean 'representations'?" in err
