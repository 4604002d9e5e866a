"""What these tests need, and layers for them."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc)")


def convolution(channels=64, out_channels=64, kernel=3, **options):
    torch.manual_seed(0)
    padding = kernel // 2 if isinstance(kernel, int) else 1
    return nn.Conv2d(channels, out_channels, kernel, **{"padding": padding, **options}).requires_grad_(False)
