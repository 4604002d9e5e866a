"""The aggregate stage: from all prediction files to the similarity matrix. Offline: no torch, no GPU, no images.

What is missing or invalid is listed and leaves NaN; nothing is filled in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from simhpc.analysis import similarity as analysis
from simhpc.errors import AnalysisError, BadFileError, MissingInputError, SimhpcError
from simhpc.rundir import Run
from simhpc.stages.progress import Interrupted
from simhpc.stages.task import ALL, Report, Task
from simhpc.stages.validity import adversarial_header, check_provenance
from simhpc.store import named_csv, predictions, similarity
from simhpc.store.checkpoint import file_sha256
from simhpc.store.predictions import NOT_SHOWN, Outline
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Model
from simhpc.zoo.registry import substitution

STAGE = "aggregate"
_ATTEMPTS = 5

Flags = np.ndarray[Any, np.dtype[np.bool_]]


def tasks(run: Run) -> Sequence[Task]:  # noqa: ARG001 - every stage takes the run
    """One task for all models."""
    return [Task(STAGE, ALL)]


def is_current(run: Run) -> bool:
    """Whether the matrix was made from exactly the predictions that lie here now.

    Raises:
        MissingInputError, BadFileError: there is none, or it is damaged.
    """
    return similarity.inputs_sha256(run.dir.similarity) == _inputs(run)


def is_done(run: Run, task: Task) -> bool:  # noqa: ARG001
    """Whether the matrix and its tables exist and were made from exactly the predictions that lie here now."""
    made = (run.dir.similarity_csv, run.dir.pairs_csv, run.dir.models_csv, run.dir.heatmap)
    try:
        return all(path.exists() for path in made) and is_current(run)
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
    _write(run, matrix)
    upper = np.triu_indices(len(matrix.models))
    return {
        "models": len(matrix.models),
        "pairs": int(np.isfinite(matrix.sat[upper]).sum()),
        "all_pairs": len(upper[0]),
        "problems": matrix.problems,
        "notes": matrix.notes,
    }


def _write(run: Run, matrix: SimilarityMatrix) -> None:
    """Write the matrix and what belongs to it, until all of it lies there together.

    Another aggregation may be writing its own, of other predictions. Whichever saves its matrix last looks at the
    tables after that, when nobody writes any more.

    Raises:
        SimhpcError: others were writing each time.
    """
    from simhpc.report import heatmap, tables

    made = run.dir
    for _ in range(_ATTEMPTS):
        # An older matrix must not vouch for newer tables, should this end half-way and its inputs come back.
        made.similarity.unlink(missing_ok=True)
        written = {
            made.similarity_csv: tables.write_similarity(matrix, made.similarity_csv),
            made.pairs_csv: tables.write_pairs(matrix, made.pairs_csv),
            made.models_csv: tables.write_models(matrix, made.models_csv),
            made.heatmap: heatmap.write(matrix, made.heatmap, title=run.study.name, families=_families(run)),
        }
        # Last: whoever sees it finds everything else beside it.
        matrix.save(made.similarity)
        if all(file_sha256(path) == sha256 for path, sha256 in written.items()):
            return
    raise SimhpcError(f"{made.root}: others write its matrix too: wait until they have ended, and aggregate again")


def discard_partial(run: Run, task: Task) -> None:
    """An interrupted aggregation leaves nothing behind."""


def aggregate(run: Run, report: Report) -> SimilarityMatrix:
    """Compute the matrix of a run from its prediction files, without writing anything."""
    inputs_sha256 = _inputs(run)
    models, settings = run.study.models, run.study.similarity
    gathered = gather(run, report)
    counts = analysis.count_pairs(gathered.correct, gathered.fooled, gathered.measured)
    # Without its own predictions a model has no X_A, so nothing is known of what it has in common with others.
    known = gathered.predicted[:, None] & gathered.predicted
    ci_low, ci_high = analysis.bootstrap_intervals(
        counts,
        floor_percent=settings.floor_percent,
        confidence=settings.confidence,
    )
    notes = [note for note in map(substitution, models) if note]
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


def _families(run: Run) -> list[str] | None:
    """What `simhpc analyze` has found the models' families to be, if it was here."""
    from simhpc.report.families import families

    try:
        table = named_csv.read_table(run.dir.analysis("components.csv"))
    except AnalysisError:
        return None
    return families([model.key for model in run.study.models], table.columns, table.rows)


def _pairs(models: Sequence[Model], which: Flags) -> str:
    """Names of the marked unordered pairs, the first ten of them, or an empty string."""
    marked = np.argwhere(np.triu(which))
    names = [f"{models[a].key} / {models[b].key}" for a, b in marked[:10]]
    more = f" and {len(marked) - 10} more pairs" if len(marked) > 10 else ""
    return ", ".join(names) + more


def _names(models: Sequence[Model], which: Flags) -> str:
    """Keys of the marked models, the first ten of them, or an empty string."""
    marked = np.flatnonzero(which)
    more = f" and {len(marked) - 10} more models" if len(marked) > 10 else ""
    return ", ".join(models[a].key for a in marked[:10]) + more


@dataclass(frozen=True)
class Gathered:
    """Per-image outcomes of all models, as bits: (M, M, N / 8) bytes are all that M files leave in memory.

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
    measured: Flags
    predicted: Flags
    problems: list[str]


def gather(run: Run, report: Report) -> Gathered:
    """Read each file twice: first what it says of clean images, for all of them tell what each had to be shown."""
    models, m = run.study.models, len(run.study.models)
    problems: list[str] = []
    outlines: dict[int, Outline] = {}
    for b, model in enumerate(models):
        report(0, m, "model")
        try:
            outlines[b] = checked_outline(run, model, next(iter(outlines.values()), None))
        except (MissingInputError, BadFileError) as error:
            problems.append(str(error))
    n_images = len(next(iter(outlines.values())).labels) if outlines else 0
    right = np.zeros((m, n_images), dtype=bool)
    for b, outline in outlines.items():
        right[b] = outline.clean_pred == outline.labels
    correct = analysis.pack_bits(right)
    row_of, current = {model.key: row for row, model in enumerate(models)}, _current_sources(run, outlines)
    fooled = np.zeros((m, *correct.shape), dtype=np.uint64)
    covered, is_current, is_x_ab = np.zeros((3, m, m), dtype=bool)

    def read(b: int) -> str | None:
        """Fill in the column of model b; what is wrong with its file, if anything is."""
        outline, start = outlines[b], 0
        rows = np.array([row_of.get(source, -1) for source in outline.sources], dtype=np.int64)
        try:
            for pred in predictions.iterate_adversarial(run.dir.predictions(models[b].key), outline):
                of, start = rows[start : start + len(pred)], start + len(pred)
                known, of = of >= 0, of[of >= 0]
                shown = analysis.pack_bits(pred != NOT_SHOWN)[known]
                fooled[of, b] = analysis.pack_bits(pred != outline.labels)[known] & shown
                is_x_ab[of, b] = (shown == correct[of] & correct[b]).all(axis=-1)
        except (MissingInputError, BadFileError) as error:
            return str(error)
        covered[rows[rows >= 0], b] = True
        pairs = zip(rows.tolist(), outline.source_sha256, strict=True)
        is_current[[a for a, sha256 in pairs if a >= 0 and sha256 == current[a]], b] = True
        return None

    predicted = np.isin(np.arange(m), list(outlines))
    with ThreadPoolExecutor(_readers()) as pool:
        try:
            for b, problem in zip(outlines, pool.map(read, outlines), strict=True):
                report(b + 1, m, "model")
                if problem is not None:
                    problems.append(problem)
                    predicted[b] = False
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    correct[~predicted] = 0  # only now: the threads have compared with it
    wanted = predicted[:, None] & predicted
    measured = wanted & covered & is_current & is_x_ab
    lacks, old = wanted & ~covered, wanted & covered & ~is_current
    misshown = wanted & ~lacks & ~old & ~is_x_ab
    for b in np.flatnonzero((wanted & ~measured).any(axis=0)).tolist():
        path = run.dir.predictions(models[b].key)
        if names := _names(models, lacks[:, b]):
            problems.append(f"{path} does not cover {names}: run the evaluate stage")
        if names := _names(models, old[:, b]):
            problems.append(f"{path} covers an older attack of {names}: run the evaluate stage")
        if names := _names(models, misshown[:, b]):
            problems.append(f"{path}: the images shown of {names} are not X_AB; delete it and run the evaluate stage")
    return Gathered(n_images, correct, fooled, measured, predicted, problems)


def _readers() -> int:
    """Threads that read files. HDF5 serves one at a time; the hashes and bits of others are made meanwhile."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def checked_outline(run: Run, model: Model, first: Outline | None) -> Outline:
    """What a model's predictions say of clean images, checked to be of this run and of the image set of `first`.

    Raises:
        MissingInputError, BadFileError: there are none, or they are not.
    """
    path = run.dir.predictions(model.key)
    found = predictions.outline(path)
    check_provenance(run, model, path, found.provenance)
    if first is not None and (
        found.provenance.images_sha256 != first.provenance.images_sha256
        or not np.array_equal(found.labels, first.labels)
    ):
        raise BadFileError(f"{path} was made from another image set than {first.provenance.model}'s")
    return found


def _current_sources(run: Run, outlines: dict[int, Outline]) -> list[str]:
    """`content_sha256` of every model's adversarial set: from the set itself, else from what its own model saw."""
    current = []
    for a, model in enumerate(run.study.models):
        try:
            current.append(adversarial_header(run, model).content_sha256)
        except (MissingInputError, BadFileError):
            own = outlines.get(a)
            seen = dict(zip(own.sources, own.source_sha256, strict=True)) if own is not None else {}
            current.append(seen.get(model.key, ""))
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
