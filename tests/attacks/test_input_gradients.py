"""Directions of input gradients: against autograd and finite differences, at any scale, batch size and noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from simhpc.attacks.attack import NonFiniteGradientError
from simhpc.attacks.batches import Target
from simhpc.attacks.input_gradients import directions

CPU = torch.device("cpu")
STD = 4 / 255


def network(scale=1.0, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, 5))
    with torch.no_grad():
        layers[-1].weight.mul_(scale)
    return layers.eval().requires_grad_(False)


def images(n=7):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator), torch.arange(n) % 5


def found_of(model, n=7, *, batch_size=3, std=STD, on_batch=lambda _: None):
    shown, labels = images(n)
    seeds = [(10 + i, 100 + i) for i in range(n)]
    return directions(Target(model, CPU), shown, labels, seeds, std, batch_size=batch_size, on_batch=on_batch)


def test_each_is_autograds_gradient_over_its_length():
    model, (shown, labels), found = network(), images(), found_of(network())
    for i in range(len(shown)):
        pixels = (shown[i : i + 1].double() / 255).requires_grad_(True)
        functional.cross_entropy(model.double()(pixels), labels[i : i + 1]).backward()
        norm = pixels.grad.norm()
        assert float(found.norms[i]) == pytest.approx(float(norm), rel=1e-5)
        np.testing.assert_allclose(found.unit[i], pixels.grad[0] / norm, atol=1e-3)
    np.testing.assert_allclose(found.unit.float().flatten(1).norm(dim=1), 1.0, atol=1e-3)


def test_it_is_the_slope_of_the_loss():
    """By finite differences: a step along the direction changes the loss by its length times the norm."""
    model, (shown, labels), found = network().double(), images(), found_of(network())
    pixels, step = shown.double() / 255, 1e-5
    along = found.unit.double() * step
    change = [functional.cross_entropy(model(pixels + sign * along), labels, reduction="none") for sign in (0.5, -0.5)]
    np.testing.assert_allclose((change[0] - change[1]) / step, found.norms, rtol=2e-3)


def test_noise_cosines_are_those_of_the_two_copies():
    model, (shown, labels), found = network(), images(), found_of(network())
    for i in range(len(shown)):
        copies = []
        for seed in (10 + i, 100 + i):
            noise = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(seed))
            pixels = (shown[i] / 255 + STD * noise).clamp(0, 1)[None].requires_grad_(True)
            functional.cross_entropy(model(pixels), labels[i : i + 1]).backward()
            copies.append(pixels.grad.flatten())
        expected = functional.cosine_similarity(*copies, dim=0)
        assert float(found.noise_cosines[i]) == pytest.approx(float(expected), abs=1e-5)


def test_more_noise_makes_them_less_alike():
    little, more = (found_of(network(scale=5), std=std).noise_cosines.mean() for std in (0.1 / 255, 60 / 255))
    assert more < little
    assert little > 0.9999


def test_of_a_linear_model_with_two_classes_noise_changes_nothing():
    """Its gradient has one direction at all images, up to the sign of the class."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2)).requires_grad_(False)
    shown, labels = images()
    found = directions(
        Target(model, CPU), shown, labels % 2, [(i, 50 + i) for i in range(7)], STD, batch_size=4, on_batch=lambda _: 0
    )
    np.testing.assert_allclose(found.noise_cosines, 1.0, atol=1e-6)
    sign = 1 - 2 * (labels % 2)
    same = found.unit.float() * sign[:, None, None, None]
    np.testing.assert_allclose(same, same[:1].expand_as(same), atol=1e-3)


def test_the_batch_size_changes_nothing_but_rounding_and_progress():
    one, two = found_of(network(), batch_size=1), found_of(network(), batch_size=5)
    np.testing.assert_allclose(one.unit, two.unit, atol=1e-3)
    np.testing.assert_allclose(one.noise_cosines, two.noise_cosines, atol=1e-5)
    done = []
    found_of(network(), batch_size=3, on_batch=done.append)
    assert done == [3, 6, 7]


@pytest.mark.parametrize("scale", [1e-25, 1e-12])
def test_gradients_that_are_tiny_have_a_direction_all_the_same(scale):
    """Their squares, and they themselves in 16 bits, would be 0."""
    found = found_of(network(scale))
    assert (found.norms > 0).all()
    assert (found.norms < 10 * scale).all()
    np.testing.assert_allclose(found.unit.float().flatten(1).norm(dim=1), 1.0, atol=1e-3)
    assert torch.isfinite(found.noise_cosines).all()


def test_no_gradient_is_no_direction():
    found = found_of(network(scale=0.0))
    assert not found.norms.any()
    assert not found.unit.any()
    assert found.noise_cosines.isnan().all()


def test_one_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteGradientError, match="no direction"):
        found_of(network(scale=math.nan))
