"""Random starts."""

from __future__ import annotations

import pytest
import torch

from simhpc.attacks import noise
from simhpc.attacks.noise import unit_ball_points


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_image_has_its_own_start_whatever_is_drawn_beside_it(norm, threads, monkeypatch):
    monkeypatch.setattr(noise, "_WORTH_THREADS", 1000)
    threads(1)
    alone = torch.cat([unit_ball_points(norm, [seed], (3, 5, 4)) for seed in range(40)])
    threads(4)
    together = unit_ball_points(norm, range(40), (3, 5, 4))
    assert torch.equal(together, alone)
    assert len(together.flatten(1).unique(dim=0)) == 40


def test_noise_belongs_to_the_image():
    together = unit_ball_points("linf", [5, 6, 7], (3, 4, 4))
    torch.testing.assert_close(unit_ball_points("linf", [6], (3, 4, 4))[0], together[1], rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])
    many = unit_ball_points("linf", range(50), (3, 16, 16))
    assert many.min() >= -1
    assert many.max() <= 1
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 3**-0.5) < 0.01


def test_l2_noise_fills_the_ball_evenly():
    points = unit_ball_points("l2", range(4000), (3, 1, 1)).flatten(1)
    lengths = points.norm(dim=1)
    assert lengths.max() <= 1 + 1e-6
    # In three dimensions an eighth of the ball lies within half its radius.
    assert abs((lengths < 0.5).float().mean() - 1 / 8) < 0.02
    assert points.mean(0).abs().max() < 0.03
    assert torch.equal(unit_ball_points("l2", [17], (3, 1, 1)), unit_ball_points("l2", range(4000), (3, 1, 1))[17:18])
