"""SAT beside other measures of the same models: the joint of `analysis.measures` and `report.measures`."""

from __future__ import annotations

import time

import numpy as np

from simhpc.analysis import measures as measuring
from simhpc.analysis.measures import Cost, Measure
from simhpc.analysis.reliability import spearman_brown
from simhpc.analysis.representations import correlation_of_halves
from simhpc.analysis.similarity import PairCounts
from simhpc.errors import AnalysisError, BadFileError
from simhpc.offline.clean_answers import CleanAnswers, clean_answers
from simhpc.offline.inputs import Inputs, Outcome, Settings, made_from, without_root
from simhpc.offline.representations import representation_measures, sat_halves
from simhpc.report import measures as measures_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import write_json
from simhpc.rundir import Run, RunDir
from simhpc.stages.representations import PASSES_PER_GRADIENT
from simhpc.store import similarity


def analyze_measures(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """What SAT adds: `measures.csv`, `measure_correlations.csv`, `measures.json` and the figure."""
    assert inputs.run is not None
    options = measuring.Settings(seed=settings.seed)
    answers = clean_answers(inputs.run, inputs.names)
    measures, seconds = _measured(inputs.run, inputs, answers, options)
    problems = [*answers.problems]
    try:
        inside = representation_measures(inputs.run, answers.names, settings.seed)
    except (AnalysisError, BadFileError) as error:
        inside = {}
        problems.append(f"gradient cosine and CKA are left out: {error}")
    for name, (value, std_error, n_images, reliability, note) in inside.items():
        cost = _INSIDE[name]
        measures.append(Measure(name, value, std_error, "at most 1", True, n_images, cost, note, reliability))
    found = measuring.compare(measures, options)
    result = {
        **made_from(inputs),
        **measures_report.summary(measures, found, answers.names, options),
        "models": answers.names,
        "notes": [*(without_root(inputs.run, problem) for problem in problems), *found.notes],
    }
    table, correlations, summary = (
        out.analysis(name) for name in ("measures.csv", "measure_correlations.csv", "measures.json")
    )
    svg, png = out.figure("measures.svg"), out.figure("measures.png")
    measures_report.write_table(measures, answers.names, table)
    measures_report.write_correlations(found, correlations)
    write_json(summary, result)
    families = [inputs.families[position] for position in answers.kept]
    write_svg_and_png(measures_report.draw(measures, found, families, title=inputs.title), svg, png)
    # Not in the files: these are the same each time.
    took = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    notes = [*found.notes, f"computed from what is stored in {took}"]
    return Outcome([table, correlations, summary, svg, png], result, notes, problems)


_INSIDE = {"gradient_cosine": Cost(0, PASSES_PER_GRADIENT), "linear_cka": Cost(1)}
"""What the measures that look inside networks cost, of each image that they are made from."""


def _measured(
    run: Run, inputs: Inputs, answers: CleanAnswers, options: measuring.Settings
) -> tuple[list[Measure], dict[str, float]]:
    """SAT and the measures of clean answers, and the seconds that each took."""
    kept = np.ix_(answers.kept, answers.kept)

    def transferability() -> Measure:
        matrix = similarity.load(run.dir.similarity)
        counts = PairCounts(matrix.n_common[kept], matrix.n_fooled[kept], matrix.n_both[kept])
        halves = sat_halves(run, answers.names, options.seed)[:, :, *np.triu_indices(len(answers.names), k=1)]
        reliability = spearman_brown(correlation_of_halves(halves))
        return measuring.transferability(
            inputs.sat[kept], counts, matrix.floor_percent, _cost(run), reliability, options
        )

    def divergence() -> Measure:
        m, n = answers.predicted.shape
        images = measuring.divergence_images(m, n, answers.num_classes, options.seed)
        return measuring.divergence(answers.probabilities(), images, options)

    measures, seconds = [], {}
    for work in (
        transferability,
        lambda: measuring.error_consistency(answers.right, options),
        lambda: measuring.disagreement(answers.predicted, options),
        divergence,
    ):
        started_s = time.monotonic()
        measures.append(work())
        seconds[measures[-1].name] = time.monotonic() - started_s
    return measures, seconds


def _cost(run: Run) -> Cost:
    """Of SAT: clean images, the attack, the stored ones (each restart's too, to choose); and both directions shown."""
    attack = run.study.attack
    assert attack.steps is not None
    to_choose = attack.restarts if attack.restarts > 1 else 0
    return Cost(2 + to_choose, attack.steps * attack.restarts, 2)
