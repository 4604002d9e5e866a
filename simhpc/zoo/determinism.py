"""Deterministic kernels alone, wherever a model can be computed with them.

Told only to warn, torch's attention on a GPU adds its gradients in any order. Told to be strict it does not, but an
operation that has no deterministic kernel, as the gradient of a resize, is an error then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def settle(work: Callable[[], object], who: str) -> None:
    """Be strict if `work` runs so on this device, else warn only; the log says which operation is why.

    Args:
        work: does once all that will be done.
        who: begins the line in the log.
    """
    torch.use_deterministic_algorithms(True)
    try:
        work()
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        torch.use_deterministic_algorithms(True, warn_only=True)
        what = str(error).partition(" does not have a deterministic implementation")[0]
        print(f"{who}: not the same bits each time on this device: {what} has no deterministic form", flush=True)
        work()
