"""Students of a finished run: distilled, resumed, out of date, analysed; and that the models do not notice."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from tiny import MODELS, execute_all, tiny, write_study

from simhpc.errors import MissingInputError, ModelError, StudyError
from simhpc.offline import analyze as analyses
from simhpc.offline import inputs as analysis_inputs
from simhpc.offline.suggest_teacher import suggest_teacher
from simhpc.rundir import open_run
from simhpc.stages import distill, estimate, inputs, stage_module, stages_of
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import Task
from simhpc.store import checkpoint, step_log
from simhpc.study import load_study

SHORT = {"epochs": 2}
PLAIN = {"student": "vit", "teachers": ["cnn", "convnext"], "repeats": 2, "training": SHORT}
OTHERS = [
    {"name": "labels-only", "student": "vit", "teachers": ["cnn"], "alpha": 0.0},
    {
        "name": "token",
        "student": "vit",
        "teachers": ["cnn"],
        "kind": "soft",
        "token": True,
        "timm": "deit_tiny_distilled_patch16_224",
        "training": SHORT,
    },
    {
        "name": "still",
        "student": "vit",
        "teachers": ["cnn"],
        "kind": "soft",
        "cache_teacher": True,
        "training": {**SHORT, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]},
    },
]


def quiet(*_):
    pass


def begin(root, *distillations):
    path = write_study(root / "study.toml", tiny(distillations=list(distillations)))
    return prepare(load_study(path), root / "run")


@pytest.fixture(scope="module")
def distilled(finished, tmp_path_factory):
    """The finished run with students. Read only."""
    root = tmp_path_factory.mktemp("distilled")
    shutil.copytree(finished.dir.root, root / "run")
    run = begin(root, PLAIN, *OTHERS)
    executed = execute_all(run, stages_of(run.study))
    assert {task.stage for task in executed} == {"distill"}  # students cost the models nothing
    return run


@pytest.fixture
def copy_of(distilled, tmp_path):
    shutil.copytree(distilled.dir.root, tmp_path / "run")
    return open_run(tmp_path / "run")


def weights(run, key):
    return checkpoint.metadata_of(run.dir.checkpoint(key))["weights_sha256"]


def test_every_student_is_there_and_done(distilled):
    keys = [task.model for task in distill.tasks(distilled)]
    assert keys == [
        "vit-from-cnn",
        "vit-from-cnn-2",
        "vit-from-convnext",
        "vit-from-convnext-2",
        "labels-only-from-cnn",
        "token-from-cnn",
        "still-from-cnn",
    ]
    assert all(distill.is_done(distilled, Task("distill", key)) for key in keys)
    assert len({weights(distilled, key) for key in keys}) == len(keys)
    held = checkpoint.metadata_of(distilled.dir.checkpoint("vit-from-cnn"))
    assert held["teacher_weights_sha256"] == weights(distilled, "cnn")
    assert json.loads(held["distillation"])["teacher"] == "cnn"
    assert 0 < float(held["accuracy"]) <= 1
    # In two epochs accuracy may stay near chance, which differs from processor to processor; the loss does not.
    losses = [row["loss_nats"] for row in step_log.read(distilled.dir.training_log("vit-from-cnn"))]
    assert np.mean(losses[-5:]) < 0.98 * np.mean(losses[:5])
    assert list((distilled.dir.root / "answers").iterdir()) != []


def test_without_the_teachers_word_a_student_is_the_undistilled_model(distilled):
    """The same initialisation, images and augmentation: the teacher is all that differs."""
    assert weights(distilled, "labels-only-from-cnn") == weights(distilled, "vit")


def test_the_same_command_again_finds_the_study_and_nothing_to_do(distilled, tmp_path):
    write_study(tmp_path / "study.toml", tiny(distillations=[PLAIN, *OTHERS]))
    run = prepare(load_study(tmp_path / "study.toml"), distilled.dir.root)
    assert run.study == distilled.study
    assert execute_all(run, ("distill",)) == []


def test_another_recipe_contradicts_the_run_and_another_teacher_does_not(copy_of, tmp_path):
    write_study(tmp_path / "study.toml", tiny(distillations=[{**PLAIN, "alpha": 0.4}, *OTHERS]))
    with pytest.raises(StudyError, match=r"distillations.vit-from-cnn.alpha: run directory has 0.5, study has 0.4"):
        prepare(load_study(tmp_path / "study.toml"), copy_of.dir.root)
    more = {**PLAIN, "name": "more", "repeats": 1}
    write_study(tmp_path / "study.toml", tiny(distillations=[PLAIN, *OTHERS, more]))
    run = prepare(load_study(tmp_path / "study.toml"), copy_of.dir.root)
    todo = [task.model for task in distill.tasks(run) if not distill.is_done(run, task)]
    assert todo == ["more-from-cnn", "more-from-convnext"]


def test_an_interrupted_student_goes_on_and_ends_the_same(copy_of, monkeypatch):
    key = "vit-from-cnn"
    expected = weights(copy_of, key)
    copy_of.dir.checkpoint(key).unlink()
    from simhpc.stages import progress

    steps = []

    def report(done, total, unit):
        steps.append(done)
        if done == 7:
            monkeypatch.setattr(progress, "is_interrupted", lambda: True)

    with pytest.raises(Interrupted):
        distill.execute(copy_of, Task("distill", key), report)
    monkeypatch.undo()
    assert not copy_of.dir.checkpoint(key).exists()
    steps.clear()
    distill.execute(copy_of, Task("distill", key), lambda done, total, unit: steps.append(done))
    assert steps[0] >= 7
    assert weights(copy_of, key) == expected


def test_another_teacher_makes_a_student_out_of_date(copy_of):
    task = Task("distill", "vit-from-cnn")
    teacher = copy_of.dir.checkpoint("cnn")
    shutil.copy(copy_of.dir.checkpoint("convnext"), teacher)
    assert not distill.is_done(copy_of, task)
    teacher.unlink()
    assert not distill.is_done(copy_of, task)
    with pytest.raises(MissingInputError, match="its teacher 'cnn' is not trained yet"):
        distill.execute(copy_of, task, quiet)
    assert distill.is_done(copy_of, Task("distill", "vit-from-convnext"))


def test_a_teacher_of_other_classes_is_refused(copy_of, tmp_path):
    raw = tiny(distillations=[{**PLAIN, "name": "x", "args": {**MODELS["vit"]["args"], "num_classes": 12}}])
    write_study(tmp_path / "study.toml", {**raw, "distillations": [PLAIN, *OTHERS, *raw["distillations"]]})
    run = prepare(load_study(tmp_path / "study.toml"), copy_of.dir.root)
    with pytest.raises(ModelError, match="has 12 outputs and its teacher 'cnn' 10"):
        distill.execute(run, Task("distill", "x-from-cnn"), quiet)


def test_tasks_read_what_their_teachers_are_made_from(distilled):
    assert inputs.paths(distilled, "distill", ["vit-from-cnn"]) == inputs.paths(distilled, "train", ["vit", "cnn"])
    assert inputs.pretrained(distilled, "distill", ["vit-from-cnn"]) == []


def test_the_forecast_counts_student_and_teacher(distilled):
    costs = estimate.count_costs(distilled.study, 10)
    found = estimate.estimate(distilled, estimate.look(distilled), costs, accuracy=0.9)
    of = {task.task.model: task for task in found.of_stage("distill")}
    assert len(of) == 7
    student, teacher = of["vit-from-cnn"], costs["cnn"].forward_flops
    shown = 2 * (1727 // 64) * 64
    assert student.flops == (3 * shown + 96) * costs["vit"].forward_flops + shown * teacher
    still = of["still-from-cnn"]
    assert student.flops - still.flops == (shown - 1727) * teacher
    assert student.is_done
    assert student.todo_flops == 0


def test_analysis_and_suggestion(distilled, tmp_path):
    run = distilled
    from simhpc.rundir import RunDir

    given = analysis_inputs.inputs_of_run(run, RunDir(tmp_path))
    only = {"distillation": analyses.ANALYSES["distillation"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyses, "ANALYSES", only)
        summary = analyses.analyze(given, RunDir(tmp_path), analysis_inputs.Settings(), quiet)
    assert summary["problems"] == []
    rows = list(csv.DictReader((tmp_path / "analysis" / "distillation.csv").open()))
    assert [(row["distillation"], row["teacher"], row["n_students"]) for row in rows[:3]] == [
        ("vit", "cnn", "2"),
        ("vit", "convnext", "2"),
        ("labels-only", "cnn", "1"),
    ]
    place = {name: position for position, name in enumerate(given.names)}
    assert float(rows[0]["sat"]) == given.sat[place["cnn"], place["vit"]]
    accuracies = [distill.accuracy(run, run.study.student(key)) for key in ("vit-from-cnn", "vit-from-cnn-2")]
    assert float(rows[0]["distilled_accuracy_mean"]) == pytest.approx(np.mean(accuracies))
    assert rows[0]["same_base_architecture"] == "no"
    undistilled = float(checkpoint.metadata_of(run.dir.checkpoint("vit"))["accuracy"])
    assert float(rows[2]["distilled_minus_undistilled"]) == pytest.approx(0)
    assert float(rows[0]["distilled_minus_undistilled"]) == pytest.approx(np.mean(accuracies) - undistilled)
    written = json.loads((tmp_path / "analysis" / "distillation.json").read_text())
    assert written["created_by"].startswith("simhpc")
    assert [each["name"] for each in written["distillations"]] == ["vit", "labels-only", "token", "still"]
    assert any("vit: 2 teacher(s) are few" in note for note in summary["notes"])
    for name in ("distillation.svg", "distillation.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 1000

    found = suggest_teacher(run, "vit")
    assert found["evidence"] == "none"
    assert {each["teacher"] for each in found["candidates"]} == {"cnn", "convnext"}
    assert found["candidates"][0]["expected_accuracy"] >= found["candidates"][1]["expected_accuracy"]
    assert found["undistilled_accuracy"] == pytest.approx(undistilled)
    assert suggest_teacher(run, "vit", "token")["n_seen"] == 1
    assert "no student was distilled" in suggest_teacher(run, "cnn")["words"][0]
    with pytest.raises(
        StudyError, match="has no distillation 'tokn' of 'vit'; there is vit, labels-only, token, still"
    ):
        suggest_teacher(run, "vit", "tokn")


def test_without_students_the_analysis_is_not_begun_or_says_what_is_missing(finished, copy_of, tmp_path):
    from simhpc.rundir import RunDir

    begun = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyses, "ANALYSES", {"distillation": analyses.ANALYSES["distillation"]})
        given = analysis_inputs.Inputs("t", ["a"], np.zeros((1, 1)), run=finished)
        assert analyses.analyze(given, RunDir(tmp_path), analysis_inputs.Settings(), begun.append)["problems"] == []
        assert begun == []
        for path in (copy_of.dir.root / "checkpoints").glob("*-from-*"):
            path.unlink()
        given = analysis_inputs.inputs_of_run(copy_of, RunDir(tmp_path))
        (problem,) = analyses.analyze(given, RunDir(tmp_path), analysis_inputs.Settings(), begun.append)["problems"]
    assert "no student has been distilled yet" in problem
    assert stage_module("distill") is distill


def test_status_knows_students_and_their_teachers(distilled):
    from simhpc.cluster import control, status

    found = status.compose(distilled, [], None, error="", asked_unix_s=0.0).of_stage("distill")
    assert len(found) == 7
    assert {task.state for task in found} == {"done"}
    assert [task.teacher for task in found[:3]] == ["cnn", "cnn", "convnext"]
    assert control.chosen_models(distilled, ["vit-from-cnn", "vit"]) == ["vit-from-cnn", "vit"]
