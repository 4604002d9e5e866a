"""Whether a model is as accurate as it should be, before hours are spent on attacking it.

A permuted label map, a wrong normalisation and wrong weights all run through and give a matrix that means nothing;
they show in the accuracy on clean images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from simhpc.analysis.class_order import best_reordering, reordering_by_chance
from simhpc.errors import ModelError
from simhpc.study import Model

MARGIN_PERCENT = 15.0
"""How far below the expectation an accuracy may lie: other crops, sizes, years of a library take a few points."""
CHANCE = 2.9e-7
"""How unlikely so few correct answers have to be at the expected accuracy: five standard errors, one-sided."""
_REORDERED_MARGIN = 0.2


def check_accuracy(model: Model, predicted: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
    """Compare a model's accuracy with what its entry in the study expects.

    Args:
        model: a resolved entry; without an expectation, or with 0, nothing is checked.
        predicted: int32 (N,), its answers to the clean images.
        labels: int32 (N,).

    Raises:
        ModelError: it lies more than `MARGIN_PERCENT` points below, and that cannot be chance: of N images, with each
            right with the expected probability, so few are right less than once in 1 / `CHANCE` times (binomial).
    """
    expected = model.expected_top1_percent
    if not expected:
        return
    n, right = len(labels), int((predicted == labels).sum())
    found = 100 * right / n
    if found >= expected - MARGIN_PERCENT or binom.cdf(right, n, expected / 100) >= CHANCE:
        return
    raise ModelError(
        f"model {model.key!r} ({model.timm_name}) gets {found:.1f} % of {n} clean images right, {expected:g} % were "
        f"expected: that is no chance. {_suspect(predicted, labels, found)} It is not attacked: the result would mean "
        f"nothing. If these images are meant to be that hard, set expected_top1_percent = 0 for this model"
    )


def _suspect(predicted: NDArray[np.int32], labels: NDArray[np.int32], found: float) -> str:
    reordered, by_chance = best_reordering(predicted, labels), reordering_by_chance(predicted, labels)
    if reordered - max(by_chance, found / 100) > _REORDERED_MARGIN:
        return (
            f"The class order is permuted: with the class indices renamed, {100 * reordered:.1f} % would be right. "
            "Check images.labels: a label must be the model's own class index (for ImageNet, the position of the "
            "synset in sorted order, not the devkit's ID)."
        )
    chance = 100 / max(2, len(np.union1d(predicted, labels)))
    if found <= 3 * chance:
        return (
            f"Guessing would give {chance:.2g} %, so suspect the class order (images.labels) or the weights: is the "
            "checkpoint the trained one, and of the same classes?"
        )
    return (
        "Suspect the preprocessing (data.mean, data.std, data.interpolation, data.crop_pct, data.input_size_px, "
        "images.size_px), the weights, or labels of which a part is permuted."
    )
