"""Which model of a finished study to take for a student's teacher. Offline."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from simhpc.analysis import teachers as analysis
from simhpc.errors import MissingInputError, StudyError
from simhpc.offline.distillation import accuracies, mean_sat, replicas, teachers_of
from simhpc.offline.inputs import Inputs
from simhpc.report.tables import plain
from simhpc.rundir import Run
from simhpc.store import similarity
from simhpc.study import Distillation


def suggest_teacher(run: Run, student: str, distillation: str | None = None) -> dict[str, Any]:
    """Rank all other models of the study as teachers of one of them; see `analysis.teachers`.

    Other initialisations of the student are among them where they have taught.

    Args:
        student: key of a model of the study.
        distillation: name of the one whose students count, where there are several of the student; None: the first.

    Returns:
        plain data, None for NaN: `student`, `distillation` (None without one), `undistilled_accuracy`, `candidates`
        (best first), `rule`, `r2_left_out`, `p_value`, `rank_correlation` with its interval, `evidence`, and `words`
        that say what that means.

    Raises:
        StudyError: there is no such model or distillation.
        MissingInputError, BadFileError: the run has no matrix, or a damaged one.
    """
    run.study.model(student)
    chosen = _chosen(run, student, distillation)
    try:
        matrix = similarity.load(run.dir.similarity)
    except MissingInputError:
        raise MissingInputError(f"{run.dir.similarity} does not exist: run `simhpc aggregate` first") from None
    inputs = Inputs(title=run.study.name, names=matrix.models, sat=matrix.sat, run=run)
    accuracy, same = accuracies(run), replicas(run, student)
    taught = chosen.teachers if chosen is not None else ()
    keys = [
        model.key
        for model in run.study.models
        if (model.key not in same or model.key in taught) and not model.is_random
    ]
    seen: dict[str, float] = {}
    counts: dict[str, int] = {}
    if chosen is not None:
        found = teachers_of(inputs, chosen)
        seen = dict(zip(chosen.teachers, found.means.tolist(), strict=True))
        counts = dict(zip(chosen.teachers, np.isfinite(found.distilled).sum(axis=1).tolist(), strict=True))
    sat = np.array([mean_sat(inputs, key, same) for key in keys])
    of_teachers = np.array([accuracy.get(key, np.nan) for key in keys])
    ranking = analysis.rank(sat, of_teachers, np.array([seen.get(key, np.nan) for key in keys]), seed=run.study.seed)
    undistilled = [accuracy[key] for key in same if np.isfinite(accuracy.get(key, np.nan))]
    candidates = [
        {
            "teacher": keys[position],
            "sat": float(sat[position]),
            "accuracy": float(of_teachers[position]),
            "n_students": counts.get(keys[position], 0),
            "expected_accuracy": float(ranking.expected[position]),
            "expected_from": "students" if ranking.is_seen[position] else "rule" if ranking.rule else "nothing",
        }
        for position in ranking.order
    ]
    facts = asdict(ranking)
    result: dict[str, Any] = plain(
        {
            "student": student,
            "distillation": None if chosen is None else chosen.name,
            "undistilled_accuracy": float(np.mean(undistilled)) if undistilled else float("nan"),
            "candidates": candidates,
            **{name: facts[name] for name in _FACTS},
            "words": _words(ranking, chosen),
        }
    )
    return result


_FACTS = ("rule", "r2_left_out", "p_value", "rank_correlation", "ci_low", "ci_high", "n_seen", "evidence")


def _chosen(run: Run, student: str, name: str | None) -> Distillation | None:
    of_student = [each for each in run.study.distillations if each.student == student]
    if name is None:
        return of_student[0] if of_student else None
    for each in of_student:
        if each.name == name:
            return each
    known = ", ".join(each.name for each in of_student) or "none"
    raise StudyError(f"study {run.study.name!r} has no distillation {name!r} of {student!r}; there is {known}")


def _words(ranking: analysis.Ranking, chosen: Distillation | None) -> list[str]:
    """How weak the evidence is, one line each."""
    if chosen is None or not ranking.n_seen:
        return [
            "no student was distilled here, so nothing says what makes a good teacher: the order is that of "
            "similarity, which may be the right one, the reverse, or neither"
        ]
    words = [f"students of {ranking.n_seen} teacher(s) were seen: theirs is the accuracy that they had"]
    if ranking.rule is None:
        why = (
            "they are too few, or too much alike, to learn a rule from"
            if not np.isfinite(ranking.p_value)
            else "neither similarity nor accuracy of the teacher predicts them better than chance would "
            f"(p = {ranking.p_value:.2g})"
        )
        return [*words, f"{why}: nothing can be said of the other models, which follow by their similarity"]
    r2 = ranking.r2_left_out[ranking.rule]
    words.append(
        f"{ranking.rule} predicts them (left out: R2 {r2:.2f}, p = {ranking.p_value:.2g}; "
        f"rank correlation {ranking.rank_correlation:.2f} [{ranking.ci_low:.2f}, {ranking.ci_high:.2f}]), "
        f"which is {ranking.evidence} evidence for the other models"
    )
    return words
