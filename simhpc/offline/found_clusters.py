"""The clusters of a matrix, found once for all analyses that need them."""

from __future__ import annotations

import functools

import numpy as np

from simhpc.analysis import clusters as clustering
from simhpc.analysis.clusters import Clusters
from simhpc.offline.inputs import Inputs, Settings


def options_of(settings: Settings) -> clustering.Settings:
    """How the study wants its models clustered."""
    return clustering.Settings(k=settings.clusters, seed=settings.seed)


def clusters_of(inputs: Inputs, settings: Settings) -> Clusters:
    """Clusters of the matrix; what they are of does not change while it is looked at.

    Raises:
        AnalysisError: see `clustering.clusters`.
    """
    return _clusters(inputs.sat.tobytes(), len(inputs.sat), options_of(settings))


@functools.lru_cache(maxsize=1)
def _clusters(sat: bytes, n: int, options: clustering.Settings) -> Clusters:
    return clustering.clusters(np.frombuffer(sat, dtype=np.float64).reshape(n, n), options)
