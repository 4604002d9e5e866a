"""Whether a finished file still belongs to this run: the same model entry, settings, images and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from simhpc.errors import BadFileError, ForeignFileError, MissingInputError
from simhpc.rundir import Run
from simhpc.store import adversarial, checkpoint, image_set, predictions
from simhpc.store.filecache import each_file_once, exists
from simhpc.store.provenance import Provenance
from simhpc.study import Model, Study

Entry = TypeVar("Entry")


def check_provenance(run: Run, model: Model, path: Path, found: Provenance) -> None:
    """Compare what a file says of its making with what the run would make now.

    Raises:
        ForeignFileError: another model, study, image set, or weights that have been replaced since.
    """
    checks = [
        ("model", found.model, model.key),
        ("model_sha256", found.model_sha256, model_sha256(model)),
        ("study_sha256", found.study_sha256, _once(run.study, Study.settings_sha256)),
    ]
    # Aggregation may happen elsewhere, where only the predictions have been copied to.
    if exists(run.dir.images):
        checks.append(("images_sha256", found.images_sha256, image_set.identity(run.dir.images)))
    if model.is_trained_here and exists(run.dir.checkpoint(model.key)):
        metadata = checkpoint.metadata_of(run.dir.checkpoint(model.key))
        checks.append(("weights_sha256", found.weights_sha256, metadata["weights_sha256"]))
    for name, have, want in checks:
        if have != want:
            raise ForeignFileError(
                f"{path}: {name} is {have}, this run's is {want}: a file of another run, or out of date"
            )


@dataclass(frozen=True)
class Sources:
    """The adversarial sets that exist and belong to a run.

    Attributes:
        headers: by model key, in the study's order.
        sha256: `predictions.sources_identity` of them.
    """

    headers: dict[str, adversarial.Header]
    sha256: str


_shared: ContextVar[Sources | None] = ContextVar("_shared", default=None)
# By `id`, as entries cannot be keys; they are held, so that no other gets the same one.
_hashes: ContextVar[dict[int, tuple[object, str]] | None] = ContextVar("_hashes", default=None)


def model_sha256(model: Model) -> str:
    """`Model.sha256`; inside `shared_sources` it is computed once."""
    return _once(model, Model.sha256)


def _once(entry: Entry, sha256: Callable[[Entry], str]) -> str:
    known = _hashes.get()
    if known is None:
        return sha256(entry)
    if id(entry) not in known:
        known[id(entry)] = entry, sha256(entry)
    return known[id(entry)][1]


def adversarial_header(run: Run, model: Model) -> adversarial.Header:
    """The header of a model's adversarial set, checked to belong to this run.

    Raises:
        MissingInputError: there is none yet.
        BadFileError: it is damaged or belongs elsewhere.
    """
    if (shared := _shared.get()) is not None and model.key in shared.headers:
        return shared.headers[model.key]
    path = run.dir.adversarial(model.key)
    header = adversarial.header(path)
    check_provenance(run, model, path, header.provenance)
    return header


@contextmanager
def shared_sources(run: Run) -> Iterator[None]:
    """Inside it, the adversarial sets of this run are looked at once only: else M tasks look at M files each."""
    hashes = _hashes.set({})
    try:
        token = _shared.set(usable_sources(run))
        try:
            yield
        finally:
            _shared.reset(token)
    finally:
        _hashes.reset(hashes)


def usable_sources(run: Run) -> Sources:
    """The adversarial sets that evaluations have to cover now."""
    if (shared := _shared.get()) is not None:
        return shared
    headers: dict[str, adversarial.Header] = {}
    with each_file_once():
        for model in run.study.models:
            try:
                headers[model.key] = adversarial_header(run, model)
            except (MissingInputError, BadFileError):
                continue
    return Sources(headers, predictions.sources_identity({key: held.content_sha256 for key, held in headers.items()}))
