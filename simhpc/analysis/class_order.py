"""Whether wrong answers are right ones in another order of the classes: the mark of a permuted label map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


def best_reordering(predicted: NDArray[np.int32], labels: NDArray[np.int32]) -> float:
    """Share of answers that would be right if the classes were renamed in the best way, one to one.

    Args:
        predicted, labels: int32 (N,), N >= 1.

    Returns:
        a fraction, at least the accuracy. Where there are few images per class it is high for any answers:
        compare it with `reordering_by_chance`.
    """
    _, answer = np.unique(predicted, return_inverse=True)
    _, truth = np.unique(labels, return_inverse=True)
    counts = np.zeros((answer.max() + 1, truth.max() + 1), dtype=np.int64)
    np.add.at(counts, (answer, truth), 1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / len(labels))


def reordering_by_chance(predicted: NDArray[np.int32], labels: NDArray[np.int32]) -> float:
    """The same for answers that have nothing to do with the images: these answers, dealt to the images anew."""
    return best_reordering(np.random.default_rng(0).permutation(predicted), labels)
