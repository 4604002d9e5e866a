"""1 x 1 convolutions: products of matrices, whose rows are pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simhpc.zoo.kernels.library import STREAMED_BYTES, Around, address, in_panels, library
from simhpc.zoo.packed import is_amd

_FEWEST_PRODUCTS = 2**20
"""Of an image. With fewer, all of a small attack gains less than the compiler's second."""


class Pointwise:
    """A 1 x 1 convolution (`convolution.Kernel`).

    Args:
        weight: float32 (K, C, 1, 1).
    """

    def __init__(self, weight: Tensor) -> None:
        self.out_channels, self.channels = weight.shape[:2]
        self._panels = in_panels(weight.flatten(1)[None])

    def __call__(self, x: Tensor, made: Tensor, around: Around) -> None:
        batch, channels, height, width = x.shape
        tensors = (x, around.gate, around.gated, self._panels, around.bias, around.residual, made)
        sizes = (batch * height * width, channels, self.out_channels, torch.get_num_threads())
        is_streamed = made.nbytes > STREAMED_BYTES
        if not library().simhpc_pointwise(*map(address, tensors), *sizes, around.is_relu, is_streamed):
            raise MemoryError("no memory for a copy of some pixels")


def pointwise_gains(convolution: Any, shape: torch.Size) -> bool:
    """Whether a convolution of this kernel size is faster so, of an input of this shape (B, C, H, W).

    Args:
        convolution: see `convolution.kernel_of`.
    """
    # Not measured on other processors.
    return is_amd() and convolution.weight.numel() * shape[2] * shape[3] >= _FEWEST_PRODUCTS
