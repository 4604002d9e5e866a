"""What a network makes of an image right before it classifies it: the features that representations are compared by.

timm's networks say it themselves (`forward_head(..., pre_logits=True)`). Of any other network it is the input of the
last linear layer that it runs, if that layer has an output for every class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.packed import PackedLinear
from simhpc.zoo.readout import ReadOut

TIMM = "timm's forward_head(pre_logits=True)"


class _PreLogits(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)
        return features


class _InputOf(nn.Module):
    def __init__(self, network: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        with self.layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])):
            self.network(x)
        return seen[-1]


@torch.no_grad()
def penultimate(classifier: PixelClassifier, pixels: Tensor) -> tuple[PixelClassifier | None, str]:
    """The same network up to its features.

    A `ReadOut`, which networks with random weights are given, is not a part of the network.

    Args:
        classifier: (B, 3, H, W) pixels to (B, K) logits, frozen; shares its weights with the result.
        pixels: float32 (B, 3, H, W), on its device, to try it on.

    Returns:
        (B, 3, H, W) pixels to float32 (B, D), and where in the network that is; or None, and why there is nothing.
    """
    network = classifier.model
    while isinstance(network, ReadOut):
        network = network.network

    def wrapped(module: nn.Module) -> PixelClassifier:
        return PixelClassifier(
            module, classifier.data, fits_inside=classifier.fits_inside, in_bfloat16=classifier.in_bfloat16
        ).to(pixels.device)

    if hasattr(network, "forward_features") and hasattr(network, "forward_head"):
        found = wrapped(_PreLogits(network))
        # One's own methods of these names may do, take or return anything.
        try:
            features = found(pixels)
        except Exception:  # noqa: S110 - then as of any other network
            pass
        else:
            if _is_matrix(features, pixels):
                return found, TIMM
    name, layer = _last_linear(network, classifier, pixels)
    if layer is None:
        return None, name
    found = wrapped(_InputOf(network, layer))
    if not _is_matrix(found(pixels), pixels):
        return None, f"the input of its last linear layer ({name}) is not one vector per image"
    return found, f"the input of its last linear layer, {name}"


def _is_matrix(features: object, pixels: Tensor) -> bool:
    return isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(pixels)


def _last_linear(network: nn.Module, classifier: PixelClassifier, pixels: Tensor) -> tuple[str, nn.Module | None]:
    """Name and module of the linear layer that runs last; or why it will not do."""
    ran: list[nn.Module] = []
    names = {module: name for name, module in network.named_modules() if isinstance(module, (nn.Linear, PackedLinear))}
    hooks = [module.register_forward_hook(lambda layer, *_: ran.append(layer)) for module in names]
    try:
        logits = PixelClassifier(
            network, classifier.data, fits_inside=classifier.fits_inside, in_bfloat16=classifier.in_bfloat16
        ).to(pixels.device)(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    if not ran:
        return "it runs no linear layer (torch.nn.Linear)", None
    last: Any = ran[-1]
    if last.out_features != logits.shape[1]:
        return f"its last linear layer ({names[last]}) has {last.out_features} outputs, not one for each class", None
    return names[last] or "itself", last
