"""Timing several ways to do one thing, in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

import torch

Work = Callable[[], object]


def orders(names: list[str], repetitions: int) -> list[list[str]]:
    """Who goes when: all in turn in each repetition, another first each time."""
    return [names[r % len(names) :] + names[: r % len(names)] for r in range(repetitions)]


def seconds_in_rounds(works: Mapping[str, Work], repetitions: int, device: torch.device) -> dict[str, list[float]]:
    """Wall time of each work in seconds, by name, one per repetition. Warm up before."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for order in orders(list(works), repetitions):
        for name in order:
            found[name].append(seconds(works[name], device))
    return found


def seconds(work: Work, device: torch.device) -> float:
    """Wall time of one call, until the device is done with it."""
    gc.collect()
    _synchronise(device)
    started_s = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started_s


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
