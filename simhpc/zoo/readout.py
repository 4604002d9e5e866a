"""Something to attack in a network that has learned nothing.

A network with random weights gives every image the same class, and what no model classifies correctly enters no
measure. So its logits are read out by a linear layer that is fitted to the images it is shown (a linear classifier on
random features: Rahimi & Recht, "Random features for large-scale kernel machines", 2007), after its batch norms have
been given the statistics of these images: without, signals die out or grow without bound in deep networks. That serves
to try a study out, from the first attack to the matrix; the numbers mean nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simhpc.zoo.classifier import PixelClassifier

FITTED_TO = 64
"""Images at most: with more of them there would be no end to a fit that nobody needs."""

_RIDGE = 1e-3


class ReadOut(nn.Module):
    """Logits (B, J) of a network to logits (B, K) of the classes of the image set.

    Args:
        centre: (J,), what is subtracted first: the differences between images may be small beside it.
        weight, bias: (K, J) and (K,).
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, centre: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("centre", centre)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.network(x) - self.centre, self.weight, self.bias)


@torch.no_grad()
def wake(network: nn.Module) -> None:
    """Give linear layers that begin as nothing but zeros, as some of timm's classifiers do, random weights."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.weight.normal_(std=0.02)


@torch.no_grad()
def fit_readout(classifier: PixelClassifier, pixels: Tensor, labels: Tensor, num_classes: int) -> PixelClassifier:
    """The same network with a `ReadOut` by ridge regression of the one-hot labels, in double precision.

    Args:
        classifier: (B, 3, H, W) to (B, J), frozen.
        pixels: float32 (N, 3, H, W) in [0, 1], N <= `FITTED_TO`.
        labels: int64 (N,) in 0..K-1.
        num_classes: K.
    """
    _set_statistics(classifier, pixels)
    found = torch.cat([classifier(part) for part in torch.split(pixels, 8)]).double()
    centre = found.mean(0)
    # Every feature alike, however small its differences are; without any, it says nothing.
    spread = found.std(0, unbiased=False)
    scale = torch.where(spread > 1e-6 * centre.abs(), 1.0 / spread, 0.0) / found.shape[1] ** 0.5
    features = (found - centre) * scale
    wanted = nn.functional.one_hot(labels, num_classes).double()
    bias = wanted.mean(0)
    gram = features @ features.T + _RIDGE * torch.eye(len(features), dtype=torch.float64)
    weight = (features.T @ torch.linalg.solve(gram, wanted - bias)).T * scale
    # Logits some units apart, as a classifier's are.
    gain = 10.0
    network = ReadOut(classifier.model, centre.float(), (gain * weight).float(), (gain * bias).float())
    return PixelClassifier(
        network, classifier.data, fits_inside=classifier.fits_inside, in_bfloat16=classifier.in_bfloat16
    )


def _set_statistics(classifier: PixelClassifier, pixels: Tensor) -> None:
    norms = [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    # Two also where there is one: in training mode a batch norm takes no single value.
    classifier(pixels[torch.arange(max(2, min(8, len(pixels)))) % len(pixels)])
    for norm in norms:
        norm.eval()
