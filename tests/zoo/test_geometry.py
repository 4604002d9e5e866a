from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from simhpc.study import DataConfig
from simhpc.zoo import geometry
from simhpc.zoo.timm_import import timm


def data(side, crop_pct=1.0, interpolation="bicubic"):
    return DataConfig(input_size_px=side, crop_pct=crop_pct, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))


def photo_like(n, side):
    """Smooth images with structure at several scales, uint8 (n, 3, side, side)."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.random((n, 3, 9, 9)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8).numpy()


def test_every_level_survives_the_way_to_pixels_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(geometry.to_8_bits(geometry.to_pixels(levels)), levels)


def test_rounds_to_nearest():
    pixels = torch.tensor([0.0, 0.4, 0.6, 254.4, 254.6, 255.0]) / 255
    assert geometry.to_8_bits(pixels).tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_equal_sizes_change_nothing(interpolation):
    images = photo_like(3, 24)
    np.testing.assert_array_equal(geometry.clean_view(images, data(24, 1.0, interpolation)), images)
    np.testing.assert_array_equal(geometry.resize_to_input(images, data(24, 0.5, interpolation)), images)


def test_more_images_than_one_slice():
    images = photo_like(600, 4)
    np.testing.assert_array_equal(geometry.clean_view(images, data(4)), images)
    assert geometry.clean_view(images[:0], data(8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "crop_pct"), [(32, 0.875), (40, 0.95), (33, 0.9), (96, 1.0)])
def test_same_view_as_timms_own_evaluation_transform(side, crop_pct, interpolation):
    images = photo_like(4, 64)
    transform = timm.data.create_transform(
        side, is_training=False, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True
    )
    theirs = np.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images]).astype(int)
    ours = geometry.clean_view(images, data(side, crop_pct, interpolation)).astype(int)
    assert ours.shape == theirs.shape
    # Pillow resizes in fixed point and rounds twice; ours in floating point, once.
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - theirs).mean() < 0.5


def test_fit_passes_gradients_and_stays_in_range():
    pixels = torch.rand(2, 3, 10, 10, requires_grad=True)
    fitted = geometry.fit_pixels(pixels, data(16, 0.8))
    assert fitted.shape == (2, 3, 16, 16)
    assert fitted.min() >= 0
    assert fitted.max() <= 1
    fitted.sum().backward()
    assert pixels.grad is not None
    assert torch.isfinite(pixels.grad).all()
