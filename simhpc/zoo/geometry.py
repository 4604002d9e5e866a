"""Sizes: from the stored square images to a model's input, and from one model's input to another's.

A stored image is the centre square of its source, so that `resize to input / crop_pct, centre crop input`
is timm's own evaluation geometry (timm.data.transforms_factory.transforms_imagenet_eval), in torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from simhpc.study import DataConfig

_SLICE = 256


def clean_view(images: NDArray[np.uint8], data: DataConfig) -> NDArray[np.uint8]:
    """The stored images as one model sees them: resized and cropped to its input, rounded to 8 bits.

    Args:
        images: uint8 (N, 3, S, S).

    Returns:
        uint8 (N, 3, input_size_px, input_size_px).
    """
    return _in_8_bits(images, lambda pixels: fit_pixels(pixels, data))


def resize_to_input(pixels: Tensor, data: DataConfig) -> Tensor:
    """Another model's images at this model's input size, without a second crop, rounded to 8 bits again.

    Args:
        pixels: float (B, 3, H, W) in [0, 1], on any device.

    Returns:
        of the same dtype, (B, 3, input_size_px, input_size_px), whole multiples of 1/255.
    """
    side = _input_size(data)
    if pixels.shape[-1] == side and pixels.shape[-2] == side:
        return pixels
    return _resize(pixels, side, data).mul_(255.0).round_().div_(255.0)


def scaled_to_input(pixels: Tensor, data: DataConfig) -> Tensor:
    """Float pixels (B, 3, H, H) in [0, 1] at a model's input size: the whole image, not cropped, not rounded."""
    return _resize(pixels, _input_size(data), data)


def to_pixels(images: NDArray[np.uint8]) -> Tensor:
    """8-bit images as float32 pixels in [0, 1], same shape."""
    return torch.from_numpy(images).to(torch.float32).div_(255.0)


def to_8_bits(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels in [0, 1] rounded (never truncated) to the nearest of 256 levels; exact inverse of `to_pixels`."""
    levels: NDArray[np.uint8] = pixels.mul(255.0).round_().to(torch.uint8).cpu().numpy()
    return levels


def fit_pixels(pixels: Tensor, data: DataConfig) -> Tensor:
    """Resize and centre-crop float pixels (B, 3, S, S) to a model's input; differentiable, stays in [0, 1]."""
    side = _input_size(data)
    assert data.crop_pct is not None
    resized = _resize(pixels, int(side / data.crop_pct), data)
    # timm's CenterCrop rounds the offset; so does this.
    offset = round((resized.shape[-1] - side) / 2.0)
    return resized[..., offset : offset + side, offset : offset + side]


def _resize(pixels: Tensor, side: int, data: DataConfig) -> Tensor:
    if pixels.shape[-1] == side and pixels.shape[-2] == side:
        return pixels
    assert data.interpolation is not None
    if data.interpolation == "nearest":
        return functional.interpolate(pixels, size=(side, side), mode="nearest-exact")
    resized = functional.interpolate(
        pixels, size=(side, side), mode=data.interpolation, align_corners=False, antialias=True
    )
    return resized.clamp(0.0, 1.0)


def _in_8_bits(images: NDArray[np.uint8], change: Callable[[Tensor], Tensor]) -> NDArray[np.uint8]:
    # In slices: the float copy of 5,000 images would be four times the images themselves.
    slices = [images[start : start + _SLICE] for start in range(0, len(images), _SLICE)] or [images]
    return np.concatenate([to_8_bits(change(to_pixels(part))) for part in slices])


def _input_size(data: DataConfig) -> int:
    assert data.input_size_px is not None
    return data.input_size_px
