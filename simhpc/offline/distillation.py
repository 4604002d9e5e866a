"""What the students of a study say of their teachers: joins `analysis.distillation` and its report to a run."""

from __future__ import annotations

import numpy as np

from simhpc.analysis import distillation as analysis
from simhpc.errors import AnalysisError
from simhpc.offline.inputs import Inputs, Outcome, Settings, made_from
from simhpc.report import distillation as report
from simhpc.report.families import UNKNOWN, column_of_families
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import write_json
from simhpc.rundir import Run, RunDir
from simhpc.stages import distill
from simhpc.store import similarity
from simhpc.study import Distillation, Model, Student


def analyze_distillation(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """What a good teacher has: `distillation.csv`, `distillation_correlations.csv`, `distillation.json`, the figure.

    Raises:
        AnalysisError: no student has been distilled yet.
    """
    run = inputs.run
    assert run is not None
    options = analysis.Settings(seed=settings.seed)
    found, notes = [], []
    for each in run.study.distillations:
        teachers = teachers_of(inputs, each)
        if not np.isfinite(teachers.distilled).any():
            notes.append(f"{each.name}: no student has been distilled yet (simhpc run STUDY --stages distill)")
            continue
        result = analysis.distillation(teachers, options)
        families = dict(zip(inputs.names, inputs.families, strict=True))
        bases = [families.get(key, UNKNOWN) for key in each.teachers]
        found.append(report.Distilled(each.name, each.student, list(each.teachers), bases, teachers, result))
        notes += [f"{each.name}: {note}" for note in result.notes]
    if not found:
        raise AnalysisError("; ".join(notes))
    result_of_all = {**made_from(inputs), **report.summary(found, options), "notes": notes}
    table, correlations = out.analysis("distillation.csv"), out.analysis("distillation_correlations.csv")
    summary, svg, png = (
        out.analysis("distillation.json"),
        out.figure("distillation.svg"),
        out.figure("distillation.png"),
    )
    report.write_table(found, table)
    report.write_correlations(found, correlations)
    write_json(summary, result_of_all)
    write_svg_and_png(report.draw(found, inputs.families, title=inputs.title), svg, png)
    return Outcome([table, correlations, summary, svg, png], result_of_all, notes)


def teachers_of(inputs: Inputs, distillation: Distillation) -> analysis.Teachers:
    """The teachers of one distillation, as the analysis wants them.

    Models that differ from the undistilled student in nothing but their key are other initialisations of it, and SAT is
    meaned over them.
    """
    run = inputs.run
    assert run is not None
    accuracy = accuracies(run)
    same = replicas(run, distillation.student)
    # Others have the very same weights, and nothing of chance between them.
    initialisations = same if run.study.model(distillation.student).is_trained_here else [distillation.student]
    students = [[each for each in _students(run, distillation) if each.teacher == key] for key in distillation.teachers]
    distilled = np.full((len(students), distillation.repeats), np.nan)
    for row, of_teacher in enumerate(students):
        for student in of_teacher:
            found = distill.accuracy(run, student)
            distilled[row, student.repeat - 1] = np.nan if found is None else found
    return analysis.Teachers(
        similarity=np.array([mean_sat(inputs, key, same) for key in distillation.teachers]),
        accuracy=np.array([accuracy.get(key, np.nan) for key in distillation.teachers]),
        distilled=distilled,
        same_base=np.array([_same_base(inputs, key, distillation.student) for key in distillation.teachers]),
        undistilled=np.array([accuracy.get(key, np.nan) for key in initialisations]),
    )


def accuracies(run: Run) -> dict[str, float]:
    """Accuracy of each model on the image set, fractions; NaN unknown."""
    matrix = similarity.load(run.dir.similarity)
    return dict(zip(matrix.models, matrix.clean_accuracy.tolist(), strict=True))


def replicas(run: Run, key: str) -> list[str]:
    """Models of the study that differ from one in nothing but their key, and that one."""

    def without_key(model: Model) -> str:
        return model.model_copy(update={"key": "any"}).sha256()

    wanted = without_key(run.study.model(key))
    return [model.key for model in run.study.models if without_key(model) == wanted]


def mean_sat(inputs: Inputs, key: str, others: list[str]) -> float:
    """Mean of the known SAT of a model with others, itself left out; NaN if none is known."""
    place = {name: position for position, name in enumerate(inputs.names)}
    if key not in place:
        return float("nan")
    values = np.array([inputs.sat[place[key], place[other]] for other in others if other in place and other != key])
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _students(run: Run, distillation: Distillation) -> list[Student]:
    return [student for student in run.study.students if student.distillation == distillation]


def _same_base(inputs: Inputs, key: str, student: str) -> float:
    """1 if two models have the same base architecture, 0 if not, NaN if that is unknown."""
    column = column_of_families(inputs.columns)
    if column is None or key not in inputs.components or student not in inputs.components:
        return float("nan")
    return float(inputs.components[key][column] == inputs.components[student][column])
