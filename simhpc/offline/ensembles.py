"""What ensembles gain: the joint of `analysis.ensembles` and `report.ensembles`, from a run's clean outputs."""

from __future__ import annotations

import numpy as np

from simhpc.analysis import averaging
from simhpc.analysis import ensembles as ensembling
from simhpc.errors import AnalysisError
from simhpc.offline.clean_answers import clean_answers
from simhpc.offline.found_clusters import clusters_of
from simhpc.offline.inputs import Inputs, Outcome, Settings, made_from, without_root
from simhpc.report import ensembles as ensembles_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import write_json
from simhpc.rundir import RunDir


def analyze_ensembles(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """Whether less alike models make better ensembles: `ensembles.csv`, `ensembles.json` and the figure."""
    assert inputs.run is not None
    options = ensembling.Settings(sizes=settings.ensemble_sizes, samples=settings.ensemble_samples, seed=settings.seed)
    answers = clean_answers(inputs.run, inputs.names)
    notes = []
    cluster: dict[int, int] = {}
    try:
        found_clusters = clusters_of(inputs, settings)
        cluster = dict(zip(found_clusters.kept.tolist(), found_clusters.labels.tolist(), strict=True))
    except AnalysisError as error:
        notes.append(f"clusters are unknown: {error}")
    largest = min(max(options.sizes), len(answers.names))
    outputs = averaging.collect(answers.probabilities(), answers.right, answers.labels, largest)
    found = ensembling.ensembles(
        outputs, inputs.sat[np.ix_(answers.kept, answers.kept)], [cluster.get(k) for k in answers.kept], options
    )
    notes += found.notes
    result = {
        **made_from(inputs),
        **ensembles_report.summary(found, options),
        "n_images": len(answers.labels),
        "models": answers.names,
        "notes": [*(without_root(inputs.run, problem) for problem in answers.problems), *notes],
    }
    table, summary = out.analysis("ensembles.csv"), out.analysis("ensembles.json")
    svg, png = out.figure("ensembles.svg"), out.figure("ensembles.png")
    ensembles_report.write_table(found, answers.names, table)
    write_json(summary, result)
    write_svg_and_png(ensembles_report.draw(found, title=inputs.title), svg, png)
    return Outcome([table, summary, svg, png], result, notes, answers.problems)
