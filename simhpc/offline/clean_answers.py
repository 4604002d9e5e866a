"""What the models of a matrix answer to the clean images: classes at once, probabilities in blocks of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simhpc.errors import AnalysisError, BadFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.stages.aggregate import checked_outline
from simhpc.store import predictions
from simhpc.store.predictions import Outline


@dataclass(frozen=True)
class CleanAnswers:
    """Answers of M models.

    Attributes:
        kept: M positions in the list of names that was asked for.
        names: M keys.
        labels: int32 (N,), true classes.
        predicted: int32 (M, N), answered classes.
        num_classes: of every model.
        problems: which models were left out and why, one line each.
    """

    run: Run
    kept: list[int]
    names: list[str]
    outlines: list[Outline]
    labels: NDArray[np.int32]
    predicted: NDArray[np.int32]
    num_classes: int
    problems: list[str]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images each model gets right: (M, N)."""
        right: NDArray[np.bool_] = self.predicted == self.labels
        return right

    def probabilities(self) -> Iterator[NDArray[np.float16]]:
        """Softmax of all models, float16 (M, B, K), of successive images: a megabyte per model at a time.

        Raises:
            MissingInputError, BadFileError: also after the last block; see `predictions.iterate_probabilities`.
        """
        readers = [
            predictions.iterate_probabilities(self.run.dir.predictions(name), outline)
            for name, outline in zip(self.names, self.outlines, strict=True)
        ]
        for blocks in zip(*readers, strict=True):
            yield np.stack(blocks)


def clean_answers(run: Run, names: Sequence[str]) -> CleanAnswers:
    """Read the answers of these models; those that cannot be used are left out.

    Raises:
        AnalysisError: fewer than two can be used, or they do not have as many classes as each other.
    """
    outlines: list[Outline] = []
    kept, problems = [], []
    for position, name in enumerate(names):
        try:
            outlines.append(checked_outline(run, run.study.model(name), outlines[0] if outlines else None))
            kept.append(position)
        except (MissingInputError, BadFileError) as error:
            problems.append(f"{name} is left out: {error}")
    if len(kept) < 2:
        raise AnalysisError(f"it takes the predictions of two models, there are {len(kept)}; {'; '.join(problems)}")
    of_classes: dict[int, list[str]] = {}
    for position, outline in zip(kept, outlines, strict=True):
        of_classes.setdefault(outline.num_classes, []).append(names[position])
    if len(of_classes) > 1:
        groups = "; ".join(f"{k}: {', '.join(keys)}" for k, keys in sorted(of_classes.items()))
        raise AnalysisError(f"the models do not have the same number of classes, so they have no average ({groups})")
    return CleanAnswers(
        run=run,
        kept=kept,
        names=[names[position] for position in kept],
        outlines=outlines,
        labels=outlines[0].labels,
        predicted=np.stack([outline.clean_pred for outline in outlines]),
        num_classes=outlines[0].num_classes,
        problems=problems,
    )
