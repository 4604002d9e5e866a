"""How a task uses torch: device, threads, precision, determinism; and the provenance that its output records."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from simhpc.attacks import determinism, method
from simhpc.attacks.backoff import is_out_of_memory
from simhpc.attacks.batches import Target
from simhpc.attacks.gradient import InputGradient, try_graph
from simhpc.errors import SimhpcError, first_line
from simhpc.rundir import Run
from simhpc.store import hdf5, image_set
from simhpc.store.image_set import ImageSet
from simhpc.store.provenance import Provenance
from simhpc.study import Model, Study
from simhpc.zoo import build
from simhpc.zoo.fast import make_fast
from simhpc.zoo.geometry import clean_view, to_pixels
from simhpc.zoo.readout import FITTED_TO, fit_readout
from simhpc.zoo.timm_import import timm

T = TypeVar("T")


def set_up_torch(study: Study) -> torch.device:
    """Fix threads, precision and deterministic kernels for this process, and choose its device.

    Raises:
        SimhpcError: the study asks for CUDA and there is none.
    """
    resources = study.resources
    torch.set_num_threads(resources.threads_per_task)
    _keep_freed_memory()
    # Some CUDA kernels have no deterministic form; those warn in the task's log.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    set_tf32(study.precision == "tf32")
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise SimhpcError('resources.device = "cuda", but torch sees no CUDA device here')
    use_cuda = resources.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def set_tf32(is_on: bool) -> None:
    """Whether GPUs compute float32 products in TF32. torch itself does so in convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_on


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed: activations are as large in every step, and new pages have to be zeroed.

    mallopt(3) of the GNU C library; elsewhere nothing happens. benchmarks/ has what it is worth.
    """
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_arena_max, 1)  # the others end at 64 MB, and threads that attack would have one each
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


@dataclass(frozen=True)
class Victim:
    """A study's model, ready to be attacked or shown images.

    Attributes:
        weights_sha256: of what was loaded, before anything was folded.
        engine: how it computes, for the record.
    """

    target: Target
    weights_sha256: str
    engine: str


def load_fast(run: Run, model: Model, chosen: ImageSet, device: torch.device) -> Victim:
    """Load a model as fast as it can be had exactly. What is left out for that reason is said in the task's log."""
    loaded = build.load(
        model,
        num_classes=chosen.num_classes,
        trained=run.dir.checkpoint(model.key),
        fits_inside=run.study.attack.grid == "canonical",
        in_bfloat16=run.study.precision == "bfloat16",
        seed=run.study.seed,
    )
    if model.is_random:
        loaded = _read_out(run, model, chosen, loaded)
    # Two also where there is one: see `make_fast`.
    few = chosen.images[np.arange(2) % len(chosen.images)]
    shown, is_compiled = to_pixels(to_be_attacked(run, model, few)), run.study.resources.compile != "off"
    fast = make_fast(loaded.classifier, shown, device, is_compiled=is_compiled)
    for reason in fast.left_out:
        print(f"{model.key}: not made faster by this: {reason}", flush=True)
    target = Target(fast.classifier, device, fast.memory_format, is_in_parts=fast.is_in_parts)
    return Victim(target, loaded.weights_sha256, "; ".join(fast.done) or "as built by timm")


def settled(device: torch.device, work: Callable[[], T], who: str) -> T:
    """What work gives; on a GPU with deterministic kernels alone, if there are any. See `determinism.settle`."""
    return determinism.settle(work, who) if device.type == "cuda" else work()


def _read_out(run: Run, model: Model, chosen: ImageSet, loaded: build.Loaded) -> build.Loaded:
    some = slice(0, FITTED_TO)
    pixels = to_pixels(to_be_attacked(run, model, chosen.images[some]))
    labels = torch.from_numpy(chosen.labels[some]).long()
    return replace(loaded, classifier=fit_readout(loaded.classifier, pixels, labels, chosen.num_classes))


def to_be_attacked(run: Run, model: Model, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images of the image set as they are attacked: uint8 (N, 3, S, S) to (N, 3, H, H) of the study's grid."""
    return images if run.study.attack.grid == "canonical" else clean_view(images, model.data)


def compiled(
    run: Run, model: Model, victim: Victim, chosen: ImageSet, batch_size: int, *, with_gradient: bool
) -> Victim:
    """The same compiled by torch if the study wants that and it works here; else as it was, and the log says why not.

    Args:
        batch_size: images at once: it is compiled for that.
        with_gradient: whether input gradients will be asked of it.
    """
    mode, target = run.study.resources.compile, victim.target
    if mode == "off":
        return victim
    faster: nn.Module = torch.compile(target.classifier, mode=mode, dynamic=False)  # type: ignore[assignment]
    changed = replace(target, classifier=faster)
    try:
        pixels, labels = _batch(run, model, target, chosen, batch_size)
        with torch.no_grad():
            # Some of timm's models keep what they compute in the first pass, which must not be a part of a graph.
            target.classifier(pixels)
            changed.classifier(pixels)
        if with_gradient:
            InputGradient(changed.classifier)(pixels, labels)
    except Exception as error:
        if is_out_of_memory(error) or determinism.is_without_deterministic_kernel(error):
            raise
        reason = first_line(error)
        print(f"{model.key}: resources.compile = {mode!r} does not work here, so it is left out: {reason}", flush=True)
        torch.compiler.reset()
        return victim
    return replace(victim, target=changed, engine=f"{victim.engine}; compiled ({mode})")


def recorded(run: Run, model: Model, victim: Victim, chosen: ImageSet, batch_size: int) -> Victim:
    """The same with a step of its attack as a CUDA graph, on a CUDA device; the log says where that does not work.

    Args:
        batch_size: images at once: it is recorded for that.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
    """
    target = victim.target
    # The other modes of torch.compile use CUDA graphs themselves.
    if target.device.type != "cuda" or run.study.resources.compile not in ("off", "default"):
        return victim
    pixels, labels = _batch(run, model, target, chosen, batch_size)
    with torch.no_grad():
        graph, reason = try_graph(target.classifier, pixels, labels)
    if graph is None:
        print(f"{model.key}: no CUDA graph, each operation is launched by itself: {reason}", flush=True)
        return victim
    if not graph.is_repeatable:
        print(f"{model.key}: not the same bits each time on this device: one step gave two gradients", flush=True)
    return replace(victim, target=replace(target, graph=graph), engine=f"{victim.engine}; CUDA graph")


def _batch(
    run: Run, model: Model, target: Target, chosen: ImageSet, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images as they are attacked, float32 (B, 3, H, H), with their labels, on the device."""
    some = torch.arange(batch_size).clamp_(max=len(chosen.images) - 1).numpy()
    levels = torch.from_numpy(to_be_attacked(run, model, chosen.images[some]))
    return target.pixels(target.moved(levels)), target.moved(torch.from_numpy(chosen.labels[some]).long())


def to_float16(margins: torch.Tensor) -> NDArray[np.float16]:
    """Margins as they are stored: clipped to what 16 bits can hold, never infinite."""
    limit = float(np.finfo(np.float16).max)
    return margins.clamp(-limit, limit).numpy().astype(np.float16)


def provenance(run: Run, model: Model, victim: Victim, batch_size: int) -> Provenance:
    """The attributes of a result that `model` makes in this process, `batch_size` images at once."""
    device = victim.target.device
    return Provenance(
        model=model.key,
        timm_name=model.timm_name,
        model_sha256=model.sha256(),
        weights_sha256=victim.weights_sha256,
        study_sha256=run.study.settings_sha256(),
        images_sha256=image_set.identity(run.dir.images),
        attack=json.dumps(run.study.attack.model_dump(mode="json"), sort_keys=True),
        attack_code_sha256=method.code_sha256(run.study.attack.name),
        batch_size=batch_size,
        seed=run.study.seed,
        precision=run.study.precision,
        engine=victim.engine,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=run.study.resources.threads_per_task,
        torch=str(torch.__version__),
        timm=timm.__version__,
        container=hdf5.container(),
    )
