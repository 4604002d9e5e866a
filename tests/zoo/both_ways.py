"""A layer and one that takes its place, compared in double precision."""

from __future__ import annotations

import copy

import torch


def there_and_back(layer, x):
    """What comes out, and the gradient of its squares' sum."""
    variable = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
    made = layer(variable)
    return made.detach(), torch.autograd.grad(made.square().sum(), variable)[0]


def assert_same(layer, other, x):
    exact = there_and_back(copy.deepcopy(layer).double(), x.double())
    for found, expected in zip(there_and_back(other, x), exact, strict=True):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm().clamp_(min=1e-30)) < 1e-5
