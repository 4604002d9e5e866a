"""Which models to average: chosen greedily on one half of the images and judged on the other, and the reverse.

Caruana et al. (2004) select ensembles greedily; here each model is taken once at most. Whatever is chosen by its
accuracy on some images looks better on these than it is, so nothing is judged where it was chosen. All rules are judged
alike: each chooses twice, once on either half, and every image is answered by the choice that has not seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from simhpc.analysis.averaging import Flags, Outputs
from simhpc.errors import AnalysisError
from simhpc.seeds import derive_seed

Matrix = NDArray[np.float64]
Positions = NDArray[np.int64]

RULES = ("greedy", "most_accurate", "least_similar", "best_single")


@dataclass(frozen=True)
class Choice:
    """What one rule comes to.

    Attributes:
        members: chosen on all images, in the order in which they were: what to use. Its accuracy is not reported.
        halves: chosen on each half of the images.
        accuracy, ci_low, ci_high: held out: share of all images that are right, each answered by the choice of the
            other half, and its exact binomial interval.
        gain, gain_ci_low, gain_ci_high: greedy's held-out accuracy minus this one's, on the same images, and its
            percentile bootstrap over images. Both intervals take the choices as they are.
    """

    rule: str
    members: list[int]
    halves: tuple[list[int], list[int]]
    accuracy: float
    ci_low: float
    ci_high: float
    gain: float
    gain_ci_low: float
    gain_ci_high: float


def suggest(
    outputs: Outputs,
    similarity: Matrix,
    size: int,
    *,
    include: Sequence[int] = (),
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> list[Choice]:
    """Choose ensembles of `size` models by each of `RULES`.

    `greedy` adds the model that makes the average right most often; of equally good ones the one least alike to those
    there are. `most_accurate` takes the best alone. `least_similar` begins with the least alike pair and adds the
    model whose mean SAT with those there are is smallest; it looks at no labels, but SAT was measured on these images.
    `best_single` is one model.

    Args:
        outputs: of M models, collected for `size`.
        similarity: (M, M), NaN unknown: counts as most alike.
        include: models that every ensemble has.

    Raises:
        AnalysisError: there are not so many models, more are included than that, or there is only one image.
    """
    m, n = outputs.right.shape
    if not 2 <= size <= m:
        raise AnalysisError(f"of {m} models an ensemble can have 2 to {m} members, not {size}")
    if len(include) > size:
        raise AnalysisError(f"{len(include)} models are to be included, but the ensemble has {size}")
    if n < 2:
        raise AnalysisError("it takes two images: one to choose by, one to judge by")
    known = np.where(np.isfinite(similarity), similarity, np.inf)
    start = list(dict.fromkeys(include))
    rules: dict[str, Callable[[Outputs], list[int]]] = {
        "greedy": lambda seen: greedy(seen, known, size, start),
        "most_accurate": lambda seen: _most_accurate(seen, size, start),
        "least_similar": lambda _: least_similar(known, size, start),
        "best_single": lambda seen: [int(np.argmax(seen.right.sum(axis=1)))],
    }
    shuffled = np.random.default_rng(derive_seed(seed, "suggest halves")).permutation(n)
    halves = np.sort(shuffled[: n // 2]), np.sort(shuffled[n // 2 :])
    parts = [outputs.of(half) for half in halves]
    right: dict[str, Flags] = {}
    chosen: dict[str, tuple[list[int], list[int]]] = {}
    for name, rule in rules.items():
        chosen[name] = rule(parts[0]), rule(parts[1])
        right[name] = np.empty(n, dtype=bool)
        for half, part, members in ((halves[0], parts[0], chosen[name][1]), (halves[1], parts[1], chosen[name][0])):
            right[name][half] = part.right[members[0]] if len(members) == 1 else part.is_right(members)
    choices = []
    for name, rule in rules.items():
        bounds = binomtest(int(right[name].sum()), n).proportion_ci(confidence, method="exact")
        difference = right["greedy"].astype(np.int64) - right[name]
        low, high = _bootstrap_mean(difference, confidence, resamples, derive_seed(seed, "suggest", name))
        choices.append(
            Choice(
                rule=name,
                members=rule(outputs),
                halves=chosen[name],
                accuracy=float(right[name].mean()),
                ci_low=float(bounds.low),
                ci_high=float(bounds.high),
                gain=float(difference.mean()),
                gain_ci_low=low,
                gain_ci_high=high,
            )
        )
    return choices


def greedy(outputs: Outputs, similarity: Matrix, size: int, start: Sequence[int] = ()) -> list[int]:
    """Add one model after the other, each time the one with which the average is right most often."""
    chosen = list(start)
    while len(chosen) < size:
        rest = [model for model in range(len(outputs.right)) if model not in chosen]
        right = [
            np.count_nonzero(outputs.is_right([*chosen, model]) if chosen else outputs.right[model]) for model in rest
        ]
        alike = _alike(similarity, rest, chosen)
        best = min(range(len(rest)), key=lambda k: (-right[k], alike[k]))
        chosen.append(rest[best])
    return chosen


def least_similar(similarity: Matrix, size: int, start: Sequence[int] = ()) -> list[int]:
    """Add one model after the other, each time the one least alike to those there are."""
    chosen = list(start)
    if not chosen:
        pairs = np.where(np.triu(np.ones(similarity.shape, dtype=bool), k=1), similarity, np.inf)
        a, b = np.unravel_index(np.argmin(pairs), pairs.shape) if np.isfinite(pairs).any() else (0, 1)
        chosen = [int(a), int(b)]
    while len(chosen) < size:
        rest = [model for model in range(len(similarity)) if model not in chosen]
        alike = _alike(similarity, rest, chosen)
        chosen.append(rest[int(np.argmin(alike))])
    return chosen


def _most_accurate(outputs: Outputs, size: int, start: Sequence[int]) -> list[int]:
    by_accuracy = np.argsort(-outputs.right.sum(axis=1), kind="stable").tolist()
    return [*start, *(model for model in by_accuracy if model not in start)][:size]


def _alike(similarity: Matrix, models: Sequence[int], chosen: Sequence[int]) -> list[float]:
    """Mean similarity of each model with those chosen; 0 without any."""
    return [float(similarity[model, list(chosen)].mean()) if chosen else 0.0 for model in models]


def _bootstrap_mean(values: NDArray[np.int64], confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of N numbers in {-1, 0, 1} over resamples of them."""
    n = len(values)
    shares = np.array([np.count_nonzero(values == value) for value in (-1, 0, 1)]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / n, [tail, 100.0 - tail])
    return float(low), float(high)
