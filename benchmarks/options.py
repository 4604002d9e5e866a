"""What may be asked of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.settings import Precision


@dataclass(frozen=True)
class Options:
    """Of a whole invocation; each part takes what concerns it.

    Attributes:
        models: timm names that are attacked, at 224 pixels, and the trained one (`attacks.DIGITS`).
        libraries: peers to compare with.
        configurations: pairs of precision and whether to compile, each measured on every model.
        repetitions: rounds, after one warm-up.
        frozen_peers: give the peers models with frozen parameters, which their documentation does not.
        quick: sizes that only show that everything runs.
    """

    device: torch.device
    threads: int
    models: tuple[str, ...]
    libraries: tuple[str, ...]
    configurations: tuple[tuple[Precision, bool], ...]
    batch_size: int
    steps: int
    repetitions: int
    frozen_peers: bool
    quick: bool
