"""Gradient cosine and linear CKA of a run, and what of them is noise, from what the representations stage stored."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from simhpc.analysis import reliability
from simhpc.analysis import representations as analysis
from simhpc.analysis.reliability import Outcomes
from simhpc.analysis.representations import Measure
from simhpc.errors import AnalysisError, BadFileError, MissingInputError
from simhpc.offline.found_outcomes import gathered_of
from simhpc.offline.inputs import Inputs, Outcome, Settings, made_from, without_root
from simhpc.report import representations as report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import write_json
from simhpc.rundir import Run, RunDir
from simhpc.seeds import derive_seed
from simhpc.stages.progress import read_progress
from simhpc.stages.representations import PASSES_PER_GRADIENT, STAGE, usable_header
from simhpc.store import representations, similarity
from simhpc.store.representations import Header

NamedMeasure = tuple[NDArray[np.float64], NDArray[np.float64] | None, int, float, str]
"""Values (M, M), standard errors (M, M), number of images, reliability, and what they cost, in words."""

_GRADIENTS_BYTES = 256 << 20
"""Of gradients of all models that are in memory at once."""

_HOW = "simhpc run STUDY --stages representations (or simhpc submit representations STUDY) stores what it needs"


@dataclass(frozen=True)
class _Stored:
    """The models whose files can be used.

    Attributes:
        kept: their positions among the names asked for.
        headers: of each.
        notes: which others have nothing stored.
        problems: whose file cannot be used, and why.
    """

    kept: list[int]
    headers: list[Header]
    notes: list[str]
    problems: list[str]


def representation_measures(run: Run, names: Sequence[str], seed: int) -> dict[str, NamedMeasure]:
    """What else is known of how alike models are, for comparison with measures of predictions.

    Args:
        names: M models of the run.
        seed: of batches of images.

    Returns:
        `gradient_cosine` and `linear_cka`, NaN for models of which nothing is stored; empty if that is all but one.

    Raises:
        BadFileError: what is stored does not match its checksum.
    """
    stored = _stored(run, names)
    if len(stored.kept) < 2:
        return {}
    found = _computed_of(run, names, stored, seed)
    first = stored.headers[0]
    costs = {
        "gradient_cosine": f"{PASSES_PER_GRADIENT * first.n_gradients} gradient passes per model "
        f"({first.n_gradients} images, each with two noisy copies)",
        "linear_cka": f"{first.n_images} forward passes per model",
    }
    sizes = f"; both store {_mean_bytes(run, names, stored) / 2**20:.1f} MiB per model"
    measures = {"gradient_cosine": found.gradient_cosine, "linear_cka": found.cka}

    def placed(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = np.full((len(names), len(names)), np.nan)
        whole[np.ix_(stored.kept, stored.kept)] = matrix
        return whole

    return {
        name: (
            placed(measure.values),
            placed(measure.std_errors),
            measure.n_images,
            analysis.noise(measure).reliability,
            costs[name] + sizes,
        )
        for name, measure in measures.items()
    }


def analyze_representations(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """How noisy both are beside SAT: `representations.csv`, `.json`, `representation_pairs.csv`, the figure."""
    run = inputs.run
    assert run is not None
    stored = _stored(run, inputs.names)
    if not stored.kept and not stored.problems:
        return Outcome([], {}, [f"not done: {_HOW}"])
    if len(stored.kept) < 2:
        raise AnalysisError(
            f"of two models or more something has to be stored: {'; '.join([*stored.problems, *stored.notes])}. {_HOW}"
        )
    names = [inputs.names[position] for position in stored.kept]
    found = _computed_of(run, inputs.names, stored, settings.seed)
    sat = _sat(run, inputs, stored.kept, settings.seed)
    measures = {"gradient_cosine": found.gradient_cosine, "linear_cka": found.cka}
    noises = {name: analysis.noise(measure) for name, measure in {**measures, "sat": sat}.items()}
    rows = [
        _row(run, name, header, found.noise_cosines[position], int(found.n_zero[position]))
        for position, (name, header) in enumerate(zip(names, stored.headers, strict=True))
    ]
    notes = [*stored.notes]
    without = [name for name, header in zip(names, stored.headers, strict=True) if header.n_features == 0]
    if without:
        notes.append(f"CKA is unknown for models whose penultimate features are not known: {', '.join(without)}")
    result = {
        **made_from(inputs),
        "settings": {"seed": settings.seed, "stored": run.study.representations.model_dump(mode="json")},
        "models": names,
        **report.summary(noises, rows, found.cosines),
        "notes": [*(without_root(run, problem) for problem in stored.problems), *notes],
    }
    models, pairs = out.analysis("representations.csv"), out.analysis("representation_pairs.csv")
    summary, svg, png = (
        out.analysis("representations.json"),
        out.figure("representations.svg"),
        out.figure("representations.png"),
    )
    report.write_models(rows, models)
    report.write_pairs(names, found.cosines, found.gradient_cosine, found.cka, pairs)
    write_json(summary, result)
    write_svg_and_png(report.draw(measures, noises, sat, found.cosines, rows, title=inputs.title), svg, png)
    return Outcome([models, pairs, summary, svg, png], result, notes, stored.problems)


def _stored(run: Run, names: Sequence[str]) -> _Stored:
    found = _Stored([], [], [], [])
    for position, name in enumerate(names):
        try:
            header = usable_header(run, run.study.model(name))
        except MissingInputError:
            continue
        except BadFileError as error:
            found.problems.append(f"left out: {error}")
            continue
        found.kept.append(position)
        found.headers.append(header)
    missing = [name for name in names if not run.dir.representations(name).exists()]
    if missing and found.kept:
        found.notes.append(f"left out, as nothing is stored of them: {', '.join(missing)}")
    return found


@dataclass(frozen=True)
class _Computed:
    """Of K models, in the order of the files.

    Attributes:
        cosines: float32 (n, K, K).
        noise_cosines: float32 (K, n).
        n_zero: (K,), images without a gradient.
    """

    cosines: NDArray[np.float32]
    gradient_cosine: Measure
    cka: Measure
    noise_cosines: NDArray[np.float32]
    n_zero: NDArray[np.int64]


def _computed_of(run: Run, names: Sequence[str], stored: _Stored, seed: int) -> _Computed:
    keys = tuple(names[position] for position in stored.kept)
    return _computed(run.dir, keys, tuple(header.content_sha256 for header in stored.headers), seed)


# Two analyses want the same: seconds to a minute of work.
@functools.lru_cache(maxsize=1)
def _computed(where: RunDir, keys: tuple[str, ...], _hashes: tuple[str, ...], seed: int) -> _Computed:
    paths = [where.representations(key) for key in keys]
    small = [representations.load_gradients(path) for path in paths]
    for path, each in zip(paths, small, strict=True):
        if not np.array_equal(each.index, small[0].index):
            raise BadFileError(f"{path} has gradients of other images than {paths[0]}: delete it and run again")
    most_bytes = _GRADIENTS_BYTES // len(paths)
    gradients = [representations.iterate_gradients(path, most_bytes) for path in paths]
    cosines = analysis.gradient_cosines(zip(*gradients, strict=True))
    return _Computed(
        cosines,
        analysis.mean_cosine(cosines, derive_seed(seed, "gradient_cosine")),
        analysis.linear_cka(map(representations.load_features, paths), derive_seed(seed, "linear_cka")),
        np.stack([each.noise_cosines for each in small]),
        np.array([np.count_nonzero(each.norms == 0) for each in small]),
    )


def _sat(run: Run, inputs: Inputs, kept: Sequence[int], seed: int) -> Measure:
    """SAT of these models; a standard error is what a normal interval of that width would have."""
    matrix = similarity.load(run.dir.similarity)
    width = 2.0 * norm.ppf(0.5 + matrix.confidence / 2.0)
    at = [matrix.models.index(inputs.names[position]) for position in kept]
    errors = ((matrix.ci_high - matrix.ci_low) / width)[np.ix_(at, at)]
    names = [inputs.names[position] for position in kept]
    return Measure(inputs.sat[np.ix_(kept, kept)], errors, matrix.n_images, sat_halves(run, names, seed))


def sat_halves(run: Run, names: Sequence[str], seed: int) -> NDArray[np.float64]:
    """SAT of K models from halves of the images: (S, 2, K, K), as in `Measure`.

    The same seed gives the halves that "How sure is it" has, and so the same reliability.
    """
    gathered = gathered_of(run)
    keys, k = [model.key for model in run.study.models], len(names)
    at = [keys.index(name) for name in names]
    if gathered.n_images < 2:
        return np.empty((0, 2, k, k))
    cells = np.ix_(at, at)
    outcomes = Outcomes(gathered.n_images, gathered.correct[at], gathered.fooled[cells], gathered.measured[cells])
    options = reliability.Settings(floor_percent=run.study.similarity.floor_percent, seed=seed)
    both = np.stack(reliability.halves(outcomes, options), axis=1)
    found = np.full((len(both), 2, k, k), np.nan)
    found[:, :, *np.triu_indices(k, 1)] = both
    return found


def _row(run: Run, name: str, header: Header, noise_cosines: NDArray[np.float32], n_zero: int) -> report.ModelRow:
    progress = read_progress(run.dir.progress(STAGE, name))
    took_s = float("nan")
    if progress is not None and progress.state == "finished":
        took_s = progress.updated_unix_s - progress.started_unix_s
    return report.ModelRow(
        model=name,
        features_from=header.features_from,
        n_features=header.n_features,
        noise_cosines=noise_cosines,
        n_zero=n_zero,
        forward_passes=header.forward_passes,
        gradient_passes=header.gradient_passes,
        stored_bytes=run.dir.representations(name).stat().st_size,
        elapsed_s=took_s,
    )


def _mean_bytes(run: Run, names: Sequence[str], stored: _Stored) -> float:
    return float(np.mean([run.dir.representations(names[p]).stat().st_size for p in stored.kept]))
