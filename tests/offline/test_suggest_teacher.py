"""Who is ranked as a teacher."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simhpc.offline.suggest_teacher import suggest_teacher
from simhpc.stages import distill
from simhpc.study import Distillation

ACCURACIES = {"cnn": 0.8, "convnext": 0.9}


@pytest.mark.parametrize("teachers", [("cnn", "convnext"), ("cnn",), ()])
def test_another_initialisation_of_the_student_is_a_candidate_if_it_has_taught(finished, monkeypatch, teachers):
    """What its students have learned is seen like that of any other teacher; untaught, it would be the student."""
    study = finished.study
    again = study.model("vit").model_copy(update={"key": "convnext"})
    models = tuple(again if model.key == "convnext" else model for model in study.models)
    made = Distillation(student="vit", teachers=teachers, name="vit", alpha=0.5) if teachers else None
    run = replace(finished, study=study.model_copy(update={"models": models, "distillations": (made,) if made else ()}))
    monkeypatch.setattr(distill, "accuracy", lambda _, student: ACCURACIES[student.teacher])
    found = suggest_teacher(run, "vit")
    assert found["n_seen"] == len(teachers)
    ranked = [(each["teacher"], each["expected_accuracy"], each["n_students"]) for each in found["candidates"]]
    by_accuracy = sorted(teachers, key=ACCURACIES.__getitem__, reverse=True)
    assert ranked == ([(key, ACCURACIES[key], 1) for key in by_accuracy] or [("cnn", None, 0)])
