"""What a similarity matrix means: one function per analysis, each writes its tables and figures. Offline.

Not a stage of the cluster: it needs no GPU and no predictions, and takes a minute for 69 models. A new analysis is a
module in `simhpc/analysis/`, one in `simhpc/report/`, a function here and a line in `ANALYSES`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simhpc import __version__
from simhpc.analysis import clusters as clustering
from simhpc.analysis import importance as regression
from simhpc.errors import AnalysisError, BadFileError, MissingInputError, ModelError
from simhpc.report import clusters as clusters_report
from simhpc.report import importance as importance_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import plain, write_csv, write_json
from simhpc.rundir import Run, RunDir
from simhpc.store import named_csv, similarity
from simhpc.store.named_csv import NamedTable
from simhpc.study import Analysis, Model

Settings = Analysis
"""Options of all analyses: the study's `[analysis]`."""


@dataclass(frozen=True)
class Inputs:
    """What is analysed.

    Attributes:
        title: for figures.
        names: N models.
        sat: float64 (N, N), symmetric, NaN unknown.
        columns: names of C components; none if there is no table.
        components: C values of each model that they are known of.
        notes, problems: what was found wrong with the input; a problem makes the exit code 1.
        run: the finished run that the matrix is of; None for a matrix from elsewhere.
    """

    title: str
    names: list[str]
    sat: NDArray[np.float64]
    columns: list[str] = field(default_factory=list)
    components: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    run: Run | None = None


@dataclass(frozen=True)
class Outcome:
    """What one analysis gives: files, figures in words, and what needs a word."""

    files: list[Path]
    result: dict[str, Any]
    notes: list[str]


def inputs_of_run(run: Run, out: RunDir, components_csv: Path | None = None) -> Inputs:
    """The matrix of a finished run, and the components of its models.

    The components are read from the architectures, which takes a second or so each, and kept in
    `analysis/components.csv`; what stands there is believed.

    Args:
        out: where that file is.
        components_csv: a table to take in their place.

    Raises:
        MissingInputError, BadFileError: the run has no matrix, or a damaged one.
        AnalysisError: a table is wrong, or lacks a model.
    """
    try:
        matrix = similarity.load(run.dir.similarity)
    except MissingInputError:
        raise MissingInputError(f"{run.dir.similarity} does not exist: run `simhpc aggregate` first") from None
    problems = [f"the matrix is incomplete: {problem}" for problem in matrix.problems]
    if components_csv is not None:
        table = named_csv.read_table(components_csv)
        rows = table.of(matrix.models, components_csv)
        table = NamedTable(table.columns, dict(zip(matrix.models, rows, strict=True)))
    else:
        wanted = set(matrix.models)
        table, unread = _read_components(
            [model for model in run.study.models if model.key in wanted], out.analysis("components.csv")
        )
        problems += unread
    return Inputs(
        title=run.study.name,
        names=matrix.models,
        sat=matrix.sat,
        columns=table.columns,
        components={name: row for name, row in table.rows.items() if name in set(matrix.models)},
        notes=[*matrix.notes],
        problems=problems,
        run=run,
    )


def inputs_of_files(similarity_csv: Path, components_csv: Path | None) -> Inputs:
    """A matrix and a table from elsewhere.

    Raises:
        AnalysisError: one of them is wrong, or the table lacks a model of the matrix.
    """
    matrix = named_csv.read_matrix(similarity_csv)
    inputs = Inputs(title=similarity_csv.stem, names=matrix.names, sat=matrix.values, notes=matrix.notes)
    if components_csv is None:
        return inputs
    table = named_csv.read_table(components_csv)
    rows = table.of(matrix.names, components_csv)
    return Inputs(
        **{**vars(inputs), "columns": table.columns, "components": dict(zip(matrix.names, rows, strict=True))}
    )


def analyze(inputs: Inputs, out: RunDir, settings: Settings, report: Callable[[str], None]) -> dict[str, Any]:
    """Do every analysis that the input allows. One that cannot be done is a problem, and stops no other.

    Args:
        out: its `analysis` and `figures` folders take the files.
        report: told the name of each analysis before it begins.

    Returns:
        plain data, None for NaN: `models`, one entry per analysis done, and the lists of lines `files`, `notes` and
        `problems`.

    Raises:
        AnalysisError: as many clusters as models are asked for, or more.
    """
    n = len(inputs.names)
    if settings.clusters is not None and not 2 <= settings.clusters < max(3, n):
        raise AnalysisError(f"{n} models can be put in 2 to {n - 1} clusters, not in {settings.clusters}")
    summary: dict[str, Any] = {"models": n}
    files, notes, problems = [], [*inputs.notes], [*inputs.problems]
    for name, function in ANALYSES.items():
        if name in _NEED_COMPONENTS and not inputs.columns:
            notes.append(f"{name}: not done, because it needs components of the models (--components)")
            continue
        if name in _NEED_A_RUN and inputs.run is None:
            notes.append(f"{name}: not done, because it needs the predictions of a run, not only its matrix")
            continue
        report(name)
        try:
            outcome = function(inputs, out, settings)
        except (AnalysisError, BadFileError, MissingInputError) as error:
            problems.append(f"{name}: {error}")
            continue
        summary[name] = outcome.result
        files += outcome.files
        notes += [f"{name}: {note}" for note in outcome.notes]
    result: dict[str, Any] = plain(
        {**summary, "files": [str(path) for path in files], "notes": notes, "problems": problems}
    )
    return result


def analyze_importance(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """Which components make models alike: `importance.csv`, `importance.json` and the figure."""
    kept = [position for position, name in enumerate(inputs.names) if name in inputs.components]
    values = [inputs.components[inputs.names[position]] for position in kept]
    boosting = regression.Boosting(**settings.boosting.model_dump())
    options = regression.Settings(encoding=settings.encoding, boosting=boosting, seed=settings.seed)
    if not kept:
        raise AnalysisError("no model's components are known")
    found = regression.importance(inputs.sat[np.ix_(kept, kept)], values, inputs.columns, options)
    result = {
        **made_from(inputs),
        **importance_report.summary(found, inputs.columns, options),
        "models_left_out": [name for name in inputs.names if name not in inputs.components],
    }
    table, summary = out.analysis("importance.csv"), out.analysis("importance.json")
    svg, png = out.figure("importance.svg"), out.figure("importance.png")
    importance_report.write_table(found, inputs.columns, table)
    write_json(summary, result)
    figure = importance_report.draw(found, inputs.columns, title=inputs.title, confidence=options.confidence)
    write_svg_and_png(figure, svg, png)
    return Outcome([table, summary, svg, png], result, found.notes)


def analyze_clusters(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """Which models are alike: `clusters.csv`, `.json`, `coassignment.csv`, `cluster_components.csv`, the figure."""
    options = clustering.Settings(k=settings.clusters, seed=settings.seed)
    found = clustering.clusters(inputs.sat, options)
    names, notes = inputs.names, [*found.notes]
    if len(found.left_out):
        left_out = ", ".join(names[position] for position in found.left_out)
        notes.append(f"left out, because some of their similarities are unknown: {left_out}")
    words = _words(inputs, found)
    result = {**made_from(inputs), **clusters_report.summary(found, names, options, words)}
    table, summary, together = (out.analysis(name) for name in ("clusters.csv", "clusters.json", "coassignment.csv"))
    svg, png = out.figure("clusters.svg"), out.figure("clusters.png")
    clusters_report.write_table(found, names, table)
    clusters_report.write_coassignment(found, names, together)
    write_json(summary, result)
    write_svg_and_png(clusters_report.draw(found, inputs.sat, names, title=inputs.title), svg, png)
    files, by_components = [table, summary, together, svg, png], out.analysis("cluster_components.csv")
    if inputs.columns:
        clusters_report.write_components(words, by_components)
        files.append(by_components)
    else:
        by_components.unlink(missing_ok=True)  # of other clusters, from another time
        notes.append("which components set them apart is not known without components of the models (--components)")
    return Outcome(files, result, notes)


def made_from(inputs: Inputs) -> dict[str, str]:
    """What tells the files of one matrix from those that an earlier one has left: every summary begins with it."""
    similarity_of = json.dumps([inputs.names, inputs.sat.tolist()])
    components_of = json.dumps([inputs.columns, inputs.components], sort_keys=True)
    return {
        "created_by": f"simhpc {__version__}",
        "title": inputs.title,
        "similarity_sha256": hashlib.sha256(similarity_of.encode()).hexdigest(),
        "components_sha256": hashlib.sha256(components_of.encode()).hexdigest(),
    }


ANALYSES: dict[str, Callable[[Inputs, RunDir, Settings], Outcome]] = {
    "importance": analyze_importance,
    "clusters": analyze_clusters,
}
"""In the order in which they are done."""

_NEED_COMPONENTS = {"importance"}
_NEED_A_RUN: set[str] = set()


def _words(inputs: Inputs, found: clustering.Clusters) -> list[clustering.Word]:
    """Of the clustered models whose components are known."""
    of_models = [inputs.components.get(inputs.names[position]) for position in found.kept]
    known = [p for p, row in enumerate(of_models) if row is not None]
    if not known:
        return []
    return clustering.distinctive(found.labels[known], [row for row in of_models if row is not None], inputs.columns)


def _read_components(models: Sequence[Model], cache: Path) -> tuple[NamedTable, list[str]]:
    """Components of models, from the file where they stand there; what was read anew is added to it."""
    problems: list[str] = []
    known = named_csv.read_table(cache) if cache.exists() else None
    missing = [model for model in models if known is None or model.key not in known.rows]
    if known is not None and not missing:
        return known, problems
    from simhpc.zoo.components import COLUMNS

    columns = list(COLUMNS)
    if known is not None and known.columns != columns:
        raise AnalysisError(
            f"{cache} lacks {missing[0].key!r} and has other columns than the components that are read here: "
            "add the row, or delete the file to have all read again"
        )
    rows = dict(known.rows) if known is not None else {}
    for model in missing:
        try:
            rows[model.key] = _read_model(model)
        except ModelError as error:
            problems.append(f"components of {model.key} are unknown: {error}")
    if rows:
        write_csv(cache, ["Model name", *columns], ([name, *row] for name, row in rows.items()))
    return NamedTable(columns, rows), problems


def _read_model(model: Model) -> list[str]:
    from simhpc.zoo.components import find_entry, read, read_components

    if model.module is None:
        return list(read(find_entry(model)).row().values())
    from simhpc.zoo import own

    built = own.build(model, num_classes=2)
    size_px = model.data.input_size_px or own.data_config(model, built)["input_size"][-1]
    try:
        return list(read_components(built, (size_px, size_px)).row().values())
    except Exception as error:  # it is the user's code
        raise ModelError(f"{model.module} cannot be read: {type(error).__name__}: {error}") from error
