"""What a good teacher has: distilled accuracy against similarity to the student and against the teacher's accuracy.

Method and readings: docs/analyses.md, "Distillation". What is resampled are teachers: each is one observation, however
many students it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from simhpc.analysis.resampling import interval
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Vector = NDArray[np.float64]

Property = Literal["similarity", "teacher_accuracy"]
Method = Literal["pearson", "spearman"]
Group = Literal["all", "same", "different"]

PROPERTIES: tuple[Property, Property] = ("similarity", "teacher_accuracy")
METHODS: tuple[Method, Method] = ("pearson", "spearman")
GROUPS: tuple[Group, Group, Group] = ("all", "same", "different")

_FEWEST_TEACHERS = 3
_FEWEST_FOR_INTERVAL = 5
"""Of fewer, most resamples are of two different teachers or one, whose correlation is 1, -1 or unknown."""
_FEW_TEACHERS = 15
"""Below this a note says how little so few can show."""


@dataclass(frozen=True)
class Settings:
    """How sure the analysis wants to be.

    Attributes:
        confidence: of all intervals.
        resamples: of the teachers.
        seed: of these.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Teachers:
    """The N teachers of one student. NaN: unknown.

    Attributes:
        similarity: (N,), SAT of the teacher and the undistilled student.
        accuracy: (N,), of the teacher, a fraction.
        distilled: (N, R), accuracy of each of its students, fractions; NaN where it has fewer than R.
        same_base: (N,), 1 if teacher and student have the same base architecture, 0 if not.
        undistilled: (U,), accuracy of each undistilled student, fractions.
    """

    similarity: Vector
    accuracy: Vector
    distilled: Vector
    same_base: Vector
    undistilled: Vector

    @property
    def means(self) -> Vector:
        """(N,), mean accuracy of each teacher's students."""
        return _means(self.distilled)


@dataclass(frozen=True)
class Correlation:
    """Of distilled accuracy with a property of the teacher, over the teachers of a group.

    Attributes:
        given: the other property, whose linear share is taken out of both (partial correlation); None: nothing is.
        n: teachers.
        r: in [-1, 1]; NaN if there are too few of them or one of the two does not vary.
        ci_low, ci_high: percentile bootstrap over teachers; NaN without one (see `resampling.interval`).
    """

    group: Group
    property: Property
    given: Property | None
    method: Method
    n: int
    r: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Gain:
    """Distilled minus undistilled accuracy, meaned over the teachers of a group; fractions.

    Attributes:
        ci_low, ci_high: percentile bootstrap over teachers; the undistilled accuracy is taken as known.
    """

    group: Group
    n: int
    mean: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Result:
    """What a distillation shows.

    Attributes:
        correlations: by group, then property, then method; each plain and then partial.
        gains: by group.
        std_between_teachers: of the teachers' mean distilled accuracies; NaN with fewer than 2.
        std_between_repeats: of students that differ in their initialisation alone, distilled from one teacher (pooled
            over teachers) or undistilled; NaN if nothing was repeated.
        notes: what to beware of.
    """

    correlations: list[Correlation]
    gains: list[Gain]
    std_between_teachers: float
    std_between_repeats: float
    notes: list[str]


def distillation(teachers: Teachers, settings: Settings = Settings()) -> Result:
    """Correlate, with the intervals that resampling the teachers gives.

    Raises:
        AnalysisError: no teacher has a student whose accuracy is known.
    """
    known = np.isfinite(teachers.means)
    if not known.any():
        raise AnalysisError("no student has been distilled yet")
    values = np.stack([teachers.means, teachers.similarity, teachers.accuracy])[:, known]
    same_base, undistilled = teachers.same_base[known], float(_means(teachers.undistilled[None])[0])
    members = {"all": np.full(values.shape[1], True), "same": same_base == 1, "different": same_base == 0}
    correlations, gains = [], []
    for group in GROUPS:
        of_group = values[:, members[group]]
        # The same teachers in every comparison, so that what differs is what is compared.
        complete = of_group[:, np.isfinite(of_group).all(axis=0)]
        correlations += _correlations(group, complete, settings)
        gains.append(_gain(group, of_group[0] - undistilled, settings))
    between, repeats = _spread(values[0]), _std_between_repeats(teachers)
    return Result(correlations, gains, between, repeats, _notes(teachers, known, correlations, between, repeats))


def correlation(x: Vector, y: Vector, method: Method, given: Vector | None = None) -> Vector:
    """Correlation along the last axis, plain or partial of first order.

    Args:
        x, y, given: (..., N).
        method: Spearman's is Pearson's of the ranks, equal values sharing their mean rank.

    Returns:
        (...,) in [-1, 1]; NaN where one of them does not vary, or nothing is left once `given` is taken out.
    """
    if method == "spearman":
        x, y = rankdata(x, axis=-1), rankdata(y, axis=-1)
        given = None if given is None else rankdata(given, axis=-1)
    plain = _pearson(x, y)
    if given is None:
        return plain
    x_given, y_given = _pearson(x, given), _pearson(y, given)
    left = (1.0 - x_given**2) * (1.0 - y_given**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        partial = np.where(left > 1e-12, (plain - x_given * y_given) / np.sqrt(left), np.nan)
    return np.clip(partial, -1.0, 1.0)


def _pearson(x: Vector, y: Vector) -> Vector:
    varies = (np.ptp(x, axis=-1) > 0) & (np.ptp(y, axis=-1) > 0)
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    sizes = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(varies & (sizes > 0), (x * y).sum(axis=-1) / sizes, np.nan)
    return np.clip(r, -1.0, 1.0)


def _correlations(group: Group, values: Vector, settings: Settings) -> list[Correlation]:
    n = values.shape[1]
    of = dict(zip(("distilled", *PROPERTIES), values, strict=True))
    draws = _resamples(n, settings, group)
    found = []
    for name, other in zip(PROPERTIES, reversed(PROPERTIES), strict=True):
        for given in (None, other):
            for method in METHODS:
                control = None if given is None else of[given]
                # A partial correlation of three teachers is 1 or -1 whatever they are.
                enough = n >= _FEWEST_TEACHERS + (given is not None)
                r = float(correlation(of["distilled"], of[name], method, control)) if enough else np.nan
                low = high = np.nan
                if np.isfinite(r) and n >= _FEWEST_FOR_INTERVAL:
                    drawn = None if control is None else control[draws]
                    resampled = correlation(of["distilled"][draws], of[name][draws], method, drawn)
                    low, high = interval(resampled, settings.confidence)
                found.append(Correlation(group, name, given, method, n, r, low, high))
    return found


def _gain(group: Group, gains: Vector, settings: Settings) -> Gain:
    n = len(gains)
    low = high = np.nan
    if n >= _FEWEST_FOR_INTERVAL and np.isfinite(gains).all():
        low, high = interval(gains[_resamples(n, settings, group)].mean(axis=1), settings.confidence)
    return Gain(group, n, float(gains.mean()) if n else np.nan, low, high)


def _resamples(n: int, settings: Settings, group: Group) -> NDArray[np.int64]:
    """(resamples, N) positions, drawn with replacement."""
    random = np.random.default_rng(derive_seed(settings.seed, "teachers", group))
    return random.integers(0, max(n, 1), (settings.resamples, n))


def _means(values: Vector) -> Vector:
    """Mean of what is known in each row; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1))


def _spread(values: Vector) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan


def _std_between_repeats(teachers: Teachers) -> float:
    squares = degrees = 0.0
    for row in (*teachers.distilled, teachers.undistilled):
        known = row[np.isfinite(row)]
        if len(known) > 1:
            squares += float(((known - known.mean()) ** 2).sum())
            degrees += len(known) - 1
    return float(np.sqrt(squares / degrees)) if degrees else np.nan


def _notes(
    teachers: Teachers, known: NDArray[np.bool_], correlations: list[Correlation], between: float, repeats: float
) -> list[str]:
    notes = []
    n = int(known.sum())
    if n < _FEW_TEACHERS:
        notes.append(
            f"{n} teacher(s) are few: correlations of so few vary widely by chance, and intervals of so few resampled "
            "teachers are too narrow (docs/analyses.md)"
        )
    if missing := len(known) - n:
        notes.append(f"{missing} teacher(s) have no student yet and are left out")
    if lacking := n - correlations[0].n:
        notes.append(f"{lacking} teacher(s) are left out of correlations: their similarity or accuracy is unknown")
    if not np.isfinite(teachers.undistilled).any():
        notes.append("the accuracy of the undistilled student is unknown, and with it what distillation gains")
    if not np.isfinite(teachers.same_base).any():
        notes.append("base architectures are unknown: teachers are not split by them")
    if np.isfinite(repeats) and np.isfinite(between):
        counts = np.isfinite(teachers.distilled[known]).sum(axis=1)
        # What the means of so many students would scatter by if all teachers were equal.
        chance = repeats * float(np.sqrt((1.0 / counts).mean()))
        if between < 2 * chance:
            notes.append(
                f"students of different teachers differ hardly more (std {between:.2g}) than students of one teacher "
                f"would alone (std {chance:.2g}): much of what is correlated here is chance"
            )
    elif not np.isfinite(repeats):
        notes.append("nothing was repeated: how much of the differences is chance is unknown (repeats in the study)")
    return notes
