"""Batch norms as affine maps: the same numbers, by torch's own forward and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from zoo.norms import with_statistics

from simhpc.zoo.folding import Affine, fold_batch_norms
from simhpc.zoo.timm_import import timm


def test_by_hand():
    layer, norm = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0)
    layer.weight.data.fill_(3.0)
    layer.bias.data.fill_(1.0)
    norm.running_mean.fill_(4.0)
    norm.running_var.fill_(4.0)
    norm.weight.data.fill_(6.0)
    norm.bias.data.fill_(0.5)
    model = nn.Sequential(layer, norm).eval().requires_grad_(False)
    assert fold_batch_norms(model, torch.ones(1, 1)) == (1, 0)
    # (3x + 1 - 4) / 2 * 6 + 0.5 = 9x - 8.5
    assert (float(layer.weight), float(layer.bias)) == (9.0, -8.5)
    assert float(model(torch.tensor([[2.0]]))) == 9.5


NETWORKS = {
    "after a convolution": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)), (1, 0)),
    "grouped, no bias": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)),
        (1, 0),
    ),
    "no affine part": (lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, affine=False)), (1, 0)),
    "with timm's activation": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), timm.layers.BatchNormAct2d(5), nn.Conv2d(5, 2, 1)),
        (1, 0),
    ),
    "before the convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, padding=1)), (0, 1)),
    "after an activation": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5)), (0, 1)),
    "two after one layer": (lambda: TwoAfterOne(), (0, 2)),
    "a layer used twice": (lambda: Twice(), (0, 1)),
}


class TwoAfterOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return self.one(x) * self.other(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


@pytest.mark.parametrize("name", NETWORKS)
def test_folded_networks_answer_as_before(name):
    make, expected = NETWORKS[name]
    torch.manual_seed(1)
    model, inputs = with_statistics(make()), torch.randn(3, 3, 9, 9).double()
    before = model(inputs)
    assert fold_batch_norms(model, inputs) == expected
    torch.testing.assert_close(model(inputs), before, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_an_output_that_is_used_twice_cannot_be_seen():
    """Which is why `make_fast` compares; see test_fast.py."""

    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            x = self.conv(x)
            return x + self.norm(x)

    model, inputs = with_statistics(Skip()), torch.randn(2, 3, 4, 4).double()
    before = model(inputs)
    assert fold_batch_norms(model, inputs) == (1, 0)
    assert (model(inputs) - before).abs().max() > 0.01


def test_what_has_no_fixed_statistics_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norms(model, torch.randn(2, 3, 4, 4)) == (0, 0)
    training = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    assert fold_batch_norms(training, torch.randn(2, 3, 4, 4)) == (0, 0)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 7), (4, 3, 5, 6)])
def test_affine_maps_of_any_shape_keep_the_dtype(shape):
    affine, x = Affine(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, -1.0])), torch.randn(shape)
    expected = torch.stack([x[:, 0], 2 * x[:, 1] + 1, 3 * x[:, 2] - 1], 1)
    torch.testing.assert_close(affine(x), expected)
    assert affine(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_image_with_a_transposed_gradient(dtype):
    """torch gets this one wrong on the CPU, as of 2.13; should that change, it is still right here."""
    torch.manual_seed(0)
    norm = with_statistics(nn.Sequential(nn.BatchNorm2d(8))).to(dtype)
    x = torch.randn(1, 8, 4, 4, dtype=dtype, requires_grad=True)
    arriving = torch.randn(1, 16, 8, dtype=dtype).transpose(1, 2).unflatten(2, (4, 4))
    scale = (norm[0].weight / (norm[0].running_var + norm[0].eps).sqrt()).view(1, -1, 1, 1)
    fold_batch_norms(norm, x.detach())
    (ours,) = torch.autograd.grad(norm(x), x, arriving)
    torch.testing.assert_close(ours, arriving * scale)
