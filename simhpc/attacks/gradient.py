"""The gradient of a frozen model with respect to its input: what nearly all of a study's time goes into."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from simhpc.attacks.backoff import is_out_of_memory
from simhpc.attacks.determinism import is_without_deterministic_kernel
from simhpc.attacks.parts import in_parts
from simhpc.errors import first_line

_WARM_UPS = 3
"""Steps before one is recorded: libraries choose and set up their kernels in the first ones."""

_GRAPH_TOLERANCE = 1e-2
"""Of the relative difference between a graph's gradient and the model's own. Kernels that add in any order move a
gradient by 1e-6, in bfloat16 by 1e-3; one that was computed from other memory is altogether another."""


def input_gradient(classifier: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of each image's cross-entropy by its pixels (B, 3, H, W), and the cross-entropies in nats (B,).

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits, frozen.
        pixels: float32 (B, 3, H, W).
        labels: int64 (B,).
    """
    with torch.enable_grad():
        variable = pixels.detach().requires_grad_(True)
        loss = functional.cross_entropy(classifier(variable), labels, reduction="none")
        # Summed, so that an image's gradient does not depend on its batch.
        (gradient,) = torch.autograd.grad(loss.sum(), variable)
    return gradient, loss.detach()


class StepGraph:
    """`input_gradient` as one CUDA graph: a step is one launch in place of hundreds.

    Args:
        classifier: see `input_gradient`; on a CUDA device, compiled without CUDA graphs of its own, or not at all.
        pixels: a batch of the shape, layout and device that it is recorded for.
        labels: likewise.

    Attributes:
        n_replays: steps taken so far.
        is_repeatable: whether two replays of one step gave the same bits.

    Raises:
        RuntimeError: a step of this model cannot be recorded, or gives something else when it is replayed.
        torch.OutOfMemoryError: there is no memory for it.
    """

    def __init__(self, classifier: nn.Module, pixels: Tensor, labels: Tensor) -> None:
        self.n_replays = 0
        # Recorded from other values than it is tried with below: what it has copied from them would show.
        self._pixels, self._labels = torch.zeros_like(pixels), torch.zeros_like(labels)
        current, aside = torch.cuda.current_stream(pixels.device), _side_stream(pixels.device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                expected = input_gradient(classifier, pixels, labels)[0]
            with _nothing_may_wait():
                input_gradient(classifier, pixels, labels)
        current.wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, stream=aside):
                self._gradient, self._loss = input_gradient(classifier, self._pixels, self._labels)
        finally:
            torch.cuda.set_stream(current)  # which torch leaves out where the recording fails
        found, again = (self.replay(pixels, labels)[0].cpu() for _ in range(2))
        self.is_repeatable = torch.equal(found, again)
        off = float((found - expected.cpu()).norm() / expected.norm().clamp_(min=1e-30).cpu())
        if not off <= _GRAPH_TOLERANCE:
            raise RuntimeError(f"a CUDA graph's gradient is another: relative difference {off:.1g}")

    def fits(self, pixels: Tensor) -> bool:
        """Whether it was recorded for such a batch."""
        return (pixels.shape, pixels.stride()) == (self._pixels.shape, self._pixels.stride())

    def replay(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `input_gradient` gives, in memory that the next replay overwrites."""
        self._pixels.copy_(pixels)
        self._labels.copy_(labels)
        self._graph.replay()
        self.n_replays += 1
        return self._gradient, self._loss


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: of every stream that it is used on, cuBLAS keeps memory for ever."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _nothing_may_wait() -> Iterator[None]:
    """What waits for the device cannot be recorded, and to find that out while recording loses memory for good."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def try_graph(classifier: nn.Module, pixels: Tensor, labels: Tensor) -> tuple[StepGraph | None, str]:
    """A `StepGraph`, or None and why there is none.

    Raises:
        torch.OutOfMemoryError: there is no memory for it.
        RuntimeError: an operation has no deterministic kernel, which it was told to have; see `determinism`.
    """
    try:
        return StepGraph(classifier, pixels, labels), ""
    except Exception as error:  # of a model's own code, too
        if is_without_deterministic_kernel(error) or is_out_of_memory(error):
            raise
        # Where memory runs out while recording, to end that may be another error.
        if error.__context__ is not None and is_out_of_memory(error.__context__):
            raise error.__context__ from None
        return None, first_line(error)


class InputGradient:
    """`method.Gradient` of a classifier.

    Only the input's gradient is computed: the parameters must be frozen. Nothing here waits for the device.

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits.
        graph: a step of it, recorded; used for batches that it fits.
        is_in_parts: whether parts of a batch are computed side by side; on the CPU. See `parts`.
    """

    def __init__(self, classifier: nn.Module, graph: StepGraph | None = None, *, is_in_parts: bool = False) -> None:
        self._step = functools.partial(input_gradient, classifier)
        self._is_in_parts = is_in_parts
        self._classifier = classifier
        self._graph = graph
        self._sum: Tensor | float = 0.0

    def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return self.with_loss(pixels, labels)[0]

    def with_loss(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self._graph is not None and self._graph.fits(pixels):
            gradient, loss = self._graph.replay(pixels, labels)
            loss = loss.clone()
        else:
            if pixels.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            gradient, loss = in_parts(self._step, pixels, labels) if self._is_in_parts else self._step(pixels, labels)
        # A CUDA graph overwrites its results in the next step, while attacks may still hold them; and whatever layout
        # the model's first layer gives, attacks work on two tensors of one.
        if gradient.is_cuda or gradient.stride() != pixels.stride():
            gradient = torch.empty_like(pixels).copy_(gradient)
        # The sign of NaN is 0: an attack would silently stay where it is.
        self._sum = self._sum + gradient.sum()
        return gradient, loss

    def was_finite(self) -> Tensor:
        """Whether no gradient so far held NaN or infinity: a bool, where the gradients are."""
        return torch.isfinite(torch.as_tensor(self._sum))

    @torch.no_grad()
    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self._classifier(pixels), labels, reduction="none")
