"""Finding a batch size that fits in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What the CPU's allocator says, and CUDA and its libraries where they allocate for themselves."""


def with_backoff(work: Callable[[int], T], batch_size: int, on_reduced: Callable[[int], None]) -> T:
    """`work(batch_size)`, again with half of it as often as memory runs out.

    Args:
        on_reduced: called with the smaller size before each further try.

    Raises:
        torch.OutOfMemoryError: there is no memory even for one image.
    """
    while True:
        try:
            return work(batch_size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        # Only here: the error's traceback held on to everything that filled the memory.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        batch_size //= 2
        on_reduced(batch_size)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused; only torch's own allocator for GPUs has an exception for that."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
