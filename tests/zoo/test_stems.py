from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from simhpc.zoo.stems import Stem, is_patches, make_stems

axes = st.tuples(st.integers(1, 8), st.integers(1, 5), st.integers(0, 7), st.integers(1, 20))
"""Kernel, stride, padding, side."""


@given(rows=axes, columns=axes, channels=st.integers(1, 4), bias=st.booleans())
def test_the_same_as_the_convolution(rows, columns, channels, bias):
    """Forwards and backwards, whatever is left over at the right and lower edges."""
    kernel, stride, padding, size = zip(rows, columns, strict=True)
    assume(all(p < k <= side + 2 * p for k, p, side in zip(kernel, padding, size, strict=True)))
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 3, kernel, stride, padding, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    expected = convolution(x)
    arriving = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, x, arriving)
    found = Stem(convolution)(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, x, arriving)[0], gradient)


@given(
    patch=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    size=st.tuples(st.integers(6, 20), st.integers(6, 20)),
    channels=st.integers(1, 4),
    bias=st.booleans(),
)
def test_patches_as_a_product(patch, size, channels, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, 5, patch, patch, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
    expected = convolution(x)
    arriving = torch.randn_like(expected)
    found = Stem(convolution, is_product=True)(x)
    torch.testing.assert_close(found, expected)
    assert found.permute(0, 2, 3, 1).is_contiguous()
    (gradient,) = torch.autograd.grad(expected, x, arriving)
    torch.testing.assert_close(torch.autograd.grad(found, x, arriving)[0], gradient)


def test_a_gradient_worked_out_by_hand():
    """One channel in a row of 5, kernel (1, 10, 100), stride 2, padding 1: outputs see pixels (-, 0, 1), (1, 2, 3) and
    (3, 4, -)."""
    convolution = nn.Conv2d(1, 1, (1, 3), (1, 2), (0, 1), bias=False).requires_grad_(False)
    convolution.weight = nn.Parameter(torch.tensor([[[[1.0, 10.0, 100.0]]]]), requires_grad=False)
    x = torch.zeros(1, 1, 1, 5, requires_grad=True)
    arriving = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    (gradient,) = torch.autograd.grad(Stem(convolution)(x), x, arriving)
    assert gradient.flatten().tolist() == [10.0, 100.0 + 2.0, 20.0, 200.0 + 3.0, 30.0]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("how", [(7, 2, 3), (8, 8)])
def test_bfloat16_is_what_autocast_gives(how, memory_format):
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 16, *how).requires_grad_(False)
    stem = Stem(convolution, is_product=is_patches(convolution)).to(memory_format=memory_format)
    x = torch.rand(2, 3, 32, 32).to(memory_format=memory_format).requires_grad_(True)
    gradients = []
    for layer in (convolution, stem):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = layer(x)
        assert made.dtype == torch.bfloat16
        gradients.append(torch.autograd.grad(made.float().square().sum(), x)[0])
    assert gradients[1].dtype == torch.float32
    off = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert off < 2**-7, float(off)


def test_only_strided_convolutions_of_pixels():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=2, padding=3),
        nn.Conv2d(3, 8, 16, stride=16),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.Conv2d(3, 9, 3, stride=2, groups=3),
        nn.Conv2d(3, 8, 3, stride=2, dilation=2),
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 8, 1, stride=2, padding=1),
    )
    assert make_stems(model) == 2
    assert [type(module) for module in model] == [Stem, Stem, *[nn.Conv2d] * 6]


def test_only_patches_that_nothing_else_looks_at_are_products():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4),
        nn.Conv2d(3, 8, 4, stride=2),
        nn.Conv2d(3, 8, 4, stride=4, padding=1),
        nn.Conv2d(3, 8, 4, stride=4),
    )
    model[3].register_forward_hook(lambda *_: None)
    assert make_stems(model, as_products=True) == 1
    assert [type(module) for module in model] == [Stem, *[nn.Conv2d] * 3]
