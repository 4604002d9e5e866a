"""Which models of a finished run to average. Offline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from simhpc.analysis import averaging
from simhpc.analysis.suggest import Choice, suggest
from simhpc.errors import AnalysisError, MissingInputError, nearest
from simhpc.offline.clean_answers import clean_answers
from simhpc.report.tables import plain
from simhpc.rundir import Run
from simhpc.store import similarity


def suggest_ensemble(
    run: Run, size: int, *, among: Sequence[str] = (), include: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Choose an ensemble by several rules, and judge each on images that it was not chosen by.

    Args:
        among: keys of the candidates; none: all models of the matrix.
        include: keys of models that every ensemble has; they are candidates too.
        seed: of the split of the images.

    Returns:
        plain data: `size`, `n_images`, `candidates`, `include`, `seed`, `choices` (`analysis.suggest.Choice`, keys for
        positions), `notes`, and `problems`: candidates that had to be left out.

    Raises:
        AnalysisError: an unknown key, or a size that the candidates do not allow.
        MissingInputError, BadFileError: the run has no matrix or a damaged file.
    """
    try:
        matrix = similarity.load(run.dir.similarity)
    except MissingInputError:
        raise MissingInputError(f"{run.dir.similarity} does not exist: run `simhpc aggregate` first") from None
    for key in (*among, *include):
        if key not in matrix.models:
            raise AnalysisError(f"{run.dir.root} has no model {key!r}{nearest(key, matrix.models)}")
    wanted = {*among, *include} if among else set(matrix.models)
    candidates = [key for key in matrix.models if key in wanted]
    answers = clean_answers(run, candidates)
    if lost := [key for key in include if key not in answers.names]:
        raise AnalysisError(f"{', '.join(lost)}: cannot be included; {'; '.join(answers.problems)}")
    # Before gigabytes are read for it.
    if not 2 <= size <= len(answers.names):
        raise AnalysisError(
            f"of {len(answers.names)} models an ensemble can have 2 to {len(answers.names)} members, not {size}"
        )
    outputs = averaging.collect(answers.probabilities(), answers.right, answers.labels, size)
    positions = [matrix.models.index(key) for key in answers.names]
    sat = matrix.sat[np.ix_(positions, positions)]
    choices = suggest(outputs, sat, size, include=[answers.names.index(key) for key in include], seed=seed)
    members = [choice.members for choice in choices]
    unsure = sum(outputs.judge(each)[1] for each in members)
    notes = averaging.note_of_unsure(unsure, len(members) * len(answers.labels))
    result: dict[str, Any] = plain(
        {
            "size": size,
            "n_images": len(answers.labels),
            "candidates": answers.names,
            "include": list(include),
            "seed": seed,
            "choices": [_named(choice, answers.names) for choice in choices],
            "notes": notes,
            "problems": answers.problems,
        }
    )
    return result


def _named(choice: Choice, names: Sequence[str]) -> dict[str, Any]:
    return {
        **asdict(choice),
        "members": [names[member] for member in choice.members],
        "halves": [[names[member] for member in half] for half in choice.halves],
    }
