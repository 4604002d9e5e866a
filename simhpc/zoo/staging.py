"""Bringing pretrained weights to this machine, so that compute nodes without network find them, and checking them.

The files lie where timm and huggingface_hub look for them; nothing of ours remembers that they are there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from simhpc.errors import ModelError, SimhpcError
from simhpc.store.checkpoint import file_sha256
from simhpc.study import Model
from simhpc.zoo import names
from simhpc.zoo.resolve import complete, create_arguments
from simhpc.zoo.timm_import import timm
from simhpc.zoo.weights import HubFiles, load_pretrained, source, staged_file

Report = Callable[[int, int], None]
"""Told bytes done and bytes in all of a download, as it goes on."""


class _DamagedError(Exception):
    """A file of weights has another checksum than was published: fetching it again may help."""


@dataclass(frozen=True)
class Staged:
    """A file of pretrained weights on this machine that has been checked.

    Attributes:
        path: what timm will read.
        size_bytes: of the file.
        checksum: `sha256:` or `git-sha1:` and the publisher's checksum, which the file has; empty if none is known
            (a cache without links that was copied here, and no network to ask).
        how: `here already`, `fetched`, or `fetched again` where the file that was here was damaged.
        damage: what was wrong with that file; else empty.
    """

    path: Path
    size_bytes: int
    checksum: str
    how: str
    damage: str = ""


def fetch_all(models: Iterable[Model], report: Report) -> Iterator[tuple[Model, Staged | SimhpcError]]:
    """Fetch each model's weights. One that cannot be had stops none of the others.

    Yields:
        each model with its file, or with what is wrong.
    """
    for model in models:
        try:
            yield model, fetch(model, report)
        except SimhpcError as error:
            yield model, error


def fetch(model: Model, report: Report) -> Staged:
    """Bring one pretrained model's weights here unless they are, and check them: their checksum, and that they fit.

    Args:
        model: an entry of a study, resolved or not.
        report: told of the download, if there is one.

    Raises:
        ModelError: there are no such weights, they cannot be had, or what was had is not what it should be.
    """
    who, damage = f"model {model.key!r}", ""
    names.split(model.timm_name, who=f"{who}: ")
    model = complete(model)
    file = staged_file(model)
    if file is not None:
        try:
            return _checked(model, file, "here already")
        except _DamagedError as error:
            damage = str(error)
    before = f"{damage}. " if damage else ""
    if constants.HF_HUB_OFFLINE:
        raise ModelError(f"{who}: {before}{model.timm_name!r} is not fetched, because HF_HUB_OFFLINE is set")
    try:
        _download(model, report, damaged=file)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        kept = ", and stays as it is" if damage else ""
        raise ModelError(f"{who}: {before}{model.timm_name!r} cannot be fetched{kept}: {said}") from error
    file = staged_file(model)
    if file is None:
        raise ModelError(f"{who}: {model.timm_name!r} was fetched, but is not where timm looks for it")
    try:
        return _checked(model, file, "fetched again" if damage else "fetched", damage)
    except _DamagedError as error:
        # Under its final name every task would take it for whole.
        _delete(file)
        raise ModelError(f"{who}: {error}. It was just fetched, and is deleted") from None


def node_environment(models: Iterable[Model]) -> dict[str, str]:
    """The variables with which a compute node finds what `fetch` has brought, and looks for nothing elsewhere."""
    found = {"HF_HUB_OFFLINE": "1"}
    if Path(constants.HF_HUB_CACHE) == Path(constants.HF_HOME) / "hub":
        found["HF_HOME"] = constants.HF_HOME
    else:
        found["HF_HUB_CACHE"] = constants.HF_HUB_CACHE
    if any(isinstance(source(model), str) for model in models):
        found["TORCH_HOME"] = str(Path(torch.hub.get_dir()).parent)
    return found


def _delete(file: Path) -> None:
    """A file of a cache, and what it links to."""
    for path in (file.resolve(), file):
        path.unlink(missing_ok=True)


def _download(model: Model, report: Report, damaged: Path | None) -> None:
    """Fetch a model's weights; those that are here and damaged are replaced, and only when the others are here."""
    match source(model):
        case HubFiles(repository, revision, file_names):
            for name in file_names:
                try:
                    path = Path(
                        hf_hub_download(
                            repository,
                            name,
                            revision=revision,
                            force_download=damaged is not None,
                            tqdm_class=_bar_that_tells(report),
                        )
                    )
                except LocalEntryNotFoundError:  # no network: the other names would not be found either
                    raise
                except EntryNotFoundError:
                    continue
                if path == damaged and not path.is_symlink():
                    # What was fetched lies beside it: the hub's client replaces what links lead to, and no other file.
                    path.unlink()
                    hf_hub_download(repository, name, revision=revision)
                return
            raise ModelError(f"{repository} holds none of {', '.join(file_names)}")
        case str(url) if damaged is not None:
            torch.hub.download_url_to_file(url, str(damaged), progress=False)
        case str(url):
            timm.models._hub.download_cached_file(url, progress=False)
        case _:
            raise ModelError("timm names no place where they are published")


def _bar_that_tells(report: Report) -> type[tqdm]:
    """A progress bar of huggingface_hub that draws nothing."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **{**settings, "disable": True})  # type: ignore[no-untyped-call]
            self._done, self._total = int(settings.get("initial") or 0), int(settings.get("total") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            report(self._done, self._total)

    return Bar


def _checked(model: Model, file: Path, how: str, damage: str = "") -> Staged:
    """The file with its checksum, after it has been loaded as timm will load it.

    Raises:
        _DamagedError: the checksum is another.
        ModelError: the file is as published, or may be for all that is known, and cannot be loaded as this model.
    """
    checksum = _published_checksum(model, file)
    if checksum and (found := _checksum_like(checksum, file)) != checksum:
        raise _DamagedError(f"{file} is damaged or cut short: it has {found}, {checksum} was published")
    try:
        loaded = load_pretrained(model, create_arguments(model, 2), file)
    except ModelError as error:
        if checksum:
            raise
        # Memory may be short, or the study's args wrong: no reason to lose what may be whole.
        raise ModelError(
            f"{error}. No checksum of it is known here, so it may be whole, and is kept; if it is damaged, delete it "
            "and fetch again"
        ) from error
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"model {model.key!r}: {file}: {name} holds NaN or infinity")
    return Staged(file, file.stat().st_size, checksum, how, damage)


def _published_checksum(model: Model, file: Path) -> str:
    """What the publisher says of a file: by the name under which the hub's cache keeps it, else by asking the hub."""
    where = source(model)
    if isinstance(where, HubFiles):
        tag = file.readlink().name if file.is_symlink() else ""
        if not tag and not constants.HF_HUB_OFFLINE:
            tag = _tag_on_hub(where, file)
        # Large files are known by their SHA-256, small ones by git's SHA-1.
        for kind, digits in (("sha256", 64), ("git-sha1", 40)):
            if re.fullmatch(f"[0-9a-f]{{{digits}}}", tag):
                return f"{kind}:{tag}"
    elif isinstance(where, str) and (found := re.search(r"-([0-9a-f]{8,64})\.\w+$", file.name)):
        return f"sha256:{found[1]}"  # torch.hub's way: the first digits
    return ""


def _tag_on_hub(where: HubFiles, file: Path) -> str:
    # snapshots/<commit>/<file>
    url = hf_hub_url(where.repository, file.name, revision=file.parent.name)
    try:
        return get_hf_file_metadata(url).etag or ""
    except Exception:  # no network, or no such commit: then nothing is known
        return ""


def _checksum_like(published: str, file: Path) -> str:
    kind, _, digits = published.partition(":")
    if kind == "sha256":
        return f"sha256:{file_sha256(file)[: len(digits)]}"
    content = file.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return f"git-sha1:{digest.hexdigest()}"
