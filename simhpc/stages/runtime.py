"""How a task uses torch: device, threads, determinism; and the provenance that its output records."""

from __future__ import annotations

import json
import os

import numpy as np
import torch
from numpy.typing import NDArray

from simhpc.errors import SimhpcError
from simhpc.rundir import Run
from simhpc.store import hdf5, image_set
from simhpc.store.provenance import Provenance
from simhpc.study import Model, Resources
from simhpc.zoo.timm_import import timm


def set_up_torch(resources: Resources) -> torch.device:
    """Fix threads and deterministic kernels for this process, and choose its device.

    Raises:
        SimhpcError: the study asks for CUDA and there is none.
    """
    torch.set_num_threads(resources.threads_per_task)
    # Some CUDA kernels have no deterministic form; those warn in the task's log.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise SimhpcError('resources.device = "cuda", but torch sees no CUDA device here')
    use_cuda = resources.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def to_float16(margins: torch.Tensor) -> NDArray[np.float16]:
    """Margins as they are stored: clipped to what 16 bits can hold, never infinite."""
    limit = float(np.finfo(np.float16).max)
    return margins.clamp(-limit, limit).numpy().astype(np.float16)


def provenance(run: Run, model: Model, weights_sha256: str, device: torch.device) -> Provenance:
    """The attributes of a result that `model` makes in this process."""
    return Provenance(
        model=model.key,
        timm_name=model.timm_name,
        model_sha256=model.sha256(),
        weights_sha256=weights_sha256,
        study_sha256=run.study.settings_sha256(),
        images_sha256=image_set.identity(run.dir.images),
        attack=json.dumps(run.study.attack.model_dump(mode="json"), sort_keys=True),
        seed=run.study.seed,
        precision="float32",
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=run.study.resources.threads_per_task,
        torch=str(torch.__version__),
        timm=timm.__version__,
        container=hdf5.container(),
    )
