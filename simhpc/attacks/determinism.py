"""Deterministic kernels alone, wherever there are any for what is computed.

Told only to warn, torch's attention on a GPU adds its gradients in any order. Told to be strict it does not, but an
operation that has no deterministic kernel, as the gradient of a resize, is an error then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def settle(work: Callable[[], T], who: str) -> T:
    """Do work strictly; where that is an error, name the operation in the log and do it again, only warned.

    Args:
        work: may be broken off and begun again.
        who: begins the line in the log.
    """
    torch.use_deterministic_algorithms(True)
    try:
        return work()
    except RuntimeError as error:
        if not is_without_deterministic_kernel(error):
            raise
        what = str(error).partition(" does not have a deterministic implementation")[0].partition("\n")[0]
        print(f"{who}: not the same bits each time on this device: {what} has no deterministic form", flush=True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return work()


def is_without_deterministic_kernel(error: BaseException) -> bool:
    """Whether torch refused an operation because it was told to be strict."""
    return isinstance(error, RuntimeError) and "deterministic" in str(error)
