"""Peak memory of an attack. Resident memory belongs to a process, so on a CPU each library gets one of its own.

python -m benchmarks.memory LIBRARY FILE     the process; prints two numbers in bytes
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.attacker import Victim
from benchmarks.measures import OURS, Measure
from benchmarks.options import Options
from benchmarks.settings import AttackSettings

_STEPS = 2
"""The peak is reached in the second step at the latest, when the first one's leavings are still there."""


def measures(
    victim: Victim, settings: AttackSettings, libraries: list[str], options: Options, scratch: Path
) -> list[Measure]:
    """Peak resident memory of a process that attacks, as a whole and beyond what it held before the attack."""
    given = scratch / "victim.pt"
    torch.save((victim, settings, options), given)
    whole: dict[str, list[float]] = {}
    added: dict[str, list[float]] = {}
    for library in libraries:
        command = [sys.executable, "-m", "benchmarks.memory", library, str(given)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        found = json.loads(done.stdout)
        whole[library] = [found["peak_bytes"] / 1e6]
        added[library] = [(found["peak_bytes"] - found["before_bytes"]) / 1e6]
    given.unlink()
    return [
        Measure("process_memory", "MB", victim.name, whole),
        Measure("attack_memory", "MB", victim.name, added),
    ]


def start_cuda(device: torch.device) -> int:
    """Begin to watch allocations: bytes allocated now; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def since_cuda(device: torch.device, before_bytes: int) -> int:
    """Peak allocation beyond `before_bytes` since `start_cuda`, in bytes; 0 on a CPU."""
    return int(torch.cuda.max_memory_allocated(device)) - before_bytes if device.type == "cuda" else 0


def status_bytes(name: str) -> int:
    """A line of this process's /proc status: `VmRSS` (now) or `VmHWM` (peak).

    Not getrusage: its peak starts at the parent's.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def main() -> None:
    """Attack what the file holds with one library, and print memory before and at the peak."""
    from benchmarks import ours, peers

    library, given = sys.argv[1], Path(sys.argv[2])
    # Written by our own parent a moment ago.
    victim, settings, options = torch.load(given, weights_only=False)
    torch.set_num_threads(options.threads)
    short = AttackSettings(**{**vars(settings), "steps": _STEPS})
    if library == OURS:
        attacker = ours.attacker(victim, short)
    else:
        attacker = peers.PEERS[library](victim, short, frozen=options.frozen_peers)
    before_bytes = status_bytes("VmRSS")
    attacker.attack(victim.images, victim.labels)
    print(json.dumps({"before_bytes": before_bytes, "peak_bytes": status_bytes("VmHWM")}))


if __name__ == "__main__":
    # timm must be imported our way before its models can be unpickled.
    import simhpc.zoo.timm_import  # noqa: F401

    main()
