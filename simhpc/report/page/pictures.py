"""Attacked images as small PNGs inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

MOST_PX = 112
"""Side of a picture at most: noise does not compress, and 72 pictures of 224 px would be over 10 MB."""


def step_of(side_px: int) -> int:
    """Every so many pixels of a picture are shown. Noise keeps its size so, which it would not in a mean."""
    return -(-side_px // MOST_PX)


def magnification(differences: list[NDArray[np.int16]]) -> int:
    """The largest whole number with which all differences (attacked - clean levels) stay within 0..255 around 128."""
    largest = max((int(np.abs(difference).max()) for difference in differences if difference.size), default=0)
    return max(1, 127 // max(1, largest))


def png(image: Pixels, step: int) -> str:
    """An RGB image uint8 (3, H, W) as a `data:` URI, every `step`-th pixel of it."""
    buffer = io.BytesIO()
    shown = np.ascontiguousarray(image[:, ::step, ::step].transpose(1, 2, 0))
    Image.fromarray(shown).save(buffer, format="png", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def difference(clean: Pixels, attacked: Pixels) -> NDArray[np.int16]:
    """Attacked minus clean, in levels: int16 (3, H, W)."""
    return attacked.astype(np.int16) - clean.astype(np.int16)


def shown_difference(levels: NDArray[np.int16], factor: int) -> Pixels:
    """A difference times `factor` around middle grey: uint8 (3, H, W)."""
    return np.clip(128 + factor * levels.astype(np.int32), 0, 255).astype(np.uint8)


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
