"""Every attack against torchattacks or its paper's equations, and on cases worked by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from simhpc.attacks import method, methods
from simhpc.attacks.gradient import InputGradient
from simhpc.attacks.methods.apgd_ce import apgd_ce, check_points
from simhpc.attacks.methods.fgsm import fgsm
from simhpc.attacks.methods.mi_fgsm import mi_fgsm
from simhpc.attacks.methods.pgd_l2 import pgd_l2
from simhpc.attacks.methods.pgd_linf import pgd_linf
from simhpc.attacks.noise import unit_ball_points
from simhpc.errors import StudyError
from simhpc.stages.method import resolve_attack
from simhpc.study import Attack

EPS = 8 / 255


class Linear(nn.Module):
    """Two classes told apart by one weight per pixel: the best attack is known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x):
        score = (x * self.weights).sum((1, 2, 3))
        return torch.stack([score, -score], 1)


def on_linear(attack, weights, pixels, labels, **settings):
    """The attack without random start on a linear model."""
    with torch.no_grad():
        gradient = InputGradient(Linear(weights))
        return attack(gradient, pixels, torch.tensor(labels), torch.zeros_like(pixels), **settings)


def fooled(classifier, adversarial, labels):
    with torch.no_grad():
        return (classifier(adversarial).argmax(1) != labels).double().mean().item()


def test_pgd_by_hand_on_a_linear_model():
    weights = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    pixels = torch.tensor([[0.5, 0.5, 0.98], [0.5, 0.01, 0.5]]).view(2, 3, 1, 1)
    attacked = on_linear(pgd_linf, weights, pixels, [0, 1], eps=0.1, step_size=0.03, steps=10).view(2, 3)
    # Class 0 loses by lowering the score, class 1 by raising it; then eps, then [0, 1] stop the walk.
    torch.testing.assert_close(attacked[0], torch.tensor([0.4, 0.6, 0.88]))
    torch.testing.assert_close(attacked[1], torch.tensor([0.6, 0.0, 0.6]))


def test_pgd_l2_by_hand_on_a_linear_model():
    weights = torch.tensor([3.0, 0.0, -4.0]).view(1, 3, 1, 1)
    pixels = torch.full((1, 3, 1, 1), 0.5)
    # Along -(3, 0, -4) / 5, as far as eps.
    one = on_linear(pgd_l2, weights, pixels, [0], eps=0.1, step_size=0.05, steps=1).view(3)
    torch.testing.assert_close(one, torch.tensor([0.47, 0.5, 0.54]))
    many = on_linear(pgd_l2, weights, pixels, [0], eps=0.1, step_size=0.05, steps=9).view(3)
    torch.testing.assert_close(many, torch.tensor([0.44, 0.5, 0.58]))


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e-12, 1e12])
def test_pgd_l2_steps_are_of_one_length_however_small_the_gradient(size):
    pixels = torch.full((1, 3, 1, 1), 0.5)

    def gradient(images, labels):
        return torch.tensor([3.0, 0.0, -4.0]).view(1, 3, 1, 1) * size

    with torch.no_grad():
        moved = pgd_l2(gradient, pixels, torch.tensor([0]), torch.zeros_like(pixels), eps=0.2, step_size=0.05, steps=1)
    torch.testing.assert_close(moved.view(3), torch.tensor([0.53, 0.5, 0.46]), rtol=1e-4, atol=1e-5)


def test_fgsm_by_hand_on_a_linear_model():
    weights = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1)
    pixels = torch.tensor([0.5, 0.95, 0.5]).view(1, 3, 1, 1)
    attacked = on_linear(fgsm, weights, pixels, [0], eps=0.1, step_size=0.1, steps=1).view(3)
    torch.testing.assert_close(attacked, torch.tensor([0.4, 1.0, 0.4]))


def test_steps_are_counted():
    weights, pixels = torch.ones(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.5)
    for steps in (0, 1, 2):
        attacked = on_linear(pgd_linf, weights, pixels, [0], eps=0.1, step_size=0.03, steps=steps)
        torch.testing.assert_close(attacked, pixels - 0.03 * steps)


class Counting(InputGradient):
    """How often the model is run, and for what."""

    def __init__(self, classifier):
        super().__init__(classifier)
        self.gradients = self.losses = 0

    def with_loss(self, pixels, labels):
        self.gradients += 1
        return super().with_loss(pixels, labels)

    def loss(self, pixels, labels):
        self.losses += 1
        return super().loss(pixels, labels)


@pytest.mark.parametrize("name", method.names())
def test_every_attack_makes_its_steps_and_stays_in_its_ball(target, name):
    classifier, images, labels = target
    found = method.find(name)
    steps = 7 if found.takes_steps else 1
    clean = images[:6].float() / 255
    before = clean.clone()
    gradient = Counting(classifier)
    unit = unit_ball_points(found.norm, range(6), tuple(clean.shape[1:]))
    with torch.no_grad():
        attacked = found.attack(
            gradient, clean, labels[:6], unit, eps=EPS, step_size=found.step_size_eps * EPS, steps=steps
        )
    assert (gradient.gradients, gradient.losses) == (steps, 1 if name == "apgd-ce" else 0)
    assert torch.equal(clean, before)
    assert not attacked.requires_grad
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    offset = (attacked - clean).flatten(1)
    length = offset.abs().amax(1) if found.norm == "linf" else offset.norm(dim=1)
    assert (length <= EPS * (1 + 1e-5)).all()
    assert (length > 0.5 * EPS).all()
    assert all(parameter.grad is None for parameter in classifier.parameters())


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


def test_pgd_equals_the_equation(target):
    classifier, images, labels = target
    pixels, labels = images[:6].float() / 255, labels[:6]
    unit = unit_ball_points("linf", range(6), tuple(pixels.shape[1:]))
    with torch.no_grad():
        ours = pgd_linf(InputGradient(classifier), pixels, labels, unit, eps=EPS, step_size=EPS / 4, steps=5)
    slow = slow_pgd(classifier, pixels, labels, pixels + EPS * unit, EPS, EPS / 4, 5)
    # A gradient that is zero but for rounding may take either sign; a handful of pixels may differ.
    assert ((ours - slow).abs() > 1e-5).float().mean() < 0.01


PEERS = {
    "pgd-linf": (
        lambda c, eps: torchattacks.PGD(c, eps=eps, alpha=0.1 * eps, steps=20, random_start=True),
        pgd_linf,
        lambda x, eps: ((x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x) / eps,
        lambda eps: {"step_size": 0.1 * eps, "steps": 20},
    ),
    "fgsm": (
        lambda c, eps: torchattacks.FGSM(c, eps=eps),
        fgsm,
        lambda x, eps: torch.zeros_like(x),
        lambda eps: {"step_size": eps, "steps": 1},
    ),
    "mi-fgsm": (
        lambda c, eps: torchattacks.MIFGSM(c, eps=eps, alpha=0.1 * eps, steps=10, decay=1.0),
        mi_fgsm,
        lambda x, eps: torch.zeros_like(x),
        lambda eps: {"step_size": 0.1 * eps, "steps": 10},
    ),
    "pgd-l2": (
        lambda c, eps: torchattacks.PGDL2(c, eps=20 * eps, alpha=2 * eps, steps=20, random_start=False),
        pgd_l2,
        lambda x, eps: torch.zeros_like(x),
        lambda eps: {"eps": 20 * eps, "step_size": 2 * eps, "steps": 20},
    ),
}


@pytest.mark.parametrize("eps_255", [8, 32])
@pytest.mark.parametrize("name", PEERS)
def test_as_strong_as_torchattacks_from_the_same_start(target, name, eps_255):
    classifier, images, labels = target
    peer, attack, draw, settings = PEERS[name]
    pixels, eps = images.float() / 255, eps_255 / 255
    torch.manual_seed(11)
    theirs = peer(classifier, eps)(pixels, labels)
    torch.manual_seed(11)  # torchattacks draws its start with the global generator
    with torch.no_grad():
        unit = draw(pixels, eps)
        ours = attack(InputGradient(classifier), pixels, labels, unit, **{"eps": eps, **settings(eps)})
    assert abs(fooled(classifier, ours, labels) - fooled(classifier, theirs, labels)) <= 0.01
    assert ((ours - theirs).abs() > 1e-4).float().mean() < 0.02
    if eps_255 == 32:
        assert fooled(classifier, ours, labels) > 0.2


def slow_apgd(classifier, x, y, unit, eps, steps):
    """Algorithm 1 of Croce & Hein (2020) for one image, as it is printed, without any sharing of work."""

    def f(z):
        variable = z[None].clone().requires_grad_(True)
        loss = functional.cross_entropy(classifier(variable), y[None])
        return float(loss.detach()), torch.autograd.grad(loss, variable)[0][0]

    def project(z):
        return torch.clamp(torch.minimum(torch.maximum(z, x - eps), x + eps), 0, 1)

    checks, eta = set(check_points(steps)), 2 * eps
    xs = [project(x + unit * eps / unit.abs().max())]
    fs = [f(xs[0])[0]]
    xs.append(project(xs[0] + eta * f(xs[0])[1].sign()))
    fs.append(f(xs[1])[0])
    f_max, x_max = (fs[0], xs[0]) if fs[0] >= fs[1] else (fs[1], xs[1])
    etas, maxima, last, halved_before = [eta], [fs[0]], 0, True
    now, before = xs[1], xs[0]
    for k in range(1, steps + 1):
        if k > 1:
            z = project(now + eta * f(now)[1].sign())
            new = project(now + 0.75 * (z - now) + 0.25 * (now - before))
            before, now = now, new
            fs.append(f(new)[0])
            if fs[-1] > f_max:
                x_max, f_max = new, fs[-1]
        if k in checks:
            n_up = sum(fs[i] > fs[i - 1] for i in range(last + 1, k + 1))
            condition_1 = n_up <= 0.75 * (k - last)
            condition_2 = not halved_before and f_max <= maxima[-1]
            halved_before = condition_1 or condition_2
            if halved_before:
                eta, now = eta / 2, x_max
            etas.append(eta)
            maxima.append(f_max)
            last = k
    return x_max, f_max


def test_apgd_equals_the_printed_algorithm(target):
    classifier, images, labels = target
    pixels, labels = images[:5].double() / 255, labels[:5]
    classifier = copy.deepcopy(classifier).double()  # so that no rounding flips a sign
    unit = unit_ball_points("linf", range(5), tuple(pixels.shape[1:])).double()
    with torch.no_grad():
        ours = apgd_ce(InputGradient(classifier), pixels, labels, unit, eps=EPS, step_size=2 * EPS, steps=25)
    for row in range(5):
        slow, loss = slow_apgd(classifier, pixels[row], labels[row], unit[row], EPS, 25)
        torch.testing.assert_close(ours[row], slow, rtol=0, atol=1e-9)
        found = functional.cross_entropy(classifier(ours[row : row + 1]), labels[row : row + 1])
        assert abs(float(found) - loss) < 1e-9


def test_apgd_is_at_least_as_strong_as_torchattacks_and_as_pgd(target):
    classifier, images, labels = target
    eps, pixels = 16 / 255, images.float() / 255
    unit = unit_ball_points("linf", range(len(images)), tuple(pixels.shape[1:]))
    with torch.no_grad():
        gradient = InputGradient(classifier)
        ours = apgd_ce(gradient, pixels, labels, unit, eps=eps, step_size=2 * eps, steps=30)
        pgd = pgd_linf(gradient, pixels, labels, unit, eps=eps, step_size=0.1 * eps, steps=30)
    theirs = torchattacks.APGD(classifier, norm="Linf", eps=eps, steps=30, n_restarts=1, seed=0, loss="ce")(
        pixels, labels
    )
    # Theirs stops at an image's first success, so the losses are not to be compared.
    assert fooled(classifier, ours, labels) >= fooled(classifier, theirs, labels) - 0.01
    assert fooled(classifier, ours, labels) >= fooled(classifier, pgd, labels) - 0.01
    assert fooled(classifier, ours, labels) > 0.2


def test_apgd_check_points_by_hand():
    # 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps.
    assert check_points(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@given(st.integers(1, 300))
def test_apgd_check_points_are_within_the_steps(steps):
    found = check_points(steps)
    assert found == sorted(set(found))
    assert not found or 1 <= found[0] <= found[-1] <= steps


def test_an_attack_of_ones_own_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "nothing_much.py").write_text(
        "from simhpc.attacks.method import Method\n"
        "def attack(gradient, clean, labels, unit, *, eps, step_size, steps, strength=0.5):\n"
        "    return clean + strength * eps * unit\n"
        "METHOD = Method(attack, 'linf', 1, 1.0)\n"
    )
    (tmp_path / "empty.py").write_text("ATTACK = 1\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert {"nothing-much", "empty"} < set(method.names())
    assert method.find("nothing-much").own_arguments == {"strength": 0.5}
    before = method.code_sha256("nothing-much")
    (tmp_path / "nothing_much.py").write_text("# edited")
    assert method.code_sha256("nothing-much") != before
    with pytest.raises(TypeError, match=r"empty\.py holds no METHOD"):
        method.find("empty")
    with pytest.raises(StudyError, match=r"attack\.name: .*empty\.py holds no METHOD"):
        resolve_attack(Attack(name="empty"))


def test_names_come_from_files_and_unknown_ones_are_refused():
    assert method.names() == ["apgd-ce", "fgsm", "mi-fgsm", "pgd-l2", "pgd-linf"]
    with pytest.raises(KeyError):
        method.find("pgd_linf")
    with pytest.raises(KeyError):
        method.find("../x")
    assert method.find("mi-fgsm").own_arguments == {"decay": 1.0}
    assert method.find("apgd-ce").own_arguments == {"rho": 0.75}
