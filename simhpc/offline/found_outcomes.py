"""The per-image outcomes of a run, read once for all analyses that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simhpc.rundir import Run
from simhpc.stages.aggregate import Gathered, gather
from simhpc.store.filecache import identity

_last: list[tuple[list[object], Gathered]] = []


def gathered_of(run: Run) -> Gathered:
    """What `aggregate.gather` finds, which takes long for many models; the last one is kept. Not to be changed."""
    state: list[object] = [(path, identity(path)) for path in _files(run)]
    if not _last or _last[0][0] != state:
        _last[:] = [(state, gather(run, lambda *_: None))]
    return _last[0][1]


def _files(run: Run) -> Iterator[Path]:
    for model in run.study.models:
        yield run.dir.predictions(model.key)
        yield run.dir.adversarial(model.key)
