"""The processes that train one model together (DistributedDataParallel)."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

# One that died is noticed after this at the latest; one that waits for a slow disk must not be taken for dead.
_TIMEOUT = timedelta(minutes=15)
# Groups that are to be let go of at the very end: see `joined`.
_ended: list[object] = []
atexit.register(_ended.clear)


@dataclass(frozen=True)
class Processes:
    """Which of them this one is.

    Attributes:
        rank: 0 to count - 1; 0 alone writes files.
        device: that it computes on.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes of what each gives: the same for all."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
            values /= self.count
        return values

    def any(self, value: bool) -> bool:
        """Whether it is true in any of them: the same for all."""
        return bool(value) if self.count == 1 else bool(self.mean(torch.tensor(float(value), device=self.device)) > 0)

    def of_first(self, value: int) -> int:
        """What the first one gives."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.int64, device=self.device)
        distributed.broadcast(shared, src=0)
        return int(shared)


@contextmanager
def joined(device: torch.device, count: int) -> Iterator[Processes]:
    """Meet the other processes of this training, if there are any; over gloo on CPUs, NCCL on GPUs.

    With more than one, torch's variables RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are read.

    Args:
        device: `cpu`, or `cuda`, of which each process takes the one with its local number.
        count: processes, with this one.
    """
    if count == 1:
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        world_size=count,
        rank=int(os.environ["RANK"]),
        timeout=_TIMEOUT,
    )
    # Whoever lets go of a group last waits for its threads, which need the interpreter's lock to let go of tensors.
    # Python gives the lock up for that. DistributedDataParallel's reducer, which may outlive the network, does not: the
    # process hangs at its end (torch 2.13 with gloo; pytorch/pytorch#56297). So Python is to be the last, and before
    # the interpreter is taken down, when threads that want its lock abort the process (pytorch/pytorch#190489).
    _ended.append(distributed.group.WORLD)
    try:
        yield Processes(device, distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
