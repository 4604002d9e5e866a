"""Layers are compared before they take another one's place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from simhpc.zoo.stems import Stem
from simhpc.zoo.substitutes import substitutes


class Twice(nn.Module):
    """Its second layer has two names and is used three times; its stem holds one that nothing may replace."""

    def __init__(self):
        super().__init__()
        self.stem = Stem(nn.Conv2d(3, 8, 4, 4))
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)
        self.again = self.second
        self.unused = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.second(self.again(self.second(self.first(self.stem(x)))))
        return self.head(x.mean((2, 3)))


class Other(nn.Module):
    def __init__(self, layer, factor=1.0):
        super().__init__()
        self.layer, self.factor = [layer], factor  # not a part of the model

    def forward(self, x):
        return self.factor * self.layer[0].forward(x)


def model_and_inputs():
    torch.manual_seed(0)
    return Twice().requires_grad_(False), torch.randn(2, 3, 16, 16)


def test_every_name_of_what_was_asked_for():
    model, inputs = model_and_inputs()
    asked = []

    def make(layer, shape, made_shape):
        asked.append((layer, tuple(shape), tuple(made_shape)))
        return None if layer is model.first else Other(layer)

    found = substitutes(model, inputs, make)
    assert asked == [
        (model.first, (2, 8, 4, 4), (2, 8, 4, 4)),
        (model.second, (2, 8, 4, 4), (2, 8, 4, 4)),
        (model.head, (2, 8), (2, 10)),
    ]
    assert set(found) == {"second", "again", "head"}
    assert found["second"] is found["again"]
    assert not any(isinstance(module, Other) for module in model.modules())


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_one_that_computes_something_else_is_named(factor):
    model, inputs = model_and_inputs()
    with pytest.raises(RuntimeError, match=r"^Linear\(in_features=8, .* is not the same, relative error (0.002|nan)$"):
        substitutes(model, inputs, lambda layer, *_: Other(layer, factor) if layer is model.head else None)
    assert not model.head._forward_hooks


def test_one_whose_gradient_alone_is_wrong_is_named():
    class Detached(Other):
        def forward(self, x):
            return super().forward(x.detach() + 0 * x)

    model, inputs = model_and_inputs()
    with pytest.raises(RuntimeError, match="is not the same, relative error 1"):
        substitutes(model, inputs, lambda layer, *_: Detached(layer))


def test_a_layer_of_which_something_else_is_made_keeps_its_place():
    """Whatever hangs on it would be lost; and what is asked for by name is not seen."""
    for hook in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        model, inputs = model_and_inputs()
        getattr(model.first, hook)(lambda *_: None)
        assert set(substitutes(model, inputs, lambda layer, *_: Other(layer))) == {"second", "again", "head"}
        assert len(model.first._forward_hooks) == (hook == "register_forward_hook")
    model, _ = model_and_inputs()
    found = substitutes(nn.Sequential(ByName(model.head)), torch.zeros(2, 8), lambda layer, *_: Other(layer))
    assert found == {}


def test_a_layer_that_sees_two_sizes_keeps_its_place():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 3)
    network = nn.Sequential(layer, layer, nn.Conv2d(3, 8, 1)).requires_grad_(False)
    assert set(substitutes(network, torch.randn(2, 3, 8, 8), lambda layer, *_: Other(layer))) == {"2"}


class ByName(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head(input=x)
