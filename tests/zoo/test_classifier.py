from __future__ import annotations

import torch
from torch import nn

from simhpc.study import DataConfig
from simhpc.zoo.classifier import PixelClassifier

DATA = DataConfig(input_size_px=4, crop_pct=1.0, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


class Sums(nn.Module):
    """Gives the sum of each channel, so that what arrives can be read off."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x.sum((2, 3)) + self.bias


def test_normalises_per_channel_inside():
    pixels = torch.full((1, 3, 4, 4), 0.5)
    expected = 16 * torch.tensor([[(0.5 - 0.1) / 0.5, (0.5 - 0.2) / 0.25, (0.5 - 0.3) / 2.0]])
    torch.testing.assert_close(PixelClassifier(Sums(), DATA)(pixels), expected)


def test_is_frozen_and_in_eval_mode():
    classifier = PixelClassifier(nn.Sequential(nn.Dropout(), Sums()), DATA)
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert not any(module.training for module in classifier.modules())


def test_canonical_grid_resizes_inside_and_changes_nothing_where_sizes_agree():
    model, same = Sums(), torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(PixelClassifier(model, DATA, fits_inside=True)(same), PixelClassifier(model, DATA)(same))
    larger = torch.rand(2, 3, 8, 8, requires_grad=True)
    logits = PixelClassifier(model, DATA, fits_inside=True)(larger)
    assert logits.shape == (2, 3)
    (gradient,) = torch.autograd.grad(logits.sum(), larger)
    assert gradient.abs().sum() > 0
