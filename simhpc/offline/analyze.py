"""What a similarity matrix means: one function per analysis, each writes its tables and figures.

A new analysis is a module in `simhpc/analysis/` (the statistics), one in `simhpc/report/` (tables and figure), a
function here or in a module beside this one that joins the two, and a line in `ANALYSES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from simhpc.analysis import clusters as clustering
from simhpc.analysis import importance as regression
from simhpc.errors import AnalysisError, BadFileError, MissingInputError
from simhpc.offline.distillation import analyze_distillation
from simhpc.offline.ensembles import analyze_ensembles
from simhpc.offline.found_clusters import clusters_of, options_of
from simhpc.offline.inputs import Inputs, Outcome, Settings, keep_components, made_from
from simhpc.offline.measures import analyze_measures
from simhpc.offline.reliability import analyze_reliability
from simhpc.offline.representations import analyze_representations
from simhpc.offline.strategies import analyze_strategies
from simhpc.report import clusters as clusters_report
from simhpc.report import heatmap
from simhpc.report import importance as importance_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import plain, write_json
from simhpc.rundir import RunDir
from simhpc.store import similarity


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
    files, notes, problems = keep_components(inputs, out), [*inputs.notes], [*inputs.problems]
    for name, function in ANALYSES.items():
        if name in NEED_COMPONENTS and not inputs.columns:
            notes.append(f"{name}: not done, because it needs components of the models (--components)")
            continue
        if name in _NEED_STUDENTS and (inputs.run is None or not inputs.run.study.distillations):
            continue
        if name in NEED_A_RUN and inputs.run is None:
            notes.append(f"{name}: not done, because it needs the predictions of a run, not only its matrix")
            continue
        report(name)
        try:
            outcome = function(inputs, out, settings)
        except (AnalysisError, BadFileError, MissingInputError) as error:
            problems.append(f"{name}: {error}")
            continue
        if outcome.result:
            summary[name] = outcome.result
        files += outcome.files
        notes += [f"{name}: {note}" for note in outcome.notes]
        problems += [f"{name}: {problem}" for problem in outcome.problems]
    if inputs.run is not None and inputs.columns and out.root == inputs.run.dir.root:
        # Made before the families of the models were known.
        matrix = similarity.load(inputs.run.dir.similarity)
        heatmap.write(matrix, inputs.run.dir.heatmap, title=inputs.title, families=inputs.families)
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
    options, found = options_of(settings), clusters_of(inputs, settings)
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
    write_svg_and_png(clusters_report.draw(found, inputs.sat, names, inputs.families, title=inputs.title), svg, png)
    files, by_components = [table, summary, together, svg, png], out.analysis("cluster_components.csv")
    if inputs.columns:
        clusters_report.write_components(words, by_components)
        files.append(by_components)
    else:
        by_components.unlink(missing_ok=True)  # of other clusters, from another time
        notes.append("which components set them apart is not known without components of the models (--components)")
    return Outcome(files, result, notes)


ANALYSES: dict[str, Callable[[Inputs, RunDir, Settings], Outcome]] = {
    "importance": analyze_importance,
    "clusters": analyze_clusters,
    "strategies": analyze_strategies,
    "reliability": analyze_reliability,
    "ensembles": analyze_ensembles,
    "measures": analyze_measures,
    "representations": analyze_representations,
    "distillation": analyze_distillation,
}
"""In the order in which they are done."""

NEED_COMPONENTS = {"importance"}
_NEED_STUDENTS = {"distillation"}
NEED_A_RUN = {"reliability", "ensembles", "measures", "representations"}


def _words(inputs: Inputs, found: clustering.Clusters) -> list[clustering.Word]:
    """Of the clustered models whose components are known."""
    of_models = [inputs.components.get(inputs.names[position]) for position in found.kept]
    known = [p for p, row in enumerate(of_models) if row is not None]
    if not known:
        return []
    return clustering.distinctive(found.labels[known], [row for row in of_models if row is not None], inputs.columns)
