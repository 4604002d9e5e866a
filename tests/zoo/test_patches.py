from __future__ import annotations

import pytest
import torch
from torch import nn

from simhpc.zoo.patches import PatchProjection, project_patches


@pytest.mark.parametrize(
    ("kernel", "size", "bias"), [(4, (16, 16), True), ((2, 3), (8, 9), False), (5, (17, 23), True), (8, (8, 8), True)]
)
def test_the_same_as_the_convolution(kernel, size, bias):
    """Also where pixels at the right and lower edges fill no patch."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 7, kernel, stride=kernel, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = convolution(x)
    arriving = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, arriving)
    found = PatchProjection(convolution)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, x, arriving)[0], gradient)


def test_only_convolutions_that_look_at_each_pixel_once():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Conv2d(8, 8, 2, stride=2, padding=1),
        nn.Conv2d(8, 8, 2, stride=2, groups=2),
        nn.Conv2d(8, 8, 2, stride=2, dilation=2),
    )
    assert project_patches(model) == 1
    assert isinstance(model[0], PatchProjection)
    assert [type(module) for module in model[1:]] == [nn.Conv2d] * 5
