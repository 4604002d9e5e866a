"""Running tasks inside an image: what is checked before, and the script that a job starts instead of Python.

The script is written beside the other files of a submission and is all that knows of Apptainer. It decides what goes in
as the task starts, on the node: Slurm's variables of that moment, and nothing that is not listed.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simhpc import __version__
from simhpc.cluster import capacity, image
from simhpc.cluster.image import Image
from simhpc.cluster.planning import Batch
from simhpc.cluster.profile import Bind, Container, StageResources
from simhpc.errors import ContainerError
from simhpc.rundir import Run
from simhpc.stages import inputs
from simhpc.store.hdf5 import CONTAINER_DIGEST
from simhpc.study import Model

SIGNAL = signal.SIGWINCH
"""What a task inside a container is sent when it is to save; outside it is USR2.

Apptainer without root mounts its image through a FUSE process of the same job. Where Slurm signals every process of a
job step (proctrack/linuxproc, pgid) USR2 would end that process, and the image would vanish under the task. This one is
ignored by whoever has not asked for it.
"""

LAUNCHER = "container.sh"
"""In a submission's folder: what its jobs start instead of Python."""

SUBMITTED_WITH = "SIMHPC_JOB_SUBMITTED_WITH"
"""Version and study schema of the simhpc that submitted a task, for the one in the image to compare."""

_GPUS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")


@dataclass(frozen=True)
class Checked:
    """A profile's container, and the image that was found for it.

    Attributes:
        digest: `sha256:` and the image file's.
        notes: what is worth knowing, one line each.
    """

    container: Container
    image: Image
    digest: str
    notes: tuple[str, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """For the ledger."""
        found = self.image
        return {
            **self.container.model_dump(mode="json"),
            "digest": self.digest,
            "image_id": found.id,
            "image_bytes": found.size_bytes,
            "image_modified_ns": found.modified_ns,
        }


def check(container: Container, known: Sequence[Mapping[str, Any]] = ()) -> Checked:
    """Look at the image and at what is to be bound, before anything is submitted.

    Args:
        known: earlier `Checked.as_plain`: a file that has not changed since is not read again for its digest.

    Raises:
        ContainerError: tasks could not run.
    """
    found = image.read(Path(container.image))
    here = {platform.machine()}
    # Login and compute nodes are nearly always alike; else the cluster has the last word.
    notes = image.check(found, here if found.architecture in here else capacity.architectures() or here)
    for bind in container.binds:
        if not os.path.lexists(bind.source):
            raise ContainerError(
                f"container.binds: there is no {bind.source}; make it, or correct the profile (what only the nodes "
                'have goes into flags = ["--bind", ...])'
            )
    stamp = {"image_id": found.id, "image_bytes": found.size_bytes, "image_modified_ns": found.modified_ns}
    same = [entry["digest"] for entry in known if all(entry.get(name) == value for name, value in stamp.items())]
    return Checked(container, found, same[-1] if same else f"sha256:{found.sha256()}", tuple(notes))


@dataclass(frozen=True)
class Needs:
    """What tasks need besides the profile's binds.

    Attributes:
        binds: of folders and files; the run directory, images, checkpoints, caches.
        environment: values that are known before the job.
    """

    binds: tuple[Bind, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def needs_of(run: Run, stage: str, models: Sequence[str]) -> Needs:
    """What the tasks of these models need of the nodes.

    Raises:
        ContainerError: weights that they need are not on this machine, and nodes are not to need a network.
    """
    binds = [Bind(source=str(run.dir.root), mode="rw")]
    binds += [Bind(source=str(path)) for path in inputs.paths(run, stage, models)]
    environment = {"HF_HUB_OFFLINE": "1"}
    if inputs.pretrained(run, stage, models):
        from simhpc.zoo import weights

        if missing := inputs.unstaged(run, stage, models):
            raise ContainerError(
                f"{unstaged_words(missing)}. Tasks in a container use no network. This fetches them, on a machine that "
                "has one and sees the same cache: simhpc models fetch STUDY"
            )
        for variable, folder in weights.caches().items():
            if folder.is_dir():
                binds.append(Bind(source=str(folder)))
                environment[variable] = str(folder)
    return Needs(tuple(binds), environment)


def unstaged_words(missing: Sequence[Model]) -> str:
    """Which models' weights are missing, and where they were looked for."""
    from simhpc.zoo import weights

    names = ", ".join(model.timm_name for model in missing)
    where = ", ".join(f"{folder} ({variable})" for variable, folder in weights.caches().items())
    return f"the weights of {len(missing)} model(s) are not on this machine, in {where}: {names}"


def launcher(checked: Checked, needs: Needs, resources: StageResources) -> str:
    """The bash script that starts Python, with the script's own arguments, inside the image."""
    container = checked.container
    binds = _in_order((*container.binds, *needs.binds))
    fixed = {
        **needs.environment,
        CONTAINER_DIGEST: checked.digest,
        SUBMITTED_WITH: f"{__version__} {image.schema_sha256()}",
    }
    wants_nv = resources.asks_for_gpu if container.nv is None else container.nv
    options = ["--containall", "--no-eval", "--pwd", "/", *(["--nv"] if wants_nv else [])]
    for bind in binds:
        options += ["--mount", _mount(bind)]
    scratch = container.scratch or ""
    is_named = scratch.startswith("$")
    settings = {
        "image": shlex.quote(str(checked.image.path)),
        "identity": shlex.quote(f"{checked.image.size_bytes} {checked.image.id}"),
        "sources": _array(bind.source for bind in binds),
        "options": _array([*options, *container.flags]),
        "passed": _array([*_GPUS, *container.env]),
        "fixed": _array(f"{name}={value}" for name, value in fixed.items()),
        "scratch": shlex.quote("" if is_named else scratch),
        "scratch_from": shlex.quote(scratch[1:] if is_named else ""),
        "python": shlex.quote(image.PYTHON),
        "signal": SIGNAL.name,
    }
    head = "\n".join(["#!/bin/bash", *(f"{name}={value}" for name, value in settings.items())])
    return f"{head}\n\n{Path(__file__).with_name('launcher.sh').read_text(encoding='utf-8')}"


def _array(values: Iterable[str]) -> str:
    return f"({' '.join(map(shlex.quote, values))})"


def _in_order(binds: Iterable[Bind]) -> list[Bind]:
    """Each target once, the last word counting; outer folders first, as an inner one would vanish under them."""
    by_target = {bind.inside: bind for bind in binds}
    return sorted(by_target.values(), key=lambda bind: len(Path(bind.inside).parts))


def _mount(bind: Bind) -> str:
    """The value of Apptainer's --mount, one line of CSV: the only form in which a path may hold anything."""

    def csv(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    return f"type=bind,{csv(f'source={bind.source}')},{csv(f'destination={bind.inside}')}" + (
        ",ro" if bind.mode == "ro" else ""
    )


@dataclass(frozen=True)
class Launch:
    """How the tasks of one submission are started in their container."""

    checked: Checked
    script: str


def launches(run: Run, batches: Sequence[Batch], known: Sequence[Mapping[str, Any]] = ()) -> dict[str, Launch]:
    """By `Batch.id`, for those that run in a container.

    Args:
        known: see `check`.

    Raises:
        ContainerError: tasks could not run.
    """
    checked: dict[str, Checked] = {}
    found = {}
    for batch in batches:
        if batch.container is not None:
            key = batch.container.model_dump_json()
            if key not in checked:
                checked[key] = check(batch.container, known)
            needs = needs_of(run, batch.stage, batch.models)
            found[batch.id] = Launch(checked[key], launcher(checked[key], needs, batch.resources))
    return found
