"""Penultimate features: with the classifier's own last layer they give its logits; or it is said why there are none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from simhpc.study import DataConfig
from simhpc.zoo.classifier import PixelClassifier
from simhpc.zoo.fast import make_fast
from simhpc.zoo.penultimate import TIMM, penultimate
from simhpc.zoo.readout import fit_readout
from simhpc.zoo.timm_import import timm

DATA = DataConfig(input_size_px=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=1.0)


def pixels(n=2):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def classifier(network, **options):
    return PixelClassifier(network, DATA, **options)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "stem_width": 8}),
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16], "patch_size": 1}),
    ],
)
def test_of_timms_networks_also_when_made_faster(name, args):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=7, **args).eval()
    expected = classifier(copy.deepcopy(network))(pixels())
    fast = make_fast(classifier(network), pixels())
    assert fast.done
    found, where = penultimate(fast.classifier, pixels())
    assert where == TIMM
    features = found(pixels())
    assert features.shape == (2, network.num_features)
    np.testing.assert_allclose(network.get_classifier()(features).detach(), expected, atol=1e-4)


class Net(nn.Module):
    def __init__(self, after=None, k=5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(64, 9), nn.Tanh())
        self.head, self.after = nn.Linear(9, k), after

    def forward(self, x):
        logits = self.head(self.body(x))
        return logits if self.after is None else self.after(logits)


@pytest.mark.parametrize("after", [None, nn.LogSoftmax(dim=1)])
def test_of_ones_own_network_it_is_what_its_last_linear_layer_is_given(after):
    network = Net(after).eval()
    found, where = penultimate(classifier(network), pixels())
    assert where == "the input of its last linear layer, head"
    np.testing.assert_allclose(found(pixels(3)), network.body((pixels(3) - 0.5) / 0.5).detach(), atol=1e-6)
    assert not network.head._forward_pre_hooks


def test_methods_of_timms_names_that_do_something_else_are_not_believed():
    class Odd(Net):
        def forward_features(self, x):
            return x

        def forward_head(self, x, pre_logits=False):
            return x  # not one vector per image

    class Other(Net):
        def forward_features(self, x):
            return x

        def forward_head(self, x):
            return x  # takes no pre_logits

    for network in (Odd(), Other()):
        assert penultimate(classifier(network.eval()), pixels())[1] == "the input of its last linear layer, head"


def test_where_there_is_none_it_is_said():
    convolutional = nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten())
    found, why = penultimate(classifier(convolutional), pixels())
    assert found is None
    assert "no linear layer" in why
    found, why = penultimate(classifier(Net(after=nn.Sequential(nn.Linear(5, 3), nn.ConstantPad1d(2, 0.0)))), pixels())
    assert found is None
    assert why == "its last linear layer (after.0) has 3 outputs, not one for each class"


def test_a_linear_layer_on_more_than_one_vector_per_image():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            return self.head(x.flatten(2).transpose(1, 2)).mean(1)

    found, why = penultimate(classifier(Tokens()), pixels())
    assert found is None
    assert why == "the input of its last linear layer (head) is not one vector per image"


def test_a_network_that_is_a_linear_layer_and_one_that_runs_it_twice():
    class Twice(Net):
        def forward(self, x):
            return self.head(self.body(x)) + self.head(2 * self.body(x))

    network = Twice().eval()
    found, _ = penultimate(classifier(network), pixels())
    np.testing.assert_allclose(found(pixels()), 2 * network.body((pixels() - 0.5) / 0.5).detach(), atol=1e-6)


def test_what_random_networks_are_read_out_with_is_no_part_of_them():
    network = Net(k=5).eval()
    read_out = fit_readout(classifier(network), pixels(8), torch.arange(8) % 3, num_classes=3)
    assert read_out(pixels()).shape == (2, 3)
    found, where = penultimate(read_out, pixels())
    assert where == "the input of its last linear layer, head"
    np.testing.assert_allclose(found(pixels()), network.body((pixels() - 0.5) / 0.5).detach(), atol=1e-6)


def test_under_autocast_features_are_float32_all_the_same():
    found, _ = penultimate(classifier(Net().eval(), in_bfloat16=True), pixels())
    assert found(pixels()).dtype == torch.float32
