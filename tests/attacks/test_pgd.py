"""PGD against torchattacks, against a slow version of its equation, and on a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from simhpc.attacks.noise import uniform_noise
from simhpc.attacks.pgd import pgd_linf

EPS = 8 / 255


class Linear(nn.Module):
    """Two classes told apart by one weight per pixel: the best attack is known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        score = (x * self.weights).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


def test_by_hand_on_a_linear_model():
    weights = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    pixels = torch.tensor([[0.5, 0.5, 0.98], [0.5, 0.01, 0.5]]).view(2, 3, 1, 1)
    attacked = pgd_linf(Linear(weights), pixels, torch.tensor([0, 1]), pixels, eps=0.1, step_size=0.03, steps=10).view(
        2, 3
    )
    # Class 0 loses by lowering the score, class 1 by raising it; then eps, then [0, 1] stop the walk.
    torch.testing.assert_close(attacked[0], torch.tensor([0.4, 0.6, 0.88]))
    torch.testing.assert_close(attacked[1], torch.tensor([0.6, 0.0, 0.6]))


def test_steps_are_counted():
    weights, pixels = torch.ones(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
    for steps in (0, 1, 2):
        attacked = pgd_linf(Linear(weights), pixels, torch.tensor([0]), pixels, eps=0.1, step_size=0.03, steps=steps)
        torch.testing.assert_close(attacked, pixels - 0.03 * steps)


def test_the_start_is_projected():
    pixels = torch.full((1, 3, 2, 2), 0.95)
    start = torch.tensor([2.0, 0.0, 0.9]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    attacked = pgd_linf(Linear(torch.ones(1, 3, 1, 1)), pixels, torch.tensor([0]), start, eps=0.1, step_size=1, steps=0)
    torch.testing.assert_close(attacked[0, :, 0, 0], torch.tensor([1.0, 0.85, 0.9]))


def slow_pgd(classifier, pixels, labels, start, eps, step_size, steps):
    """The equation in double precision, one image at a time, with numpy's projection."""
    results = []
    for x, y, s in zip(pixels, labels, start, strict=True):
        low, high = np.maximum(x.double().numpy() - eps, 0), np.minimum(x.double().numpy() + eps, 1)
        current = np.clip(s.double().numpy(), low, high)
        for _ in range(steps):
            variable = torch.tensor(current[None], dtype=torch.float32, requires_grad=True)
            loss = functional.nll_loss(functional.log_softmax(classifier(variable), 1), y[None])
            loss.backward()
            current = np.clip(current + step_size * np.sign(variable.grad[0].numpy()), low, high)
        results.append(torch.tensor(current, dtype=torch.float32))
    return torch.stack(results)


def test_equals_the_equation(target):
    classifier, images, labels = target
    pixels, labels = images[:6].float() / 255, labels[:6]
    start = pixels + EPS * uniform_noise(range(6), tuple(pixels.shape[1:]))
    ours = pgd_linf(classifier, pixels, labels, start, eps=EPS, step_size=EPS / 4, steps=5)
    slow = slow_pgd(classifier, pixels, labels, start, EPS, EPS / 4, 5)
    # A gradient that is zero but for rounding may take either sign; a handful of pixels may differ.
    assert ((ours - slow).abs() > 1e-5).float().mean() < 0.01


@pytest.mark.parametrize(("eps_255", "steps"), [(8, 20), (32, 20)])
def test_as_strong_as_torchattacks_from_the_same_start(target, eps_255, steps):
    classifier, images, labels = target
    eps, pixels = eps_255 / 255, images.float() / 255
    torch.manual_seed(11)
    theirs = torchattacks.PGD(classifier, eps=eps, alpha=0.1 * eps, steps=steps, random_start=True)(pixels, labels)
    torch.manual_seed(11)  # torchattacks draws its start with the global generator
    start = (pixels + torch.empty_like(pixels).uniform_(-eps, eps)).clamp(0, 1)
    ours = pgd_linf(classifier, pixels, labels, start, eps=eps, step_size=0.1 * eps, steps=steps)
    for adversarial in (ours, theirs):
        assert (adversarial - pixels).abs().max() <= eps + 1e-6
        assert adversarial.min() >= 0
        assert adversarial.max() <= 1

    def fooled(adversarial):
        with torch.no_grad():
            return (classifier(adversarial).argmax(1) != labels).double().mean().item()

    assert abs(fooled(ours) - fooled(theirs)) <= 0.01
    assert ((ours - theirs).abs() > 1e-5).float().mean() < 0.02
    if eps_255 == 32:
        assert fooled(ours) > 0.5


def test_parameters_get_no_gradient_and_inputs_are_left_alone(target):
    classifier, images, labels = target
    pixels = images[:4].float() / 255
    before = pixels.clone()
    attacked = pgd_linf(classifier, pixels, labels[:4], pixels, eps=EPS, step_size=EPS, steps=2)
    assert torch.equal(pixels, before)
    assert not attacked.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_noise_belongs_to_the_image():
    together = uniform_noise([5, 6, 7], (3, 4, 4))
    torch.testing.assert_close(uniform_noise([6], (3, 4, 4))[0], together[1], rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])
    many = uniform_noise(range(50), (3, 16, 16))
    assert many.min() >= -1
    assert many.max() <= 1
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 3**-0.5) < 0.01
