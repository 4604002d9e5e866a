"""How fast this machine computes a model: a few batches of attack, evaluation and training, timed."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from simhpc.attacks.backoff import is_out_of_memory
from simhpc.attacks.gradient import InputGradient, try_graph
from simhpc.errors import SimhpcError
from simhpc.images import open_source
from simhpc.stages.estimate import Speed, canvas_px
from simhpc.stages.runtime import set_up_torch, settled
from simhpc.study import Model, Study
from simhpc.zoo import build, training
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast

_ENOUGH_S = 1.0
_MOST_BATCHES = 10
_TRAINING_BATCHES = 4

_IMPORTS = "import simhpc.attacks.attack, simhpc.stages.runtime, simhpc.zoo.build"


def measure(model: Model, study: Study, num_classes: int, *, import_s: float) -> Speed:
    """The speed of one model with random weights on this machine's device, at the study's batch size and threads.

    Args:
        model: a resolved entry.
        num_classes: classes of the image set.
        import_s: see `import_seconds`.

    Raises:
        SimhpcError: a batch does not fit into memory; or see `set_up_torch`.
        ImageSourceError: there are no images to train on.
    """
    device, batch_size = set_up_torch(study), study.resources.batch_size
    side = canvas_px(study) or model.data.input_size_px
    assert side is not None
    started_s = time.perf_counter()
    network = build.untrained(model, num_classes)
    classifier = PixelClassifier(
        copy.deepcopy(network),  # the other one is trained below
        model.data,
        fits_inside=canvas_px(study) is not None,
        in_bfloat16=study.precision == "bfloat16",
    )
    pixels = torch.rand(batch_size, 3, side, side, generator=torch.Generator().manual_seed(0))
    fast = make_fast(classifier, pixels[torch.arange(2) % batch_size], device)
    build_s = time.perf_counter() - started_s
    try:
        pixels = pixels.to(device, memory_format=fast.memory_format)
        forward_s, gradient_s = settled(
            device, lambda: time_batches(fast.classifier, pixels, is_in_parts=fast.is_in_parts), model.key
        )
        training_s = 0.0 if model.training is None else _training_s(network, model, study, num_classes, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SimhpcError(
            f"model {model.key!r}: a batch does not fit into the memory of {device}: lower resources.batch_size or "
            f"training.batch_size ({error})"
        ) from None
    return Speed(forward_s / batch_size, gradient_s / batch_size, training_s, import_s + build_s)


def time_batches(
    classifier: nn.Module,
    pixels: torch.Tensor,
    clock: Callable[[], float] = time.perf_counter,
    *,
    is_in_parts: bool = False,
) -> tuple[float, float]:
    """Seconds of one batch: the forward pass alone, and a step of the attack (forward pass and input gradient).

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits, frozen, on the device of `pixels`.
        pixels: float32 (B, 3, H, W).
        is_in_parts: see `InputGradient`.
    """
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)

    def forward() -> None:
        with torch.no_grad():
            classifier(pixels)

    # As the attack stage does it.
    graph = try_graph(classifier, pixels, labels)[0] if pixels.is_cuda else None
    gradient = InputGradient(classifier, graph, is_in_parts=is_in_parts)

    def step() -> None:
        gradient(pixels, labels)

    return _median_s(forward, pixels.device, clock), _median_s(step, pixels.device, clock)


def _median_s(work: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    """Median of a few repetitions after one that does not count; of a batch that takes seconds, one is enough."""
    found: list[float] = []
    for _ in range(1 + _MOST_BATCHES):
        started_s = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - started_s)
        if len(found) > 1 and sum(found) > _ENOUGH_S:
            break
    counted = sorted(found[1:])
    return counted[len(counted) // 2]


def _training_s(network: nn.Module, model: Model, study: Study, num_classes: int, device: torch.device) -> float:
    """Seconds per image of the second of two short epochs, decoding and augmentation included."""
    settings = model.training
    assert settings is not None
    source = open_source(study.images, settings.images)
    batch_size = min(settings.batch_size, len(source.labels))
    positions = list(range(min(len(source.labels), _TRAINING_BATCHES * batch_size)))
    ends: list[float] = []
    trainer = training.Trainer(
        network.requires_grad_(True).to(device),
        source,
        positions,
        # No warm-up, and hardly any step: it is the time that counts, not where it leads.
        settings.model_copy(update={"epochs": 2, "warmup_epochs": 0.0, "lr": 1e-6}),
        model.data,
        num_classes=model.args.get("num_classes", num_classes),
        seed=0,
        processes=training.Processes(device),
        workers=study.resources.loader_workers,
        key=model.key,
    )
    trainer.run(lambda _: ends.append(time.perf_counter()), look_every=trainer.steps_per_epoch)
    return (ends[1] - ends[0]) / (trainer.steps_per_epoch * trainer.batch_size)


def import_seconds() -> float:
    """How long a new process takes to import what a task needs."""
    started_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True)
    return time.perf_counter() - started_s
