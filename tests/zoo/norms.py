"""Batch norms that do something."""

from __future__ import annotations

import torch
from torch import nn


def with_statistics(model):
    """As after some training: fresh batch norms do next to nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            if module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.2, 0.2, generator=generator)
    return model.double().eval().requires_grad_(False)
