"""Two measures of similarity that look inside networks, and what of them is noise.

Cosine of input gradients: do two models want the same change of an image? Linear CKA: are the features of two models,
over all images, the same up to rotation and scale?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simhpc.analysis.reliability import spearman_brown
from simhpc.errors import AnalysisError

Floats = NDArray[np.float64]

BATCH = 250
"""Images of a batch of CKA, about."""

_FEWEST_BATCHES, _SMALLEST_BATCH = 8, 20
_SPLITS = 50
_FEWEST_IMAGES = 5


@dataclass(frozen=True)
class Measure:
    """Similarities of M models over some images.

    Attributes:
        values: (M, M), symmetric; NaN unknown.
        std_errors: (M, M), of the choice of the images.
        n_images: images they are from.
        halves: (S, 2, M, M), the same from two halves of the images, for S ways to halve them; S is 0 if there are
            too few.
    """

    values: Floats
    std_errors: Floats
    n_images: int
    halves: Floats


def gradient_cosines(images: Iterable[Sequence[NDArray[Any]]]) -> NDArray[np.float32]:
    """Cosines of the gradients of M models, image by image: float32 (n, M, M).

    Args:
        images: of each image M gradients of one shape, of any scale; all 0: there is none, and its cosines are NaN.
    """
    found = [_cosines(np.stack([each.ravel() for each in gradients])) for gradients in images]
    return np.stack(found) if found else np.empty((0, 0, 0), dtype=np.float32)


def _cosines(gradients: NDArray[Any]) -> NDArray[np.float32]:
    rows = gradients.astype(np.float32)
    products = rows @ rows.T
    lengths = np.sqrt(np.diag(products).astype(np.float64))
    lengths[lengths == 0] = np.nan
    cosines: NDArray[np.float32] = np.clip(products / np.outer(lengths, lengths), -1.0, 1.0).astype(np.float32)
    return cosines


def mean_cosine(cosines: NDArray[np.float32], seed: int) -> Measure:
    """Mean over images; the standard error is the standard deviation over images by the root of their number.

    Args:
        cosines: (n, M, M), n >= 2; of what is NaN each pair leaves out its own.
        seed: of the halves.

    Raises:
        AnalysisError: too few images.
    """
    n = len(cosines)
    if n < 2:
        raise AnalysisError(f"the gradients of {n} image(s) have no spread: 2 at least are needed")
    known = np.isfinite(cosines)
    values = np.where(known, cosines, 0.0).astype(np.float64)
    counts, sums = known.sum(0), values.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums / counts
        variance = (np.square(values - np.where(known, mean, 0.0)).sum(0)) / (counts - 1)
        errors = np.sqrt(np.where(counts > 1, variance, np.nan) / counts)

        def of(part: NDArray[np.intp]) -> Floats:
            half: Floats = values[part].sum(0) / known[part].sum(0)
            return half

        split = [(of(one), of(two)) for one, two in halves(n, seed)]
    return Measure(mean, errors, n, _stacked(split, mean.shape))


def linear_cka(features: Iterable[NDArray[Any]], seed: int, *, batch: int = BATCH) -> Measure:
    """Linear centred kernel alignment of M models' features, without the bias of small samples.

    CKA(X, Y) = HSIC(XX', YY') / sqrt(HSIC(XX', XX') HSIC(YY', YY')) (Kornblith et al. 2019). HSIC is the unbiased
    HSIC_1 of Song et al. (2012), averaged over batches of the images before the ratio is taken, as Nguyen et al.
    (2021) do: the usual estimator is far above 0 for unrelated features of as many dimensions as there are images.
    Unbiased, that of unrelated features scatters about 0 and may be negative. The Gram matrices of batches are also
    what makes it cheap: the products D x D of all pairs of models would cost M D / batch times as much.

    The standard error is the jackknife's, each image left out of its batch once, without computing anything anew.

    Args:
        features: of each model (N, D), N alike for all, D each its own and possibly 0. Gone through once.
        seed: of the batches, which are drawn, as images are stored by class; and of the halves.

    Returns:
        NaN where a model has no features, or ones that do not vary beyond chance.

    Raises:
        AnalysisError: there are fewer than 5 images.
    """
    grams: list[list[NDArray[np.float32]]] = []
    parts: list[NDArray[np.intp]] = []
    for model in features:
        if not parts:
            parts = _batches(len(model), batch, seed)
            grams = [[] for _ in parts]
        rows = _centred(model)
        for part, of_batch in zip(parts, grams, strict=True):
            some = rows[part]
            gram = some @ some.T
            np.fill_diagonal(gram, 0.0)
            of_batch.append(gram)
    sums = [_Sums(np.stack(of_batch)) for of_batch in grams]
    hsic = np.stack([each.hsic() for each in sums])
    values = _ratio(hsic.mean(0))
    n, squares, mean = 0, np.zeros_like(values), np.zeros_like(values)
    for position, each in enumerate(sums):
        for without in each.hsic_without_each():
            left_out = _ratio(hsic.mean(0) + (without - hsic[position]) / len(sums))
            # Welford's: the variance of numbers that are nearly alike.
            n += 1
            step = left_out - mean
            mean += step / n
            squares += step * (left_out - mean)
    errors = np.sqrt(squares * (n - 1) / n)
    split = [(_ratio(hsic[one].mean(0)), _ratio(hsic[two].mean(0))) for one, two in halves(len(sums), seed)]
    return Measure(values, errors, n, _stacked(split, values.shape))


def _batches(n: int, batch: int, seed: int) -> list[NDArray[np.intp]]:
    """Random batches of nearly one size; if need be smaller ones, so that there are some to make halves of.

    An even number, so that halves of the batches are halves of the images; or one.
    """
    if n < _FEWEST_IMAGES:
        raise AnalysisError(f"CKA needs {_FEWEST_IMAGES} images at least, there are {n}")
    n_batches = max(-(-n // batch), min(_FEWEST_BATCHES, n // _SMALLEST_BATCH)) // 2 * 2 or 1
    return np.array_split(np.random.default_rng(seed).permutation(n), n_batches)


def _centred(features: NDArray[Any]) -> NDArray[np.float32]:
    """Less their mean, and scaled to a mean square length of 1, which keeps products in range: CKA knows no scale."""
    rows = features.astype(np.float32)
    rows -= rows.mean(0, dtype=np.float64).astype(np.float32)
    largest = np.abs(rows).max(initial=0.0)
    if largest > 0:
        rows /= largest
        rows /= np.float32(np.sqrt(np.einsum("nd,nd->n", rows, rows).mean(dtype=np.float64)))
    return rows


class _Sums:
    """What HSIC_1 of all pairs is made of, for one batch.

    Args:
        grams: float32 (M, n, n), their diagonals 0.
    """

    def __init__(self, grams: NDArray[np.float32]) -> None:
        self._grams = grams
        self._n = grams.shape[1]
        self._rows: Floats = grams.sum(2, dtype=np.float64)
        flat = grams.reshape(len(grams), -1)
        self._products: Floats = (flat @ flat.T).astype(np.float64)

    def hsic(self) -> Floats:
        """(M, M)."""
        totals = self._rows.sum(1)
        return _hsic(self._products, np.outer(totals, totals), self._rows @ self._rows.T, self._n)

    def hsic_without_each(self) -> Iterable[Floats]:
        """(M, M) without the first image, without the second one, ..."""
        totals, by_rows = self._rows.sum(1), self._rows @ self._rows.T
        # [a, b, i] is what image i has in the product of a's Gram matrix with b's row sums.
        crossed = np.matmul(self._grams, self._rows.T.astype(np.float32)).swapaxes(1, 2).astype(np.float64)
        for i in range(self._n):
            own = self._grams[:, i, :]
            products = (own @ own.T).astype(np.float64)
            rows = self._rows[:, i]
            left = totals - 2.0 * rows
            both = crossed[:, :, i]
            yield _hsic(
                self._products - 2.0 * products,
                np.outer(left, left),
                by_rows - np.outer(rows, rows) - (both + both.T) + products,
                self._n - 1,
            )


def _hsic(products: Floats, totals: Floats, by_rows: Floats, n: int) -> Floats:
    """HSIC_1 (Song et al. 2012, equation 5) of n images, from sums over Gram matrices with an empty diagonal."""
    found: Floats = (products + totals / ((n - 1) * (n - 2)) - 2.0 * by_rows / (n - 2)) / (n * (n - 3))
    return found


_LEAST = 1e-6
"""Of features scaled to a mean square of 1, the HSIC with themselves is about 1 / D; below this, it is rounding."""


def _ratio(hsic: Floats) -> Floats:
    own = np.diag(hsic).copy()
    own[own < _LEAST] = np.nan
    lengths = np.sqrt(own)
    ratio: Floats = hsic / np.outer(lengths, lengths)
    return ratio


def halves(n: int, seed: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Ways to halve n images, at random; an odd one is in neither half."""
    if n < 2:
        return []
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(n) for _ in range(_SPLITS)]
    return [(order[: n // 2], order[n // 2 : n // 2 * 2]) for order in shuffled]


def _stacked(halves: Sequence[tuple[Floats, Floats]], shape: tuple[int, ...]) -> Floats:
    return np.stack([np.stack(pair) for pair in halves]) if halves else np.empty((0, 2, *shape))


@dataclass(frozen=True)
class Noise:
    """How much of the differences between pairs of models is the choice of images.

    Attributes:
        n_pairs: unordered, whose value and standard error are known.
        n_images: that the measure is from.
        mean: over pairs.
        spread: standard deviation over pairs.
        error: root mean square of the standard errors. It holds what an image does to all pairs alike, too, which the
            reliability does not.
        reliability: correlation over pairs of the values from two halves of the images, mean r over the ways to halve
            them, brought to all images by Spearman and Brown's formula 2 r / (1 + r); NaN without halves.
        images_for_95: images that a reliability of 0.95 would take, by the same formula; infinite where r is not above
            0, or NaN.
    """

    n_pairs: int
    n_images: int
    mean: float
    spread: float
    error: float
    reliability: float
    images_for_95: float


def noise(measure: Measure) -> Noise:
    """Weigh what the choice of images does to a measure against the spread of its values."""
    upper = np.triu_indices(len(measure.values), 1)
    values, errors = measure.values[upper], measure.std_errors[upper]
    known = np.isfinite(values) & np.isfinite(errors)
    values, errors, nan = values[known], errors[known], float("nan")
    r = correlation_of_halves(measure.halves[:, :, upper[0], upper[1]][:, :, known])
    reliability = spearman_brown(r)
    images_for_95 = nan
    if np.isfinite(r):
        images_for_95 = measure.n_images * 19.0 * (1.0 - reliability) / reliability if r > 0 else float("inf")
    return Noise(
        n_pairs=len(values),
        n_images=measure.n_images,
        mean=float(values.mean()) if len(values) else nan,
        spread=float(values.std(ddof=1)) if len(values) > 1 else nan,
        error=float(np.sqrt(np.square(errors).mean())) if len(values) else nan,
        reliability=reliability,
        images_for_95=images_for_95,
    )


def correlation_of_halves(halves: Floats) -> float:
    """Pearson's over pairs, mean over the splits of (S, 2, P); NaN if there is none with three pairs that differ."""
    found = []
    for one, two in halves:
        both = np.isfinite(one) & np.isfinite(two)
        if both.sum() > 2 and one[both].std() > 0 and two[both].std() > 0:
            found.append(float(np.corrcoef(one[both], two[both])[0, 1]))
    return float(np.mean(found)) if found else float("nan")
