"""Rounding to 8 bits inside the ball."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simhpc.attacks.levels import EpsilonExceededError, check_within, to_levels


def test_leaving_the_ball_is_never_stored():
    clean = torch.full((300, 3, 2, 2), 100, dtype=torch.uint8)
    far = clean.clone()
    far[299, 0, 0, 0] = 91
    check_within(clean, far, "linf", 9)
    with pytest.raises(EpsilonExceededError, match="9 levels \\(linf\\) from its clean one, eps is 8"):
        check_within(clean, far, "linf", 8)
    wrapped = torch.full_like(clean, 250)
    with pytest.raises(EpsilonExceededError):
        check_within(torch.full_like(clean, 5), wrapped, "linf", 20)  # 250 is 245 away from 5, not 11
    far[299, 1, 0, 0] = 112  # 9 and 12: 15 in all
    check_within(clean, far, "l2", 15)
    with pytest.raises(EpsilonExceededError, match="15 levels"):
        check_within(clean, far, "l2", 14)


def test_rounding_is_to_the_nearest():
    clean = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
    pixels = torch.tensor([99.4, 99.6, 103.5001]).view(1, 3, 1, 1) / 255
    assert to_levels(pixels, clean, "linf", 8).flatten().tolist() == [99, 100, 104]
    # Rounded, the distances are 1, 0 and 4, in a ball of 8.
    assert to_levels(pixels, clean, "l2", 8).flatten().tolist() == [99, 100, 104]


def test_the_value_that_rounding_moved_furthest_goes_back_by_hand():
    clean = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
    # 1.6, 1.7 and 0: length 2.33, but 2.83 when rounded; in a ball of 2.5 the 1.6 has to be a 1.
    pixels = torch.tensor([101.6, 98.3, 100.0]).view(1, 3, 1, 1) / 255
    assert to_levels(pixels, clean, "l2", 3).flatten().tolist() == [102, 98, 100]
    pixels = torch.tensor([101.3, 98.5, 100.0]).view(1, 3, 1, 1) / 255  # length 1.98: 1 and 2, 2.24, is too long
    assert to_levels(pixels, clean, "l2", 2).flatten().tolist() == [101, 99, 100]


@given(st.integers(0, 2**31), st.integers(1, 400), st.integers(1, 40))
def test_l2_levels_are_within_the_ball_and_as_near_as_can_be(seed, eps_255, n):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (2, 3, n, 1), generator=generator, dtype=torch.uint8)
    offset = torch.randn(2, 3, n, 1, generator=generator)
    offset *= eps_255 / offset.flatten(1).norm(dim=1)[:, None, None, None]
    pixels = ((clean + offset) / 255).clamp(0, 1)
    levels = to_levels(pixels, clean, "l2", eps_255)
    check_within(clean, levels, "l2", eps_255)
    assert ((levels.float() - pixels * 255).abs() < 1 + 1e-3).all()
    # No more than needed: one value less moved back would be outside.
    nearest = (pixels * 255).round()
    moved = (levels != nearest).flatten(1)
    for row in range(2):
        if moved[row].any():
            squares = (nearest - clean)[row].flatten().double().square()
            gains = (2 * (nearest - clean)[row].abs().flatten().double() - 1)[moved[row]]
            assert squares.sum() - gains.sum() <= eps_255**2 < squares.sum() - gains.sum() + gains.max()


def test_levels_keep_the_layout_of_the_pixels():
    clean = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    pixels = (clean.float() / 255).contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_levels(pixels, clean, "l2", 3), clean)
    assert torch.equal(to_levels(pixels, clean, "linf", 3), clean)
