"""Estimates against a finished run's files, and against cases worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny, write_study

from simhpc.errors import ImageSourceError
from simhpc.rundir import Run, open_run
from simhpc.stages.estimate import (
    START_S,
    Facts,
    Speed,
    estimate,
    look,
    padded,
    speed_from,
)
from simhpc.stages.prepare import prepare
from simhpc.stages.task import ALL, Task
from simhpc.study import load_study
from simhpc.zoo.cost import Cost, count

# An HDF5 file of a few KiB is mostly headers.
HEADERS_BYTES = 4096


def unit(**changes) -> Cost:
    """A model of whose costs every one is a small round number."""
    fields = {
        "parameters": 1,
        "weight_bytes": 1000,
        "cpu_weight_bytes": 2500,
        "tensors": 1,
        "forward_flops": 10,
        "gradient_flops": 25,
        "forward_bytes": 100,
        "saved_bytes": 300,
        "saved_fixed_bytes": 7,
        "training_bytes": 0,
        "counted_on": "meta",
    }
    return Cost(**{**fields, **changes})


def fresh(make_study, tmp_path, *args, **changes) -> Run:
    return prepare(make_study(*args, **changes), tmp_path / "run", dry_run=True)


def facts(run: Run, **changes) -> Facts:
    fields = {
        "num_classes": 10,
        "training_images": {model.key: 1727 for model in run.study.models},
        "accuracy": {},
        "done": frozenset(),
        "covered": {},
    }
    return Facts(**{**fields, **changes})


def by_task(found):
    return {(task.task.stage, task.task.model): task for task in found.tasks}


@pytest.fixture(scope="module")
def real(finished):
    costs = {model.key: count(model, 10) for model in finished.study.models}
    return finished, estimate(finished, look(finished), costs, accuracy=0.5)


def test_files_are_as_large_as_predicted(real):
    run, found = real
    paths = {"train": run.dir.checkpoint, "attack": run.dir.adversarial, "evaluate": run.dir.predictions}
    for task in found.tasks:
        if task.task.stage == "aggregate":
            continue
        size = paths[task.task.stage](task.task.model).stat().st_size
        assert task.written_bytes == pytest.approx(size, rel=0.02, abs=HEADERS_BYTES), task.task
    images, _ = found.files["images.h5"]
    assert images == pytest.approx(run.dir.images.stat().st_size, rel=0.02, abs=HEADERS_BYTES)
    made = (run.dir.similarity, run.dir.similarity_csv, run.dir.pairs_csv, run.dir.models_csv, run.dir.heatmap)
    similarity, _ = found.files["similarity"]
    # Most of it is the picture, which depends on what is seen in it.
    assert similarity == pytest.approx(sum(path.stat().st_size for path in made), abs=150_000)


def test_large_files_are_as_large_as_predicted(tmp_path):
    """Where data and not headers decide: many chunks, the last one not full."""
    import numpy as np

    from simhpc.store import hdf5

    for shape, dtype in [((500, 3, 64, 64), "u1"), ((69, 5000), "i4"), ((69, 5000), "f2"), ((3, 1000, 1000), "u1")]:
        array = np.zeros(shape, dtype)
        hdf5.write(tmp_path / "a.h5", kind="k", version=1, attributes={}, datasets={"a": array})
        size = (tmp_path / "a.h5").stat().st_size
        assert hdf5.stored_bytes(shape, array.itemsize) == pytest.approx(size, rel=0.01)


def test_a_finished_run_is_done_and_its_accuracies_are_known(real):
    run, found = real
    assert all(task.is_done for task in found.tasks)
    assert {task.todo_flops for task in found.tasks} == {0}
    from simhpc.store import adversarial

    for key, accuracy in found.accuracy.items():
        assert accuracy == adversarial.header(run.dir.adversarial(key)).n_attacked / 70


def test_an_added_model_costs_its_row_and_its_column(finished, tmp_path):
    study = load_study(write_study(tmp_path / "study.toml", tiny(("cnn", "convnext", "vit", "cnn-again"))))
    run = prepare(study, finished.dir.root, dry_run=True)
    known = look(run)
    found = by_task(estimate(run, known, dict.fromkeys((m.key for m in study.models), unit()), accuracy=1.0))
    assert {key for key, task in found.items() if task.is_done} == {
        (stage, key) for stage in ("train", "attack") for key in ("cnn", "convnext", "vit")
    }
    old, new = found["evaluate", "cnn"], found["evaluate", "cnn-again"]
    assert 0 < old.todo_flops < old.flops  # it sees one more set
    assert old.todo_flops == padded(round(70 * known.accuracy["cnn"]), 32) * 10
    assert new.todo_flops == new.flops
    assert not open_run(finished.dir.root).study.models[3:]  # and nothing was written


def test_nothing_is_assumed_of_files_that_belong_elsewhere(copied):
    copied.dir.predictions("cnn").unlink()
    copied.dir.adversarial("vit").write_bytes(b"broken")
    known = look(copied)
    assert known.done == {Task("train", key) for key in ("cnn", "convnext", "vit")} | {
        Task("attack", key) for key in ("cnn", "convnext")
    }
    assert known.covered == {
        "cnn": frozenset(),
        "convnext": {"cnn", "convnext"},
        "vit": {"cnn", "convnext"},
    }


def test_images_shown_and_flops(make_study, tmp_path):
    """70 images in batches of 32 are 96; of 80 % right, 56 are attacked, 64 in batches."""
    run = fresh(make_study, tmp_path, ("cnn", "vit"))
    found = by_task(estimate(run, facts(run), {"cnn": unit(), "vit": unit()}, accuracy=0.8))
    assert found["attack", "cnn"].flops == (96 + 64) * 10 + 64 * 4 * 25
    assert found["evaluate", "cnn"].flops == 2 * 64 * 10
    # 1,727 training images are 26 whole batches of 64; 6 epochs; then the image set.
    assert found["train", "cnn"].flops == 3 * 6 * 26 * 64 * 10 + 96 * 10
    assert found["aggregate", ALL].flops == 0


def test_an_evaluation_pads_every_set(make_study, tmp_path):
    """Of 90 attacked images, the better model is shown all and the worse one two thirds, in batches of 7."""
    run = fresh(make_study, tmp_path, ("cnn", "vit"), images={"n": 100}, resources={"batch_size": 7})
    known = facts(run, accuracy={"cnn": 0.9, "vit": 0.6})
    found = by_task(estimate(run, known, {"cnn": unit(), "vit": unit()}, accuracy=0.8))
    assert found["evaluate", "vit"].flops == (63 + 63) * 10
    assert found["evaluate", "cnn"].flops == (91 + 63) * 10


def test_restarts_are_paid_for(make_study, tmp_path):
    run = fresh(make_study, tmp_path, ("cnn",), attack={"restarts": 3})
    found = by_task(estimate(run, facts(run), {"cnn": unit()}, accuracy=0.8))
    once = by_task(estimate(fresh(make_study, tmp_path / "once", ("cnn",)), facts(run), {"cnn": unit()}, accuracy=0.8))
    extra = found["attack", "cnn"].flops - once["attack", "cnn"].flops
    # Two more attacks of 4 steps, and a look at what each of the three has made.
    assert extra == 64 * (2 * 4 * 25 + 3 * 10)


def test_seconds(make_study, tmp_path):
    run = fresh(make_study, tmp_path, ("cnn",))
    speeds = {"cnn": Speed(forward_s=0.5, gradient_s=2.0, training_s=3.0, start_s=4.0)}
    found = by_task(estimate(run, facts(run), {"cnn": unit()}, accuracy=0.8, speeds=speeds))
    assert found["attack", "cnn"].todo_s == 4.0 + (96 + 64) * 0.5 + 64 * 4 * 2.0
    # Until the first batch is kept: every clean image, and 4 steps of 32.
    assert found["attack", "cnn"].step_s == 4.0 + 96 * 0.5 + 32 * 4 * 2.0
    assert found["evaluate", "cnn"].todo_s == 4.0 + 64 * 0.5
    assert found["train", "cnn"].todo_s == 4.0 + 6 * 26 * 64 * 3.0 + 96 * 0.5
    assert found["train", "cnn"].step_s == 4.0 + 64 * 3.0 + 96 * 0.5
    assert found["aggregate", ALL].todo_s == START_S
    costs, processes = {"cnn": unit()}, {"train": 2}
    shared = by_task(estimate(run, facts(run), costs, accuracy=0.8, speeds=speeds, processes=processes))
    assert shared["train", "cnn"].todo_s == 4.0 + 6 * 26 * 32 * 3.0 + 96 * 0.5
    assert shared["train", "cnn"].step_s == 4.0 + 32 * 3.0 + 96 * 0.5
    assert shared["train", "cnn"].memory_bytes < found["train", "cnn"].memory_bytes
    assert shared["attack", "cnn"] == found["attack", "cnn"]


def test_speed_from_tflops():
    assert speed_from(unit(forward_flops=10**9, gradient_flops=3 * 10**9), tflops=0.5) == Speed(
        0.002, 0.006, 0.006, START_S
    )


def test_memory_of_an_attack(make_study, tmp_path):
    """What stages/attack.py holds: the images, the clean view, those attacked, what becomes of them; and one batch.

    The probabilities of ten classes, 16 bits each, are there twice: as they are, and read back from the file.
    """
    from simhpc.stages.estimate import HOST_BYTES

    run = fresh(make_study, tmp_path, ("cnn",))
    costs = {"cnn": unit()}
    small, large, twice = 70 * 3 * 8 * 8, 70 * 3 * 16 * 16, 2 * 70 * 10 * 2
    batch = 7 + 32 * (300 + 100 + 8 * 4 * 3 * 16 * 16)
    on_cpu = by_task(estimate(run, facts(run), costs, accuracy=0.8))["attack", "cnn"]
    assert (on_cpu.memory_bytes, on_cpu.device_bytes) == (
        HOST_BYTES["attack"] + small + 3 * large + twice + 2500 + round(1.3 * batch),
        0,
    )
    on_gpu = by_task(estimate(run, facts(run), costs, accuracy=0.8, on_gpu=["attack"]))["attack", "cnn"]
    assert (on_gpu.memory_bytes, on_gpu.device_bytes) == (
        HOST_BYTES["attack"] + small + 3 * large + twice,
        1000 + batch,
    )
    # On a canvas the stored images are the clean view, at their own size.
    canvas = fresh(make_study, tmp_path, ("cnn",), attack={"grid": "canonical"})
    batch = 7 + 32 * (300 + 100 + 8 * 4 * 3 * 8 * 8)
    found = by_task(estimate(canvas, facts(canvas), costs, accuracy=0.8))["attack", "cnn"]
    assert found.memory_bytes == HOST_BYTES["attack"] + 3 * small + twice + 2500 + round(1.3 * batch)


def test_bounds(make_study, tmp_path):
    run = fresh(make_study, tmp_path)
    costs = dict.fromkeys((model.key for model in run.study.models), unit())
    found = estimate(run, facts(run), costs, accuracy=0.5)
    sure = estimate(run, facts(run), costs, accuracy=1.0)
    for half, all_right in zip(found.tasks, sure.tasks, strict=True):
        assert half.written_bytes <= half.written_most_bytes == all_right.written_bytes
    assert found.largest_file.startswith("adversarial/")
    assert found.largest_file_bytes == by_task(sure)["attack", "cnn"].written_bytes


def test_a_missing_folder_is_the_error_of_validate(make_study, tmp_path):
    with pytest.raises(ImageSourceError, match="no folder"):
        fresh(make_study, tmp_path, images={"source": f"folder:{tmp_path}/none", "size_px": 16})


@given(n=st.integers(0, 10_000), batch_size=st.integers(1, 300))
def test_padded(n, batch_size):
    assert padded(n, batch_size) == math.ceil(n / batch_size) * batch_size
