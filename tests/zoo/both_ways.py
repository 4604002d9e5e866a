"""A layer and one that takes its place, compared in double precision."""

from __future__ import annotations

import copy

import torch


def there_and_back(layer, *given):
    """What comes out, and the gradients of its squares' sum."""
    variables = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True) for x in given]
    made = layer(*variables)
    return made.detach(), *torch.autograd.grad(made.square().sum(), variables)


def assert_same(layer, other, *given):
    exact = there_and_back(copy.deepcopy(layer).double(), *(x.double() for x in given))
    for found, expected in zip(there_and_back(other, *given), exact, strict=True):
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm().clamp_(min=1e-30)) < 1e-5
