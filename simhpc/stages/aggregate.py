"""The aggregate stage: from all prediction files to the similarity matrix. Offline: no torch, no GPU, no images.

What is missing or invalid is listed and leaves NaN; nothing is filled in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simhpc.analysis import similarity as analysis
from simhpc.errors import BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.seeds import derive_seed
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import ALL, Report, Task
from simhpc.stages.validity import adversarial_header, check_provenance
from simhpc.store import predictions, similarity
from simhpc.store.predictions import NOT_SHOWN, PredictionSet
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Model

STAGE = "aggregate"


def tasks(run: Run) -> Sequence[Task]:  # noqa: ARG001 - every stage takes the run
    """One task for all models."""
    return [Task(STAGE, ALL)]


def is_done(run: Run, task: Task) -> bool:  # noqa: ARG001
    """Whether the matrix and its tables exist and were made from exactly the predictions that lie here now."""
    made = (run.dir.similarity_csv, run.dir.pairs_csv, run.dir.models_csv, run.dir.heatmap)
    try:
        return all(path.exists() for path in made) and similarity.inputs_sha256(run.dir.similarity) == _inputs(run)
    except (MissingInputError, BadFileError):
        return False


def execute(run: Run, task: Task, report: Report) -> dict[str, Any]:  # noqa: ARG001
    """Make `similarity.h5`, the tables and the heatmap.

    Returns:
        `models`, `pairs` known of `all_pairs`, `problems` and `notes` (lists of lines).
    """
    report(0, len(run.study.models), "model")
    try:
        matrix = aggregate(run, report)
    except Interrupted:
        report(0, len(run.study.models), "model")  # a next attempt begins again
        raise
    from simhpc.report import heatmap, tables

    tables.write_similarity(matrix, run.dir.similarity_csv)
    tables.write_pairs(matrix, run.dir.pairs_csv)
    tables.write_models(matrix, run.dir.models_csv)
    heatmap.write(matrix, run.dir.heatmap, title=run.study.name)
    # Last: whoever sees it finds everything else beside it.
    matrix.save(run.dir.similarity)
    upper = np.triu_indices(len(matrix.models))
    return {
        "models": len(matrix.models),
        "pairs": int(np.isfinite(matrix.sat[upper]).sum()),
        "all_pairs": len(upper[0]),
        "problems": matrix.problems,
        "notes": matrix.notes,
    }


def discard_partial(run: Run, task: Task) -> None:
    """An interrupted aggregation leaves nothing behind."""


def aggregate(run: Run, report: Report) -> SimilarityMatrix:
    """Compute the matrix of a run from its prediction files, without writing anything."""
    inputs_sha256 = _inputs(run)
    models, settings = run.study.models, run.study.similarity
    gathered = _gather(run, report)
    counts = analysis.count_pairs(gathered.correct, gathered.fooled, gathered.measured)
    # Without its own predictions a model has no X_A, so nothing is known of what it has in common with others.
    known = gathered.predicted[:, None] & gathered.predicted
    ci_low, ci_high = analysis.bootstrap_intervals(
        counts,
        floor_percent=settings.floor_percent,
        confidence=settings.confidence,
        samples=settings.bootstrap_samples,
        seed=derive_seed(run.study.seed, "bootstrap"),
    )
    notes = []
    if empty := _pairs(models, known & (counts.common == 0)):
        notes.append(f"no image is classified correctly by both, so the similarity is unknown (nan): {empty}")
    if floored := _pairs(models, analysis.floor_binds(counts, settings.floor_percent)):
        notes.append(f"the floor of {settings.floor_percent} % stands for a lower fooling rate: {floored}")
    n_correct = np.bitwise_count(gathered.correct).sum(-1, dtype=np.int64)
    accuracy = np.where(gathered.predicted, n_correct / max(1, gathered.n_images), np.nan)
    return SimilarityMatrix(
        models=[model.key for model in models],
        timm_names=[model.timm_name for model in models],
        sat=analysis.sat_matrix(counts, settings.floor_percent),
        ci_low=ci_low,
        ci_high=ci_high,
        n_common=np.where(known, counts.common, -1),
        n_fooled=counts.fooled,
        n_both=counts.both,
        clean_accuracy=accuracy,
        n_images=gathered.n_images,
        floor_percent=settings.floor_percent,
        confidence=settings.confidence,
        inputs_sha256=inputs_sha256,
        problems=gathered.problems,
        notes=notes,
    )


def _pairs(models: Sequence[Model], which: np.ndarray[Any, np.dtype[np.bool_]]) -> str:
    """Names of the marked unordered pairs, the first ten of them, or an empty string."""
    marked = np.argwhere(np.triu(which))
    names = [f"{models[a].key} / {models[b].key}" for a, b in marked[:10]]
    more = f" and {len(marked) - 10} more pairs" if len(marked) > 10 else ""
    return ", ".join(names) + more


@dataclass
class _Gathered:
    """Per-image outcomes of all models, as bits: (M, M, N / 8) bytes twice is all that M files leave in memory.

    Attributes:
        n_images: N; 0 when no file could be read.
        correct: (M, W), images that each model gets right.
        fooled: (M, M, W), [a, b]: images attacked against a that were shown to b and fool it.
        measured: (M, M), which of those could be used.
        predicted: (M,), whose file could be used.
        problems: what could not, one line each.
    """

    n_images: int
    correct: analysis.Bits
    fooled: analysis.Bits
    measured: np.ndarray[Any, np.dtype[np.bool_]]
    predicted: np.ndarray[Any, np.dtype[np.bool_]]
    problems: list[str]


def _gather(run: Run, report: Report) -> _Gathered:
    keys = [model.key for model in run.study.models]
    row_of, m = {key: row for row, key in enumerate(keys)}, len(keys)
    problems: list[str] = []
    covered: dict[str, dict[str, str]] = {}
    correct = fooled = shown = np.zeros((m, m, 0), dtype=np.uint64)
    reference: PredictionSet | None = None
    for b, key in enumerate(keys):
        found = _load(run, key, reference, problems)
        report(b + 1, m, "model")
        if found is None:
            continue
        if reference is None:
            reference = found
            n_words = analysis.pack_bits(np.zeros(len(found.labels), dtype=bool)).shape[-1]
            correct = np.zeros((m, n_words), dtype=np.uint64)
            fooled, shown = np.zeros((2, m, m, n_words), dtype=np.uint64)
        covered[key] = dict(zip(found.sources, found.source_sha256, strict=True))
        correct[b] = analysis.pack_bits(found.clean_pred == found.labels)
        for pred, source in zip(found.adv_pred, found.sources, strict=True):
            if source in row_of:
                was_shown = pred != NOT_SHOWN
                shown[row_of[source], b] = analysis.pack_bits(was_shown)
                fooled[row_of[source], b] = analysis.pack_bits(was_shown & (pred != found.labels))
    measured = np.zeros((m, m), dtype=bool)
    current = _current_sources(run, covered)
    for source, target in itertools.product(covered, covered):
        a, b, path = row_of[source], row_of[target], run.dir.predictions(target)
        if source not in covered[target]:
            problems.append(f"{path} does not cover {source}: run the evaluate stage")
        elif covered[target][source] != current[source]:
            problems.append(f"{path} covers an older attack of {source}: run the evaluate stage")
        elif not np.array_equal(shown[a, b], correct[a] & correct[b]):
            problems.append(f"{path}: the images shown of {source} are not X_AB; delete it and run the evaluate stage")
        else:
            measured[a, b] = True
    return _Gathered(
        n_images=len(reference.labels) if reference is not None else 0,
        correct=correct if reference is not None else np.zeros((m, 0), dtype=np.uint64),
        fooled=fooled,
        measured=measured,
        predicted=np.array([key in covered for key in keys]),
        problems=problems,
    )


def _load(run: Run, key: str, first: PredictionSet | None, problems: list[str]) -> PredictionSet | None:
    path = run.dir.predictions(key)
    try:
        found = predictions.load(path)
        check_provenance(run, run.study.model(key), path, found.provenance)
        if first is not None and (
            found.provenance.images_sha256 != first.provenance.images_sha256
            or not np.array_equal(found.labels, first.labels)
        ):
            raise BadFileError(f"{path} was made from another image set than {first.provenance.model}'s")
    except (MissingInputError, BadFileError) as error:
        problems.append(str(error))
        return None
    return found


def _current_sources(run: Run, covered: dict[str, dict[str, str]]) -> dict[str, str]:
    """`content_sha256` of every model's adversarial set: from the set itself, else from what its own model saw."""
    current = {}
    for key, own in covered.items():
        try:
            current[key] = adversarial_header(run, run.study.model(key)).content_sha256
        except (MissingInputError, BadFileError):
            current[key] = own.get(key, "")
    return current


def _inputs(run: Run) -> str:
    """Identity of all that the matrix is made from."""
    contents = []
    for model in run.study.models:
        try:
            contents.append(predictions.header(run.dir.predictions(model.key)).content_sha256)
        except (MissingInputError, BadFileError) as error:
            contents.append(type(error).__name__)
        try:
            contents.append(adversarial_header(run, model).content_sha256)
        except (MissingInputError, BadFileError) as error:
            contents.append(type(error).__name__)
    settings = run.study.similarity.model_dump(mode="json")
    identity_of = [run.study.seed, settings, [model.sha256() for model in run.study.models], contents]
    return hashlib.sha256(json.dumps(identity_of, sort_keys=True).encode()).hexdigest()
