"""A batch in parts, each on CPU threads of its own.

A transformer's layers are many and short: threads that share each of them spend their time on waiting for one another.
Threads that have images of their own meet once in a step.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor

_FEWEST_IMAGES = 4
"""Of a part. Smaller matrix products are slower."""


def in_parts(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], pixels: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What `function(pixels, labels)` gives, each image's results being its own; computed side by side.

    Args:
        function: may run in several threads at once.
        pixels: (B, ...), on the CPU.
        labels: (B,).
    """
    threads = torch.get_num_threads()
    n_parts = min(threads, len(pixels) // _FEWEST_IMAGES)
    # Where OpenMP was told to bind threads to cores, new ones of Python's would all share this one's.
    if n_parts < 2 or n_parts > _n_cores():
        return function(pixels, labels)

    def compute(*part: Tensor) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads // n_parts)  # of this thread, and what new ones begin with
        return function(*part)

    futures: list[Future[tuple[Tensor, Tensor]]] = []
    try:
        parts = zip(pixels.tensor_split(n_parts), labels.tensor_split(n_parts), strict=True)
        futures.extend(_pool(n_parts).submit(compute, *part) for part in parts)
    finally:
        wait(futures)  # for all of them: what follows a failure may need their memory
        torch.set_num_threads(threads)
    found = [future.result() for future in futures]
    return torch.cat([first for first, _ in found]), torch.cat([second for _, second in found])


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "simhpc-part")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # where its threads are not


def _n_cores() -> int:
    """Those that a new thread may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
