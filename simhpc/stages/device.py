"""What torch can compute with on this machine."""

from __future__ import annotations

import torch


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that compute; empty without any.

    Raises:
        RuntimeError: a device is there, but nothing can be computed on it.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    for number in range(count):
        # A driver too old, or a torch not built for this device, shows only here.
        (torch.ones(2, device=f"cuda:{number}") + 1).sum().item()
    return [torch.cuda.get_device_name(number) for number in range(count)]
