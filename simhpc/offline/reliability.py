"""`simhpc analyze`: what other images, or another attack, would change in a run's matrix."""

from __future__ import annotations

import numpy as np

from simhpc.analysis import reliability as analysis
from simhpc.analysis.reliability import Neighbours, Outcomes
from simhpc.analysis.similarity import count_pairs, sat_matrix
from simhpc.errors import AnalysisError
from simhpc.offline.found_clusters import clusters_of
from simhpc.offline.found_outcomes import gathered_of
from simhpc.offline.inputs import Inputs, Other, Outcome, Settings, made_from
from simhpc.report import reliability as reliability_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.reliability import Against, Reliability
from simhpc.report.tables import write_json
from simhpc.rundir import Run, RunDir

_MOST_NAMED = 10


def analyze_reliability(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """How sure it is: `reliability.csv`, `reliability_widths.csv`, `against.csv`, `reliability.json` and the figure."""
    assert inputs.run is not None
    similarity = inputs.run.study.similarity
    options = analysis.Settings(
        floor_percent=similarity.floor_percent, confidence=similarity.confidence, seed=settings.seed
    )
    outcomes = _outcomes(inputs.run, inputs)
    halves = analysis.halves(outcomes, options)
    split_half = analysis.split_half(*halves)
    weights = analysis.resampled_weights(outcomes.n_images, options.resamples, options.seed)
    resampled = analysis.resampled_sat(outcomes, weights, options.floor_percent)
    near = analysis.neighbours(inputs.sat, resampled, outcomes.n_images)
    m, notes = len(inputs.names), []
    cluster: list[int | None] = [None] * m
    jaccard, rand = np.full(m, np.nan), np.full(0, np.nan)
    try:
        found_clusters = clusters_of(inputs, settings)
    except AnalysisError as error:
        notes.append(f"clusters are unknown: {error}")
    else:
        kept, labels = found_clusters.kept, found_clusters.labels
        for position, label in zip(kept.tolist(), labels.tolist(), strict=True):
            cluster[position] = label
        drawn = resampled[: options.cluster_resamples]
        jaccard[kept], rand = analysis.cluster_jaccard(labels, kept, drawn, m, seed=options.seed)
    found = Reliability(
        n_images=outcomes.n_images,
        widths=analysis.widths(outcomes, options),
        split_half=split_half,
        neighbours=near,
        cluster=cluster,
        jaccard=jaccard,
        rand=rand,
        against=[_against(inputs, other, options) for other in inputs.against],
    )
    notes += [note for note in (_unsure(near, inputs.names, outcomes.n_images), _kept(found)) if note]
    result = {**made_from(inputs), **reliability_report.summary(found, inputs.names, options), "notes": notes}
    names = ("reliability.csv", "reliability_widths.csv", "against.csv", "reliability.json")
    table, widths, against, summary = (out.analysis(name) for name in names)
    svg, png = out.figure("reliability.svg"), out.figure("reliability.png")
    reliability_report.write_table(found, inputs.sat, inputs.names, table)
    reliability_report.write_widths(found, widths)
    write_json(summary, result)
    write_svg_and_png(
        reliability_report.draw(found, halves, inputs.names, inputs.families, title=inputs.title), svg, png
    )
    files = [table, widths, summary, svg, png]
    if inputs.against:
        reliability_report.write_against(found, against)
        files.append(against)
    else:
        against.unlink(missing_ok=True)  # of another time
    return Outcome(files, result, notes)


def _outcomes(run: Run, inputs: Inputs) -> Outcomes:
    """The run's per-image outcomes, after a look whether the matrix is of them."""
    gathered = gathered_of(run)
    if gathered.n_images < 2:
        raise AnalysisError(f"it takes the predictions of the run: {'; '.join(gathered.problems[:3])}")
    counts = count_pairs(gathered.correct, gathered.fooled, gathered.measured)
    again = sat_matrix(counts, run.study.similarity.floor_percent)
    if again.shape != inputs.sat.shape or not np.allclose(again, inputs.sat, rtol=1e-9, equal_nan=True):
        raise AnalysisError("the matrix was made of other predictions than lie here now: run `simhpc aggregate`")
    return Outcomes(gathered.n_images, gathered.correct, gathered.fooled, gathered.measured)


def _against(inputs: Inputs, other: Other, options: analysis.Settings) -> Against:
    shared = [name for name in inputs.names if name in other.names]
    ours, theirs = ([names.index(name) for name in shared] for names in (inputs.names, other.names))
    try:
        found = analysis.agreement(inputs.sat[np.ix_(ours, ours)], other.sat[np.ix_(theirs, theirs)], options)
    except AnalysisError as error:
        raise AnalysisError(f"--against {other.title}: {error}") from None
    return Against(other.title, other.differences, found)


def _unsure(near: Neighbours, names: list[str], n_images: int) -> str:
    """Whose nearest model other images might change, and how many would settle it."""
    unsure = np.flatnonzero(near.share < 0.95)
    if not len(unsure):
        return ""
    unsure = unsure[np.argsort(near.share[unsure], kind="stable")]
    words = []
    for position in unsure[:_MOST_NAMED].tolist():
        needed = near.images_needed[position]
        many = f"about {_rounded(max(needed, n_images))} images" if np.isfinite(needed) else "a tie"
        words.append(f"{names[position]} ({names[near.nearest[position]]} in {near.share[position]:.0%}, {many})")
    more = f" and {len(unsure) - _MOST_NAMED} more" if len(unsure) > _MOST_NAMED else ""
    return (
        f"with {n_images} images, the nearest of {len(unsure)} of {int(np.isfinite(near.share).sum())} model(s) is not "
        f"certain at 95 %: {', '.join(words)}{more}"
    )


def _rounded(value: float) -> str:
    """Two significant digits: more are not known."""
    return f"{int(float(f'{value:.1e}')):,}"


def _kept(found: Reliability) -> str:
    """Whose clusters other images would change, by Hennig's rule of thumb."""
    known = np.isfinite(found.jaccard)
    unstable = sorted({found.cluster[k] or 0 for k in np.flatnonzero(known & (found.jaccard < _STABLE)).tolist()})
    if not unstable:
        return ""
    listed = ", ".join(map(str, unstable))
    return f"with other images, clusters {listed} would lose or gain more than a quarter of the company of some models"


_STABLE = 0.75
"""Hennig 2007: below, a cluster should not be believed in."""
