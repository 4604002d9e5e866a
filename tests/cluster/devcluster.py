"""The real development cluster, as the tests use it: simhpc runs as an ordinary user, accidents happen as root."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from simhpc.cluster.status import Monitor
from simhpc.rundir import open_run

CHECKOUT = Path(__file__).parents[2]
SIMHPC = str(Path(sys.executable).parent / "simhpc")


class DevCluster:
    """What slurm/devcluster/up.sh has brought up.

    Attributes:
        program: path of `simhpc`.
        measured: figures that tests noted, shown at the end of the session.
    """

    def __init__(self) -> None:
        self.user = pwd.getpwnam(os.environ["DEVCLUSTER_USER"])
        self.home = Path(os.environ["DEVCLUSTER_DIR"]) / "home"
        self.program = SIMHPC
        self.measured: list[str] = []

    def folder(self, name: str) -> Path:
        """A new folder of the ordinary user's, seen by all nodes."""
        path = self.home / f"{name}-{os.getpid()}"
        path.mkdir()
        os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def write(self, path: Path, raw: dict[str, Any]) -> Path:
        """A TOML file of the user's."""
        path.write_text(tomli_w.dumps(raw))
        os.chown(path, self.user.pw_uid, self.user.pw_gid)
        return path

    def simhpc(self, *words: object, code: int | None = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `simhpc` as the ordinary user; its exit code must be `code` (None: any)."""
        done = self.as_user([SIMHPC, *map(str, words)], cwd)
        assert code is None or done.returncode == code, (
            f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def slurm(self, *words: str, cwd: Path | None = None) -> str:
        """One of Slurm's programs, as the ordinary user."""
        done = self.as_user(list(words), cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def as_user(self, command: Sequence[object], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Any command, as the ordinary user, with a login shell's environment."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "SLURM_CONF": os.environ["SLURM_CONF"]}
        return subprocess.run(
            list(map(str, command)),
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=[],
            cwd=cwd or self.home,
            env={**environment, "USER": self.user.pw_name, "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )

    def operate(self, *words: str) -> None:
        """An accident, or its repair: see slurm/devcluster/operate.sh."""
        subprocess.run([CHECKOUT / "slurm" / "devcluster" / "operate.sh", *words], check=True, timeout=60)

    def status(self, run: Path) -> dict[str, Any]:
        """What `simhpc status --json` prints, without a process of its own: tests look every second."""
        return Monitor(open_run(run)).look().as_json()

    def task(self, run: Path, stage: str, model: str) -> dict[str, Any]:
        """One task's part of it."""
        (task,) = [task for task in self.status(run)["tasks"] if (task["stage"], task["model"]) == (stage, model)]
        return task

    def wait(
        self,
        run: Path,
        condition: Callable[[dict[str, Any]], object],
        what: str,
        timeout_s: float = 240,
        *,
        repair: bool = False,
    ) -> dict[str, Any]:
        """Look at a run until something is so.

        Args:
            repair: do meanwhile what an administrator does after a node was lost.
        """
        started_s = time.monotonic()
        while True:
            found = self.status(run)
            if condition(found):
                return found
            if time.monotonic() - started_s > timeout_s:
                queue = subprocess.run(["squeue", "-a"], capture_output=True, text=True, check=False).stdout
                raise AssertionError(f"not within {timeout_s} s: {what}\n{json.dumps(found, indent=1)}\n{queue}")
            if repair:
                self.repair()
            time.sleep(1)

    def wait_for_state(
        self, run: Path, stage: str, state: str, timeout_s: float = 240, *, repair: bool = False
    ) -> dict[str, Any]:
        """Look at a run until all tasks of a stage are in a state."""

        def is_so(found: dict[str, Any]) -> bool:
            return all(task["state"] == state for task in found["tasks"] if task["stage"] == stage)

        return self.wait(run, is_so, f"{stage} {state}", timeout_s, repair=repair)

    def repair(self) -> None:
        """A requeued job that meets its own old copy on a node is held by Slurm, and the node drained: as an
        administrator would, let both go on."""
        held = subprocess.run(
            ["squeue", "-h", "-r", "-t", "PD", "-o", "%i|%r"], capture_output=True, text=True, check=False
        ).stdout
        for line in held.splitlines():
            if "launch failed" in line:
                subprocess.run(["scontrol", "release", line.split("|")[0]], check=False)
        drained = subprocess.run(
            ["sinfo", "-h", "-N", "-t", "drain", "-o", "%N"], capture_output=True, text=True, check=False
        ).stdout
        for node in set(drained.split()):
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)

    def accounting(self, job: str) -> list[dict[str, str]]:
        """`sacct -X -D` of one element: every start, oldest first."""
        fields = ("JobID", "State", "ExitCode", "NodeList", "Start", "End")
        text = self.slurm("sacct", "-X", "-D", "-P", "-n", "-o", ",".join(fields), "-j", job)
        return [dict(zip(fields, line.split("|"), strict=True)) for line in text.splitlines()]

    def pid_of(self, job: str, rank: int = 0) -> int:
        """The Python process of an element's task; of several, the one of this rank."""
        raw = self.slurm("squeue", "-h", "-j", job, "-o", "%A").strip()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if (
                b"submitit.core._submit" in words
                and b"/python" in words[0]
                and f"SLURM_JOB_ID={raw}".encode() in environment
                and f"SLURM_PROCID={rank}".encode() in environment
            ):
                return int(folder.name)
        raise AssertionError(f"job {job} ({raw}) has no process")

    @contextlib.contextmanager
    def frozen(self, job: str) -> Iterator[None]:
        """Keep a task from going on until it is killed: Slurm wakes whatever it is about to end.

        It has KillWait left then, in which it would finish a short attack.
        """
        pidfd, is_over = os.pidfd_open(self.pid_of(job)), threading.Event()

        def freeze() -> None:
            with contextlib.suppress(ProcessLookupError):
                while not is_over.is_set():
                    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
                    time.sleep(0.02)

        thread = threading.Thread(target=freeze)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            os.close(pidfd)

    def step_of(self, pid: int) -> list[int]:
        """All processes of the job step that a process belongs to: what its slurmstepd has started."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                # The name may hold anything; what follows its last parenthesis does not.
                stat = (folder / "stat").read_text().rpartition(")")[2].split()
                parents[int(folder.name)] = int(stat[1])
        above = [pid]
        while b"slurmstepd" not in (Path("/proc") / str(parents[above[-1]]) / "cmdline").read_bytes():
            above.append(parents[above[-1]])
        found = {above[-1]}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)

    def measure(self, what: str, value: str) -> None:
        self.measured.append(f"{what}: {value}")
