"""Which components make two models alike: a regression of pairwise SAT on components (docs/analyses.md, "Importance").

A row of the regression is an unordered pair of different models, its target their SAT. Pairs that share a model are
not independent: what is peculiar to a model is in all its pairs. Two things follow, and both are done here. Intervals
come from resampling *models*. And scores are held out by *model*: the models are dealt into folds, a regressor is
fitted on the pairs without a model of the fold and tried on those with one or two. Leaving out pairs at random would
let it recognise models by their components and know how alike they are to others.

Of a pair with one held-out model it can still recognise the other. Where models differ in how alike they are to all
others, whatever the reason, that alone gives `value-pairs` a positive R2 (`same-different` cannot tell which models a
pair has). Therefore R2 is also given for the pairs of which both models are held out: these alone show nothing where
there is nothing, but they are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.inspection import permutation_importance
from sklearn.metrics import r2_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from simhpc.analysis.resampling import MOST_UNDEFINED, interval, model_weights, pair_means
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Codes = NDArray[np.int64]
Encoding = Literal["same-different", "value-pairs"]

_FEWEST_PAIRS = 3
_FEWEST_MODELS_HELD_OUT = 5
"""With 5 models and one held out, 6 pairs are left to fit and 4 to be tried on."""


@dataclass(frozen=True)
class Boosting:
    """Gradient boosting (Friedman 2001, scikit-learn's): squared error, exact splits.

    The defaults are the paper's as we read its appendix; they could not be checked against the authors' code.
    """

    stages: int = 500
    max_depth: int = 12
    min_samples_split: int = 4
    learning_rate: float = 0.02


@dataclass(frozen=True)
class Settings:
    """How importance is measured.

    Attributes:
        encoding: what the regressor is told of a pair: for each component whether the two share the value
            (`same-different`, the paper's), or which two values they have, in no order (`value-pairs`).
        boosting: the regressor.
        folds: parts that the models are dealt into to be held out; fewer where there are fewer models.
        repeats: permutations per component.
        resamples: of the models, for intervals.
        confidence: of the intervals.
        seed: of everything random.
    """

    encoding: Encoding = "same-different"
    boosting: Boosting = Boosting()
    folds: int = 5
    repeats: int = 10
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Importance:
    """Importance of C components; SAT is a natural logarithm of a percentage, differences of it are log ratios.

    Attributes:
        r2_in_sample: R2 on the pairs that were fitted; NaN where SAT is the same for all pairs.
        r2_held_out: R2 on pairs of which a model or both are held out; NaN where there are too few models.
        r2_both_held_out: R2 on those of which both are; NaN also where these are fewer than three.
        in_sample_mean, in_sample_std: (C,), by how much R2 falls when a component is permuted over the pairs, over
            repeats.
        held_out_mean, held_out_std: (C,), the same on the pairs of `r2_held_out`.
        n_values: int64 (C,), different values among the models.
        n_same, n_different: int64 (C,), pairs with known SAT.
        same_mean, different_mean: (C,), their mean SAT; NaN without such pairs.
        difference, ci_low, ci_high: (C,), mean SAT same minus different, and its interval over models.
        n_pairs: pairs with known SAT.
        n_unknown: pairs without, which were left out.
        folds: number of folds of models; 0 where nothing was held out.
        notes: what needs a word, one line each.
    """

    r2_in_sample: float
    r2_held_out: float
    r2_both_held_out: float
    in_sample_mean: Matrix
    in_sample_std: Matrix
    held_out_mean: Matrix
    held_out_std: Matrix
    n_values: Codes
    n_same: Codes
    n_different: Codes
    same_mean: Matrix
    different_mean: Matrix
    difference: Matrix
    ci_low: Matrix
    ci_high: Matrix
    n_pairs: int
    n_unknown: int
    folds: int
    notes: list[str]


def importance(
    similarity: Matrix, values: Sequence[Sequence[str]], columns: Sequence[str], settings: Settings
) -> Importance:
    """Importance of each component for SAT.

    Args:
        similarity: (N, N), symmetric, NaN unknown; the diagonal is not used.
        values: N rows of C values, compared as strings.
        columns: names of the C components, for the notes.

    Raises:
        AnalysisError: fewer than three pairs are known.
    """
    coded = codes(values)
    i, j = np.triu_indices(len(similarity), k=1)
    is_known = np.isfinite(similarity[i, j])
    n_unknown = int(np.count_nonzero(~is_known))
    i, j = i[is_known], j[is_known]
    if len(i) < _FEWEST_PAIRS:
        raise AnalysisError(f"it takes {_FEWEST_PAIRS} pairs of models with known similarity, there are {len(i)}")
    target = similarity[i, j]
    notes = [f"{n_unknown} pair(s) of unknown similarity were left out"] if n_unknown else []
    features = encode(coded, i, j, settings.encoding)
    n_values: Codes = coded.max(axis=0) + 1
    if constant := [name for name, n in zip(columns, n_values, strict=True) if n == 1]:
        notes.append(
            f"one value in all models, so the importance is 0 and there is nothing to compare: {', '.join(constant)}"
        )

    c = len(columns)
    r2_in_sample = r2_held_out = r2_both_held_out = np.nan
    in_sample, held_out = np.zeros((c, settings.repeats)), np.full((c, settings.repeats), np.nan)
    folds = 0
    if np.ptp(target) == 0:
        notes.append("all pairs are equally similar: there is nothing to explain, R2 is unknown")
    else:
        whole = _Whole(settings).fit(features, target)
        r2_in_sample, in_sample = _permuted(whole, features, target, settings)
        involved = np.unique(np.concatenate([i, j]))
        n_models = len(involved)
        if n_models < _FEWEST_MODELS_HELD_OUT:
            notes.append(f"{n_models} models are too few to hold some out: R2 held out is unknown")
        else:
            # Models without a known pair would leave some folds with nothing to be tried on.
            fold_of = np.full(len(similarity), -1, dtype=np.int64)
            fold_of[involved] = folds_of_models(n_models, settings.folds, settings.seed)
            by_model = _ByModel(settings, i, j, fold_of).fit(features, target)
            rows, folds = by_model.tested, len(by_model.fitted)
            r2_held_out, held_out = _permuted(by_model, features[rows], target[rows], settings)
            both = fold_of[i[rows]] == fold_of[j[rows]]
            if np.count_nonzero(both) >= _FEWEST_PAIRS and np.ptp(target[rows][both]) > 0:
                predicted = by_model.predict(features[rows])
                r2_both_held_out = float(r2_score(target[rows][both], predicted[both]))
            if r2_held_out <= 0:
                notes.append(
                    "the components do not predict the similarities of held-out models: the importance says nothing "
                    "of other models than these"
                )

    n_same, same_mean, n_different, different_mean = _means(similarity, coded)
    difference = same_mean - different_mean
    low, high = bootstrap_difference(similarity, coded, settings)
    without = np.isfinite(difference) & np.isnan(low)
    if rare := [name for name, has_none in zip(columns, without, strict=True) if has_none]:
        notes.append(
            f"more than {100 * MOST_UNDEFINED:.0f} % of the resamples of models had no pair to compare, so same minus "
            f"different has no interval: {', '.join(rare)}"
        )
    return Importance(
        r2_in_sample=r2_in_sample,
        r2_held_out=r2_held_out,
        r2_both_held_out=r2_both_held_out,
        in_sample_mean=in_sample.mean(axis=1),
        in_sample_std=in_sample.std(axis=1),
        held_out_mean=held_out.mean(axis=1),
        held_out_std=held_out.std(axis=1),
        n_values=n_values,
        n_same=n_same,
        n_different=n_different,
        same_mean=same_mean,
        different_mean=different_mean,
        difference=difference,
        ci_low=low,
        ci_high=high,
        n_pairs=len(i),
        n_unknown=n_unknown,
        folds=folds,
        notes=notes,
    )


def codes(values: Sequence[Sequence[str]]) -> Codes:
    """Values as numbers: int64 (N, C), 0 to V - 1 in each column."""
    array = np.array([list(row) for row in values])
    return np.stack([np.unique(column, return_inverse=True)[1] for column in array.T], axis=1).astype(np.int64)


def encode(coded: Codes, i: Codes, j: Codes, encoding: Encoding) -> Codes:
    """Pairs (i[p], j[p]) of models as P rows of C numbers; pair (a, b) is encoded like (b, a).

    Returns:
        int64 (P, C). `same-different`: 1 where the two share the value, else 0. `value-pairs`: the number of an
        unordered pair of values; its size means nothing.
    """
    a, b = coded[i], coded[j]
    if encoding == "same-different":
        encoded: Codes = (a == b).astype(np.int64)
    else:
        encoded = np.minimum(a, b) * (coded.max(axis=0) + 1) + np.maximum(a, b)
    return encoded


def folds_of_models(n_models: int, folds: int, seed: int) -> Codes:
    """The fold that each model is held out in: int64 (N,), sizes at most one apart, at random."""
    dealt = np.arange(n_models) % min(folds, n_models)
    return np.random.default_rng(derive_seed(seed, "importance folds")).permutation(dealt)


class _Whole:
    """One regressor of all pairs. Values are integers (P, C), one column per component in either encoding."""

    def __init__(self, settings: Settings) -> None:
        boosting = settings.boosting
        regressor = GradientBoostingRegressor(
            n_estimators=boosting.stages,
            max_depth=boosting.max_depth,
            min_samples_split=boosting.min_samples_split,
            learning_rate=boosting.learning_rate,
            # It decides between splits that are equally good.
            random_state=derive_seed(settings.seed, "importance trees") % 2**32,
        )
        # One-hot inside the pipeline: a component stays one column, which is permuted as a whole.
        self.regressor: Any = (
            make_pipeline(OneHotEncoder(handle_unknown="ignore"), regressor)
            if settings.encoding == "value-pairs"
            else regressor
        )

    def fit(self, features: Codes, target: Matrix) -> _Whole:
        self.regressor.fit(features, target)
        return self

    def predict(self, features: Codes) -> Matrix:
        # Many pairs are alike in all components, and 500 deep trees are slow.
        distinct, which = np.unique(features, axis=0, return_inverse=True)
        predicted: Matrix = self.regressor.predict(distinct)[which]
        return predicted


class _ByModel:
    """The regressors of all folds as one, so that there is one R2: a pair is predicted by those that saw neither model.

    A pair of models of one fold is tried once, another twice, once for each of its two models' folds.
    """

    def __init__(self, settings: Settings, i: Codes, j: Codes, fold_of: Codes) -> None:
        self.settings = settings
        self.fitted: list[_Whole] = []
        self.is_test = [(fold_of[i] == fold) | (fold_of[j] == fold) for fold in range(int(fold_of.max()) + 1)]
        # A fold that has a model of every pair leaves nothing to be fitted on.
        self.is_test = [test for test in self.is_test if test.any() and not test.all()]
        self.tested = np.concatenate([np.flatnonzero(test) for test in self.is_test])

    def fit(self, features: Codes, target: Matrix) -> _ByModel:
        """`features` and `target` of all pairs."""
        self.fitted = [_Whole(self.settings).fit(features[~test], target[~test]) for test in self.is_test]
        return self

    def predict(self, features: Codes) -> Matrix:
        """`features` are those of the pairs `tested`, in that order."""
        ends = np.cumsum([np.count_nonzero(test) for test in self.is_test])[:-1]
        parts = zip(self.fitted, np.split(features, ends), strict=True)
        return np.concatenate([regressor.predict(part) for regressor, part in parts])


def _permuted(
    fitted: _Whole | _ByModel, features: Codes, target: Matrix, settings: Settings
) -> tuple[float, NDArray[np.float64]]:
    """R2, and its fall under each permutation of each component: (C, repeats)."""

    def score(regressor: _Whole | _ByModel, features: Codes, target: Matrix) -> float:
        return float(r2_score(target, regressor.predict(features)))

    found = permutation_importance(
        fitted,
        features,
        target,
        scoring=score,
        n_repeats=settings.repeats,
        random_state=derive_seed(settings.seed, "importance permutations") % 2**32,
    )
    return score(fitted, features, target), found.importances


def _means(similarity: Matrix, coded: Codes) -> tuple[Codes, Matrix, Codes, Matrix]:
    """Number and mean SAT of the same pairs of each component, then of the different ones; all (C,)."""
    i, j = np.triu_indices(len(similarity), k=1)
    is_known = np.isfinite(similarity[i, j])
    i, j = i[is_known], j[is_known]
    is_same, target = coded[i] == coded[j], similarity[i, j]
    found: list[Any] = []
    for which in (is_same, ~is_same):
        n = np.count_nonzero(which, axis=0)
        found += [n.astype(np.int64), np.divide(target @ which, n, out=np.full(len(n), np.nan), where=n > 0)]
    return found[0], found[1], found[2], found[3]


def bootstrap_difference(similarity: Matrix, coded: Codes, settings: Settings) -> tuple[Matrix, Matrix]:
    """Intervals of mean SAT same minus different, over models: the percentile bootstrap.

    Returns:
        lower and upper ends (C,); NaN as of `resampling.interval`.
    """
    n = len(similarity)
    weights = model_weights(n, settings.resamples, derive_seed(settings.seed, "models"))
    known = np.isfinite(similarity) & ~np.eye(n, dtype=bool)
    filled = np.where(known, similarity, 0.0)
    ends = []
    for column in coded.T:
        is_same = column[:, None] == column
        same, different = (pair_means(weights, filled, known & which) for which in (is_same, ~is_same))
        ends.append(interval(same - different, settings.confidence))
    low, high = np.array(ends).T
    return low, high
