"""How fast a device could be, and how much a model asks of it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rounds import seconds
from benchmarks.settings import Precision

_SIDE = {"cpu": 1024, "cuda": 8192}
_TRIES = 5


def matmul_flops(device: torch.device, precision: Precision) -> float:
    """Best measured rate of a large square matrix product, FLOP/s; TF32 is as `set_precision` has left it."""
    side = _SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, other = torch.randn(2, side, side, device=device, dtype=dtype)
    result = torch.empty_like(one)
    best_s = min(seconds(lambda: torch.matmul(one, other, out=result), device) for _ in range(_TRIES))
    return 2.0 * side**3 / best_s


def gradient_flops(model: nn.Module, size_px: int) -> int:
    """FLOPs of one forward pass and one gradient of the input, per image, multiply and add counted as two."""
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    inputs = torch.zeros(1, 3, size_px, size_px, requires_grad=True)
    # Attention as plain products, which are what the counter knows.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        # A copy, because the counter's hooks cannot sit on a leaf.
        torch.autograd.grad(frozen(inputs.clone()).sum(), inputs)
    return int(counter.get_total_flops())
