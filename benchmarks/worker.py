"""A library in a process of its own, as its users run it.

Ours sets torch and the C library's allocator up for its whole process: in one process with the others it would speed
them up as well (by 15 to 20 % on a CPU). It also makes resident memory the library's alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# First: timm's models are among what is unpickled, and timm must be imported our way.
import simhpc.zoo.timm_import  # noqa: F401  # isort: skip

import numpy as np
import torch
from torch import Tensor

from benchmarks import ours, peers
from benchmarks.attacker import Passes, Victim, counted
from benchmarks.measures import OURS
from benchmarks.rounds import seconds
from benchmarks.settings import AttackSettings, set_precision


@dataclass(frozen=True)
class Memory:
    """Bytes: on a CPU resident, with CUDA reserved on the device.

    Attributes:
        before: when the model was loaded and nothing attacked.
        peak: since the process began (CPU), or in the last attack (CUDA).
    """

    before: int
    peak: int


class Worker:
    """The parent's end; each call waits for its answer."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def attack_all(self, seed: int = 1) -> tuple[Tensor, Passes]:
        """Attack all of the victim's images once: adversarial uint8 images, and what went through the model."""
        return self._ask("attack_all", seed)  # type: ignore[no-any-return]

    def seconds(self, n_images: int) -> float:
        """Attack the first images; wall time."""
        return self._ask("seconds", n_images)  # type: ignore[no-any-return]

    def memory(self) -> Memory:
        return self._ask("memory")  # type: ignore[no-any-return]

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        try:
            kind, answer = self._connection.recv()
        except EOFError:
            raise RuntimeError(f"a benchmark's process has died of {request[0]}") from None
        if kind == "error":
            raise RuntimeError(answer)
        return answer


@contextmanager
def workers(
    libraries: list[str], victim: Victim, settings: AttackSettings, *, threads: int, frozen: bool, scratch: Path
) -> Iterator[dict[str, Worker]]:
    """One process for each library, all at once and idle unless asked; gone at the end."""
    given = scratch / "victim.pt"
    torch.save((victim, settings), given)
    context, found = multiprocessing.get_context("spawn"), {}
    with ExitStack() as stack:
        for library in libraries:
            ours_end, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, given, library, threads, frozen), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours_end.close)
            found[library] = Worker(ours_end)
        yield found
    given.unlink()


def serve(connection: Connection, given: Path, library: str, threads: int, frozen: bool) -> None:
    """The process: do what is asked for until nobody is there to ask."""
    torch.set_num_threads(threads)
    # Written by our own parent a moment ago.
    victim, settings = torch.load(given, weights_only=False)
    set_precision(settings.precision)
    made = ours.attacker(victim, settings) if library == OURS else peers.PEERS[library](victim, settings, frozen=frozen)
    device, before = settings.device, memory_bytes(settings.device, "VmRSS")
    made.prepare()

    def timed(n: int) -> float:
        images, labels = victim.images[:n], victim.labels[:n]
        _seed(1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        return seconds(lambda: made.attack(images, labels), device)

    def attack_all(seed: int) -> tuple[Tensor, Passes]:
        _seed(seed)
        return counted(made, victim.images, victim.labels)

    tasks: dict[str, Callable[..., Any]] = {
        "attack_all": attack_all,
        "seconds": timed,
        "memory": lambda: Memory(before, memory_bytes(device, "VmHWM")),
    }
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = ("done", tasks[name](*arguments))
        except Exception as error:
            answer = ("error", f"{library}: {type(error).__name__}: {error}")
        connection.send(answer)


def memory_bytes(device: torch.device, name: str) -> int:
    """With CUDA what torch has reserved, or had at most (`VmHWM`); on a CPU that line of this process's /proc status.

    Not getrusage: its peak starts at the parent's.
    """
    if device.type == "cuda":
        peak = name == "VmHWM"
        # Reserved: what a CUDA graph works in is not counted as allocated.
        return int(torch.cuda.max_memory_reserved(device) if peak else torch.cuda.memory_reserved(device))
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _seed(seed: int) -> None:
    """torchattacks, foolbox and our adapter draw from torch's generator, ART from numpy's."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the one that ART uses
