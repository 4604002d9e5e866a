"""The gradient of a frozen model with respect to its input: what nearly all of a study's time goes into."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class InputGradient:
    """`method.Gradient` of a classifier.

    Only the input's gradient is computed: the parameters must be frozen. Nothing here waits for the device.

    Args:
        classifier: (B, 3, H, W) pixels in [0, 1] to (B, K) logits.
    """

    def __init__(self, classifier: nn.Module) -> None:
        self._classifier = classifier
        self._sum: Tensor | float = 0.0

    def __call__(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return self.with_loss(pixels, labels)[0]

    def with_loss(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if pixels.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            variable = pixels.detach().requires_grad_(True)
            loss = functional.cross_entropy(self._classifier(variable), labels, reduction="none")
            # Summed, so that an image's gradient does not depend on its batch.
            (gradient,) = torch.autograd.grad(loss.sum(), variable)
        # A CUDA graph overwrites its results in the next step, while attacks may still hold them; and whatever layout
        # the model's first layer gives, attacks work on two tensors of one.
        if gradient.is_cuda or gradient.stride() != pixels.stride():
            gradient = torch.empty_like(pixels).copy_(gradient)
        # The sign of NaN is 0: an attack would silently stay where it is.
        self._sum = self._sum + gradient.sum()
        return gradient, loss.detach()

    def was_finite(self) -> bool:
        """Whether no gradient so far held NaN or infinity. This waits for the device."""
        return bool(torch.isfinite(torch.as_tensor(self._sum)))

    @torch.no_grad()
    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self._classifier(pixels), labels, reduction="none")
