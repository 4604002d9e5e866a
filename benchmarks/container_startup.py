"""What a container adds to the start of each task: the same Python statements inside the image and outside, in turn.

    .venv/bin/python benchmarks/container_startup.py [IMAGE] [--rounds N]

Prints medians in seconds and their ratio. Any user who can run Apptainer can run it; root may need --userns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from simhpc.cluster import image

WHAT = {
    "nothing": "pass",
    "import of a task's libraries": "import simhpc.zoo.timm_import, simhpc.store.hdf5, submitit",
}


def seconds(command: list[str]) -> float:
    """How long a command takes, in seconds."""
    started_s = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - started_s


def main() -> None:
    """Time both in turn, after one round that warms the disk caches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "containers" / "simhpc-cpu.sif"
    parser.add_argument("image", nargs="?", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    user = ["--userns"] if os.geteuid() == 0 else []
    enter = ["apptainer", "--quiet", "exec", *user, "--containall", "--pwd", "/", str(given.image), image.PYTHON]
    for what, statement in WHAT.items():
        commands = {"outside": [sys.executable, "-c", statement], "inside": [*enter, "-c", statement]}
        found: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(given.rounds + 1):
            for name, command in commands.items():
                elapsed_s = seconds(command)
                if number:
                    found[name].append(elapsed_s)
        outside_s, inside_s = (statistics.median(found[name]) for name in ("outside", "inside"))
        ratio, added_s = inside_s / outside_s, inside_s - outside_s
        print(f"{what}: {outside_s:.2f} s outside, {inside_s:.2f} s inside ({ratio:.2f} ×, {added_s:+.2f} s)")


if __name__ == "__main__":
    main()
