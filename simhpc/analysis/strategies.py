"""How alike models are that differ in one kind of thing only (docs/analyses.md, "Training strategies").

A pair of models differs in its initialisation, its hyper-parameters, its training regime or its architecture. Of each
kind: the mean SAT of its pairs, an interval from resampling models, and a test against the pairs that differ in
architecture, which permutes models (Mantel 1967), since pairs that share a model are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis.resampling import interval, model_weights, pair_means
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

KINDS = ("initialisation", "hyper-parameters", "regime", "architecture")
"""From the smallest difference to the largest. The last one is what the others are compared with."""
REFERENCE = KINDS[-1]
ALL = "all"
"""The group of all pairs of a kind."""

_SIGNIFICANT = 0.05
_MOST_ENUMERATED = 7
"""5,040 permutations of so many models: all are tried."""
_BLOCK = 1 << 22
"""Numbers that are gathered at once."""


@dataclass(frozen=True)
class Settings:
    """How kinds are compared.

    Attributes:
        resamples: of the models, for intervals.
        permutations: of the models, for tests; all there are, if these are fewer.
        confidence: of the intervals.
        seed: of everything random.
    """

    resamples: int = 2000
    permutations: int = 9999
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Origin:
    """What a model is and where it comes from, as texts that are equal where two models agree.

    Attributes:
        name: of the architecture, for groups.
        architecture: all that makes the network and its input.
        regime: pretrained weights' tag, or training here and on which images; None if nothing is known of it.
        hyper_parameters: of the training.
        weights: equal only if two models have the same weights; None if they have weights of their own.
    """

    name: str
    architecture: str
    regime: str | None
    hyper_parameters: str
    weights: str | None


@dataclass(frozen=True)
class Group:
    """Pairs of one kind that belong together.

    Attributes:
        pairs: (N, N), symmetric, false on the diagonal.
    """

    name: str
    kind: str
    pairs: Mask


@dataclass(frozen=True)
class Row:
    """What was found of a group, or of all pairs of a kind (`group` is `ALL`).

    Attributes:
        n_models: that have a pair in it with known SAT.
        n_pairs: with known SAT.
        n_unknown: pairs without.
        mean_sat: NaN without any.
        ci_low, ci_high: its interval over models; NaN as of `resampling.interval`.
        minus_architecture: mean SAT minus that of the pairs that differ in architecture; of whole kinds only, else NaN.
        p_value: of the permutation test whether that is 0, two-sided; NaN where there is nothing to compare.
        p_smallest: the smallest p that the test could have given, had the similarities been as clear as can be.
    """

    kind: str
    group: str
    n_models: int
    n_pairs: int
    n_unknown: int
    mean_sat: float
    ci_low: float
    ci_high: float
    minus_architecture: float
    p_value: float
    p_smallest: float


@dataclass(frozen=True)
class Strategies:
    """Rows by kind, that of the whole kind first; and what needs a word, one line each."""

    rows: list[Row]
    notes: list[str]


def declared(groups: Sequence[tuple[str, str, Sequence[int]]], n: int) -> list[Group]:
    """Groups of a study: name, kind and positions of the members, every two of which are a pair.

    Args:
        n: number of all models.
    """
    found = []
    for name, kind, members in groups:
        pairs = np.zeros((n, n), dtype=bool)
        pairs[np.ix_(members, members)] = True
        np.fill_diagonal(pairs, val=False)
        found.append(Group(name, kind, pairs))
    return found


def derived(origins: Sequence[Origin], names: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Groups by what is known of N models: a pair is of the first kind, from the largest down, in which it differs.

    Pairs with the same weights, and pairs of one architecture of which nobody knows how they were trained, are of none.

    Args:
        names: of the models, for the notes.

    Returns:
        one group for each architecture and kind (those that differ in architecture are one group), and notes.
    """
    n = len(origins)
    kind_of = np.full((n, n), "", dtype=object)
    same_weights: list[str] = []
    unknown: list[str] = []
    for a, b in itertools.combinations(range(n), 2):
        kind = _kind(origins[a], origins[b])
        if kind in KINDS:
            kind_of[a, b] = kind_of[b, a] = kind
        else:
            (same_weights if kind == "same weights" else unknown).append(f"{names[a]} / {names[b]}")
    notes = []
    if same_weights:
        notes.append(f"the same weights, so of no kind: {_listed(same_weights)}")
    if unknown:
        notes.append(
            "the same architecture, and nothing says how they were trained, so of no kind (declare [[strategies]] in "
            f"the study): {_listed(unknown)}"
        )
    groups = []
    architectures = list(dict.fromkeys(origin.architecture for origin in origins))
    titles = [next(o.name for o in origins if o.architecture == each) for each in architectures]
    for kind in KINDS[:-1]:
        for architecture, title in zip(architectures, titles, strict=True):
            has = np.array([origin.architecture == architecture for origin in origins])
            pairs = (kind_of == kind) & has[:, None] & has
            if pairs.any():
                # Two networks of one name, of other sizes, say: the first of the models tells which is meant.
                first = names[int(np.flatnonzero(has)[0])]
                groups.append(Group(title if titles.count(title) == 1 else f"{title} ({first})", kind, pairs))
    if (kind_of == REFERENCE).any():
        groups.append(Group(ALL, REFERENCE, kind_of == REFERENCE))
    return groups, notes


def _kind(one: Origin, two: Origin) -> str:
    if one.architecture != two.architecture:
        return REFERENCE
    if one.weights is not None and one.weights == two.weights:
        return "same weights"
    if one.regime is None or two.regime is None:
        return "unknown"
    if one.regime != two.regime:
        return "regime"
    return "hyper-parameters" if one.hyper_parameters != two.hyper_parameters else "initialisation"


def strategies(similarity: Matrix, groups: Sequence[Group], settings: Settings) -> Strategies:
    """Mean similarity of each kind and group.

    Args:
        similarity: (N, N), symmetric, NaN unknown; the diagonal is not used.
        groups: their pairs are of one kind each; groups of one kind may overlap.

    Raises:
        AnalysisError: no pair of any kind has a known similarity.
    """
    known = np.isfinite(similarity) & ~np.eye(len(similarity), dtype=bool)
    of_kind = {
        kind: np.any([group.pairs for group in groups if group.kind == kind], axis=0)
        for kind in KINDS
        if any(group.kind == kind for group in groups)
    }
    if not any((pairs & known).any() for pairs in of_kind.values()):
        raise AnalysisError("no pair of models with known similarity is of any kind")
    reference = of_kind.get(REFERENCE)
    rows, notes = [], []
    for kind, pairs in of_kind.items():
        compared = (np.nan, np.nan, np.nan)
        if kind != REFERENCE and reference is not None and (pairs & known).any() and (reference & known).any():
            compared = permutation_test(similarity, pairs, reference, settings, name=kind)
            if compared[2] > _SIGNIFICANT:
                notes.append(
                    f"{kind}: so few models can be permuted in so few ways that p cannot be below {compared[2]:.2g}: "
                    "the test could find nothing"
                )
        rows.append(_row(similarity, pairs, kind, ALL, compared, settings))
        own = [group for group in groups if group.kind == kind]
        if [group.name for group in own] != [ALL]:
            rows += [_row(similarity, g.pairs, kind, g.name, (np.nan,) * 3, settings) for g in own]
    if reference is None:
        notes.append("no pair differs in architecture: there is nothing to compare the others with")
    elif len(of_kind) == 1:
        notes.append("all pairs differ in architecture: there is nothing to compare them with")
    if few := [row.kind for row in rows if row.group == ALL and np.isfinite(row.ci_low) and row.n_models < _FEW_MODELS]:
        notes.append(f"intervals of fewer than {_FEW_MODELS} models are too narrow: {', '.join(few)}")
    return Strategies(rows, notes)


_FEW_MODELS = 12
"""From so many on, a 95 % interval held the truth in nine of ten simulations or more (docs/analyses.md)."""


def _row(
    similarity: Matrix, pairs: Mask, kind: str, group: str, compared: tuple[float, ...], settings: Settings
) -> Row:
    known = pairs & np.isfinite(similarity)
    values = similarity[np.triu(known)]
    low, high = interval_of(similarity, pairs, settings, name=f"{kind} {group}")
    return Row(
        kind=kind,
        group=group,
        n_models=int(known.any(axis=0).sum()),
        n_pairs=len(values),
        n_unknown=int(np.triu(pairs & ~known).sum()),
        mean_sat=float(values.mean()) if len(values) else np.nan,
        ci_low=low,
        ci_high=high,
        minus_architecture=compared[0],
        p_value=compared[1],
        p_smallest=compared[2],
    )


def interval_of(similarity: Matrix, pairs: Mask, settings: Settings, *, name: str) -> tuple[float, float]:
    """Percentile bootstrap of the mean SAT of these pairs, over the models that have one (see `resampling`).

    Args:
        name: what seeds the resamples, beside the seed.
    """
    known = pairs & np.isfinite(similarity)
    models = np.flatnonzero(known.any(axis=0))
    if not len(models):
        return np.nan, np.nan
    own = np.ix_(models, models)
    weights = model_weights(len(models), settings.resamples, derive_seed(settings.seed, "strategies", name))
    drawn = pair_means(weights, np.where(known, similarity, 0.0)[own], known[own])
    return interval(drawn, settings.confidence)


def permutation_test(
    similarity: Matrix, pairs: Mask, reference: Mask, settings: Settings, *, name: str
) -> tuple[float, float, float]:
    """Is the mean SAT of `pairs` another than that of `reference`? By permuting models, two-sided.

    The models that have a pair in either are permuted together with their similarities, while the pairs stay where they
    are. If it makes no difference which models are the pairs, every arrangement is as likely as the one there is.

    Args:
        name: what seeds the permutations, beside the seed.

    Returns:
        the difference of the means; p, the share of permutations that give at least as large a one, the unpermuted one
        among them; and the share of permutations that change nothing, which p cannot be below.
    """
    models = np.flatnonzero((pairs | reference).any(axis=0))
    own, n = np.ix_(models, models), len(models)
    known = np.isfinite(similarity[own]) & ~np.eye(n, dtype=bool)
    values = np.where(known, similarity[own], 0.0)
    random = np.random.default_rng(derive_seed(settings.seed, "strategies", "permutations", name))
    is_exact = n <= _MOST_ENUMERATED and math.factorial(n) <= settings.permutations
    permuted = (
        np.array(list(itertools.permutations(range(n))))
        if is_exact
        else np.stack([np.arange(n), *(random.permutation(n) for _ in range(settings.permutations))])
    )
    # The pairs of both and the rest are all pairs, whose sum no permutation changes: the most numerous need no sum.
    parts = [pairs[own], reference[own], ~(pairs | reference)[own]]
    summed = sorted(range(3), key=lambda part: int(parts[part].sum()))[:2]
    codes = random.integers(0, 2**63, size=(2, n, n), dtype=np.uint64)
    sums, counts = np.empty((3, len(permuted))), np.empty((3, len(permuted)), dtype=np.int64)
    code = np.zeros(len(permuted), dtype=np.uint64)
    for part, each in zip(summed, codes, strict=True):
        i, j = np.nonzero(np.triu(parts[part], k=1))
        rows = max(1, _BLOCK // max(1, len(i)))
        for start in range(0, len(permuted), rows):
            block = slice(start, start + rows)
            where = permuted[block, i] * n + permuted[block, j]
            sums[part, block] = values.take(where).sum(axis=1)
            counts[part, block] = known.take(where).sum(axis=1)
            # An arrangement is known by the sum of random numbers of its pairs (Zobrist 1970).
            code[block] += (each ^ each.T).take(where).sum(axis=1, dtype=np.uint64)
    (largest,) = {0, 1, 2} - set(summed)
    sums[largest] = values.sum() / 2.0 - sums[summed].sum(axis=0)
    counts[largest] = known.sum() // 2 - counts[summed].sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where((counts[:2] > 0).all(axis=0), sums[0] / counts[0] - sums[1] / counts[1], np.nan)
    # The first is the identity, in either case. An arrangement without a known pair on one side cannot be compared.
    usable = np.isfinite(difference)
    found, n_usable = float(difference[0]), int(usable.sum())
    as_large = np.abs(difference[usable]) >= abs(found) - 1e-9 * max(1.0, abs(found))
    return found, float(as_large.sum() / n_usable), float((code[usable] == code[0]).sum() / n_usable)


def _listed(pairs: Sequence[str]) -> str:
    return ", ".join(pairs[:10]) + (f" and {len(pairs) - 10} more" if len(pairs) > 10 else "")
