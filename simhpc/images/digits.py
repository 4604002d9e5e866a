"""`sklearn-digits`: scikit-learn's embedded digits (Alpaydin & Kaynak, UCI 1998)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Digits:
    """A `Source` of 1,797 scans of handwritten digits, 8 x 8 pixels in 17 grey levels."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self._grey = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
        self.labels: NDArray[np.int32] = bunch.target.astype(np.int32)
        self.names: Sequence[str] = [f"digits-{position:04d}" for position in range(len(self.labels))]
        self.places = np.arange(len(self.labels))
        self.classes = [str(digit) for digit in range(10)]

    def image(self, position: int) -> Image.Image:
        return Image.fromarray(self._grey[position]).convert("RGB")

    def content_sha256(self, position: int) -> str:
        return hashlib.sha256(self._grey[position].tobytes()).hexdigest()

    def content_size(self, position: int) -> int:
        return int(self._grey[position].sum())
