"""A small job on a compute node, and what it found there: the disk, the software, the clock."""

from __future__ import annotations

import contextlib
import json
import math
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from simhpc.cluster import container, scheduler
from simhpc.cluster.checks import FAILED, OK, WARNING, Check, Kind, one_line
from simhpc.cluster.container import Checked
from simhpc.cluster.probe import FROM_LOGIN, FROM_NODE, SCONTROL, SEEN_WITHIN_S, NodeReport, versions, wait_for_nonce
from simhpc.cluster.profile import Bind, StageResources
from simhpc.errors import SchedulerError
from simhpc.store import atomic

WAIT_S = 120.0
"""How long the trial job may wait for a node."""
RUN_S = 180.0
"""How long it may run: torch can take minutes to be read from a slow disk."""

_LATE_S = 5.0
_CLOCKS_S = 5.0
_NODE_FREE_GIB = 1.0
_PROBE_MIN = 10
# Of sbatch alone, or of another meaning to srun.
_NOT_FOR_SRUN = {"batch", "export-file", "get-user-env", "ignore-pbs"}


class _NoFreeNodeError(SchedulerError):
    """The trial job was still waiting after `WAIT_S`."""


def run_trial(kind: Kind, folder: Path, checked: Checked | None = None) -> Iterator[Check]:
    """Run `cluster.probe` on a node, and tell what it found.

    Args:
        kind: what the job gets.
        folder: on the disk of the run directory; a folder is made in it, and removed.
        checked: the image to run it in.
    """
    nonce = secrets.token_hex(8)
    # One file system with the run directory, and seen by nobody else.
    shared = folder / f".simhpc-doctor-{nonce}"
    shared.mkdir(mode=0o700)
    try:
        atomic.write_text(shared / FROM_LOGIN, nonce)
        started_unix_s = time.time()
        try:
            python = [sys.executable]
            if checked is not None:
                needs = container.Needs((Bind(source=str(shared), mode="rw"),))
                script = shared / container.LAUNCHER
                atomic.write_text(script, container.launcher(checked, needs, kind.resources))
                python = ["bash", str(script)]
            command = _srun_command(kind.resources, [*python, "-m", "simhpc.cluster.probe", str(shared), nonce], nonce)
            said, ended_unix_s = _run_job(command, f"simhpc-doctor-{nonce}")
        except SchedulerError as error:
            # A full queue is no fault of the cluster or the profile.
            level = WARNING if isinstance(error, _NoFreeNodeError) else FAILED
            yield Check("trial job", level, one_line(error), _trial_advice(str(error)))
            return
        data = _read_report(said, nonce)
        if data is None:
            yield Check(
                "trial job",
                FAILED,
                f"printed what cannot be read: {one_line(said)[:300]!r}",
                "see the profile's setup lines",
            )
            return
        yield Check(
            "trial job",
            OK,
            f"ran on {data.get('host')}{'' if checked is None else ' inside the image'} with the resources of "
            f"{kind.name}, {ended_unix_s - started_unix_s:.0f} s",
        )
        yield _check_versions(data.get("versions"), is_contained=checked is not None)
        # Another simhpc may print other fields.
        if set(data) == {field.name for field in fields(NodeReport)}:
            # In a container without a place for them, temporary files lie in memory, which is Apptainer's affair.
            is_in_memory = checked is not None and checked.container.scratch is None
            yield from _node_checks(NodeReport(**data), kind, shared, ended_unix_s, is_in_memory=is_in_memory)
    finally:
        shutil.rmtree(shared, ignore_errors=True)


def _srun_command(resources: StageResources, probe: Sequence[str], nonce: str) -> list[str]:
    asked: dict[str, str | int | bool | None] = {
        "job-name": f"simhpc-doctor-{nonce}",
        "nodes": 1,
        "ntasks": 1,
        "time": min(_PROBE_MIN, resources.timeout_min),
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "cpus-per-task": resources.cpus_per_task,
        "mem": None if resources.mem_gb is None else f"{math.ceil(resources.mem_gb * 1024)}M",
        "gpus-per-node": resources.gpus_per_node or None,
        "gres": resources.gres,
        **{name: value for name, value in resources.sbatch.items() if name not in _NOT_FOR_SRUN},
    }
    options = [f"--{k}" if v is True else f"--{k}={v}" for k, v in asked.items() if v is not None and v is not False]
    # As in the batch script, a setup line that fails does not stop the rest. Whether there is scontrol has to be seen
    # from outside a container.
    lines = "\n".join([*resources.setup, f"export {SCONTROL}=$(command -v scontrol)", 'exec "$@"'])
    return ["srun", *options, "bash", "-c", lines, "simhpc-doctor", *probe]


def _run_job(command: Sequence[str], name: str) -> tuple[str, float]:
    """Output of a job, and when it ended.

    Raises:
        SchedulerError: it was refused, found no free node in `WAIT_S`, took longer than `RUN_S`, or failed.
    """

    def timed() -> tuple[str, float]:
        return scheduler.call(command, timeout_s=WAIT_S + RUN_S + 30), time.time()

    with ThreadPoolExecutor(max_workers=1) as pool:
        done = pool.submit(timed)
        try:
            try:
                return done.result(timeout=WAIT_S)
            except TimeoutError:
                reason = _why_waiting(name)
            if reason is not None:
                raise _NoFreeNodeError(f"no free node within {WAIT_S:.0f} s (Slurm's reason: {reason})")
            try:
                return done.result(timeout=RUN_S)
            except TimeoutError:
                raise SchedulerError(f"it runs on a node, but did not end within {RUN_S:.0f} s") from None
        finally:
            if not done.done():
                # By its name, which nothing else has; srun ends with its job.
                with contextlib.suppress(SchedulerError):
                    scheduler.call(["scancel", f"--name={name}"])


def _why_waiting(name: str) -> str | None:
    """Slurm's reason if the job of this name is pending, else None."""
    try:
        said = scheduler.call(["squeue", "-h", f"--name={name}", "-o", "%T|%r"])
    except SchedulerError as error:
        return one_line(error)
    state, _, reason = said.strip().partition("|")
    return reason if state == "PENDING" else None


def _trial_advice(words: str) -> str:
    if "no free node" in words:
        return "shared disk and software on the nodes are not checked: try again later, or use --no-probe"
    if "did not end" in words:
        return f"is the disk with {sys.prefix} slow there? try `srun {sys.executable} -m simhpc.cluster.probe . x`"
    return f"these are srun's words; {sys.executable} must be there and run on the nodes, from a disk that they share"


def _read_report(said: str, nonce: str) -> dict[str, Any] | None:
    for line in reversed(said.splitlines()):
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if isinstance(data, dict) and data.get("nonce") == nonce:
            return data
    return None


def _check_versions(there: object, *, is_contained: bool) -> Check:
    here = versions()
    if not isinstance(there, dict):
        return Check("software", FAILED, "the node did not say its versions", "install the same simhpc there")
    # An image brings its own torch; what was checked of it are simhpc and the study's schema.
    compared = ["simhpc", "submitit"] if is_contained else list({**here, **there})
    told = [
        f"{name} {here.get(name)} here, {there.get(name)} there"
        for name in compared
        if here.get(name) != there.get(name)
    ]
    if told:
        return Check(
            "software",
            FAILED,
            "the node has other versions: " + "; ".join(told),
            f"use one environment on a shared disk for both (here: {sys.prefix})",
        )
    names = ", ".join(f"{name} {there.get(name)}" for name in ("python", "simhpc", "torch"))
    return Check("software", OK, f"in the image: {names}" if is_contained else f"as here: {names}")


def _node_checks(
    report: NodeReport, kind: Kind, shared: Path, ended_unix_s: float, *, is_in_memory: bool
) -> Iterator[Check]:
    yield _check_shared(report, shared)
    if report.seen_after_s is not None and not report.not_writable:
        yield _check_hdf5(report)
    yield _check_torch(report, kind)
    free_bytes = report.temporary_free_bytes
    free = "unknown" if free_bytes is None else f"{free_bytes / 2**30:.1f} GiB"
    if is_in_memory:
        told = f"{free} in memory; container.scratch in the profile gives them a disk"
        yield Check("temporary files on the node", OK, told)
    elif free_bytes is None or free_bytes < _NODE_FREE_GIB * 2**30:
        advice = "set another one in the profile: setup = ['export TMPDIR=/somewhere/else']"
        yield Check("temporary files on the node", WARNING, f"free space in {report.temporary}: {free}", advice)
    else:
        yield Check("temporary files on the node", OK, f"{free} free in {report.temporary}")
    if report.has_scontrol:
        yield Check("requeueing from the node", OK, "scontrol is there")
    else:
        yield Check(
            "requeueing from the node",
            WARNING,
            "scontrol is not in PATH there: a task that reaches its time limit cannot requeue itself",
            "add it in the profile's setup lines, or submit again whenever tasks have run out of time",
        )
    ahead_s = report.unix_s - ended_unix_s
    if abs(ahead_s) > _CLOCKS_S:
        yield Check(
            "clock of the node",
            WARNING,
            f"about {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's",
            "times shown by `simhpc status` are off by as much: ask the administrators",
        )
    else:
        yield Check("clock of the node", OK, f"within {_CLOCKS_S:.0f} s of this machine's")


def _check_shared(report: NodeReport, shared: Path) -> Check:
    name = "shared disk"
    advice = "the run directory must be on a disk that login and compute nodes see under one path: give one with --dir"
    if report.seen_after_s is None:
        return Check(
            name,
            FAILED,
            f"{report.host} did not see a file in {shared.parent} within {SEEN_WITHIN_S:.0f} s",
            advice,
        )
    if report.not_writable:
        return Check(name, FAILED, f"{report.host} cannot write in {shared.parent}: {report.not_writable}", advice)
    back_s = wait_for_nonce(shared / FROM_NODE, report.nonce)
    if back_s is None:
        return Check(
            name,
            FAILED,
            f"what {report.host} wrote in {shared.parent} was not seen here within {SEEN_WITHIN_S:.0f} s",
            advice,
        )
    slowest_s = max(report.seen_after_s, back_s)
    if slowest_s > _LATE_S:
        return Check(
            name,
            WARNING,
            f"files take up to {slowest_s:.0f} s from one machine to the other",
            "`simhpc status` is late by as much",
        )
    return Check(name, OK, f"a file made here is seen on {report.host}, and one made there is seen here")


def _check_hdf5(report: NodeReport) -> Check:
    if report.no_hdf5:
        return Check(
            "HDF5",
            FAILED,
            f"{report.host} cannot write a run's files: {report.no_hdf5}",
            "set in the profile: setup = ['export HDF5_USE_FILE_LOCKING=FALSE']" if report.no_locks else "",
        )
    if report.no_locks:
        return Check(
            "HDF5",
            WARNING,
            f"its file locks do not work there: {report.no_locks}",
            "simhpc needs none (files are opened with locking=False, and have one writer each); other programs that "
            "open them may need HDF5_USE_FILE_LOCKING=FALSE",
        )
    return Check("HDF5", OK, "files are written and read there, and its file locks work")


def _check_torch(report: NodeReport, kind: Kind) -> Check:
    if report.no_torch:
        return Check(
            "torch on the node",
            FAILED,
            report.no_torch,
            "does the profile's setup load what torch needs, and is torch built for this driver?",
        )
    names = ", ".join(["the CPU", *report.devices])
    if kind.resources.asks_for_gpu and not report.devices:
        return Check(
            "torch on the node",
            WARNING,
            "a GPU was asked for, but torch sees none: a study with device = 'cuda' would fail, others use the CPU",
            "is it a torch for CUDA, and does the partition give GPUs? try `srun --gpus=1 nvidia-smi`",
        )
    told = f"attacks a small model on {names}" + ("" if report.devices else "; no GPU was asked for")
    return Check("torch on the node", OK, told)
