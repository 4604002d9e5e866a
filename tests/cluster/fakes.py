"""Stand-ins for Slurm's programs, for what a real cluster cannot be made to say. Beside the tests on a real one.

Each is a small shell script in a folder at the front of PATH. It notes how it was called in `calls`, prints the
file `NAME.out`, and fails with the text of `NAME.err` if there is one.
"""

from __future__ import annotations

import os
from pathlib import Path

from simhpc.cluster.status import RunStatus, TaskStatus
from simhpc.stages import ALL_STAGES

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")

_SCRIPT = """#!/bin/sh
printf '%s' "{name}" >> "{folder}/calls"
for word in "$@"; do printf ' %s' "$word" >> "{folder}/calls"; done
echo >> "{folder}/calls"
if [ "$1" = --test-only ]; then
  if [ -f "{folder}/{name} --test-only.err" ]; then cat "{folder}/{name} --test-only.err" >&2; exit 1; fi
  exit 0
fi
if [ -f "{folder}/{name}.sleep" ]; then sleep "$(cat "{folder}/{name}.sleep")"; fi
if [ -f "{folder}/{name}.err" ]; then cat "{folder}/{name}.err" >&2; exit 1; fi
if [ "{name}" = sbatch ]; then
  n=$(cat "{folder}/last" 2>/dev/null || echo 100); n=$((n + 1)); echo $n > "{folder}/last"
  echo "Submitted batch job $n"; exit 0
fi
if [ -f "{folder}/{name}.out" ]; then cat "{folder}/{name}.out"; fi
exit 0
"""


class FakeSlurm:
    """The folder with the stand-ins; `path` goes to the front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in PROGRAMS:
            program = folder / name
            program.write_text(_SCRIPT.format(name=name, folder=folder))
            program.chmod(0o755)
        self.says("scontrol", "MaxArraySize            = 1001\n")

    @property
    def path(self) -> str:
        return f"{self.folder}{os.pathsep}{os.environ['PATH']}"

    def says(self, name: str, text: str) -> None:
        """What a program prints from now on."""
        (self.folder / f"{name}.err").unlink(missing_ok=True)
        (self.folder / f"{name}.out").write_text(text)

    def fails(self, name: str, text: str) -> None:
        """What a program says on its standard error from now on, before it fails; `sbatch --test-only` is one too."""
        (self.folder / f"{name}.err").write_text(text)

    def hangs(self, name: str, seconds: float) -> None:
        (self.folder / f"{name}.sleep").write_text(str(seconds))

    def removes(self, name: str) -> None:
        (self.folder / name).unlink()

    def calls(self, name: str | None = None) -> list[str]:
        """Command lines so far, without those that only ask whether Slurm would take a job."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        real = [line for line in lines if "--test-only" not in line]
        return [line for line in real if name is None or line.split()[0] == name]


def sacct_line(job: str, state: str, exit_code: str = "0:0", reason: str = "None", node: str = "node1", **times) -> str:
    """One line of `sacct -X -D -P -n` with our fields."""
    name, start, end = times.get("name", ""), times.get("start", "Unknown"), times.get("end", "Unknown")
    return f"{job}|{name}|{state}|{exit_code}|{reason}|{node}|{start}|{end}\n"


def squeue_line(job: str, state: str, status: str = "0", reason: str = "None", node: str = "node1", **times) -> str:
    """One line of `squeue -h -r -O` with our fields; `status` as wait(2) gives it."""
    name, start, end = times.get("name", ""), times.get("start", "N/A"), times.get("end", "N/A")
    return f"{job}|{name}|{state}|{reason}|{node}|{start}|{end}|{status}|{times.get('restarts', 0)}|\n"


def status(**states: str) -> RunStatus:
    """A run whose tasks are in these states: `train="a:done b:queued"`. A queued task of stage S is in job S."""
    tasks = []
    for stage in ALL_STAGES:
        for word in states.get(stage, "").split():
            model, _, state = word.partition(":")
            jobs = (f"{stage}_0",) if state in ("queued", "running") else ()
            tasks.append(TaskStatus(stage, model, state, submission=1, live_jobs=jobs))
    return RunStatus(tuple(tasks), "sacct", (), 0.0)
