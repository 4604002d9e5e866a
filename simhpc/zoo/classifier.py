"""A timm model that takes pixels: everything between [0, 1] and the logits is inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from simhpc.study import DataConfig
from simhpc.zoo.geometry import fit_pixels


class PixelClassifier(nn.Module):
    """Normalisation (and, on a canonical grid, resize and crop) around a frozen model in eval mode.

    Attacks act on [0, 1] pixels, so eps means the same for every model (docs/method.md).

    Args:
        model: (B, 3, S, S) normalised float32 to (B, K) logits.
        data: complete data config of the model.
        fits_inside: resize and crop (B, 3, *, *) pixels to the model's input inside `forward`,
            differentiably; else the pixels must arrive at that size.
        in_bfloat16: compute under autocast to bfloat16; pixels, their gradient and the logits stay float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, data: DataConfig, *, fits_inside: bool = False, in_bfloat16: bool = False
    ) -> None:
        super().__init__()
        assert data.mean is not None
        assert data.std is not None
        self.model = model
        self.data = data
        self.fits_inside = fits_inside
        self.in_bfloat16 = in_bfloat16
        self.register_buffer("mean", torch.tensor(data.mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data.std, dtype=torch.float32).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K) of float32 pixels (B, 3, H, W) in [0, 1]."""
        inputs = self.normalised(pixels)
        if not self.in_bfloat16:
            logits: Tensor = self.model(inputs)
            return logits
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
            logits = self.model(inputs)
        return logits.float()

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the model itself is given: (B, 3, S, S)."""
        if self.fits_inside:
            pixels = fit_pixels(pixels, self.data)
        return (pixels - self.mean) / self.std
