"""What a cluster has: its partitions and nodes, as scontrol tells them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from simhpc.cluster import scheduler
from simhpc.errors import SchedulerError


@dataclass(frozen=True)
class Partition:
    """A partition as `scontrol show partition` tells it.

    Attributes:
        max_min: the longest time limit in minutes, `inf` without one; None if it could not be read.
        preempt_mode: what happens to its jobs when others need the place.
    """

    name: str
    state: str
    is_default: bool
    max_min: float | None
    preempt_mode: str


@dataclass(frozen=True)
class Node:
    """A node as `scontrol show node` tells it.

    Attributes:
        mem_mb: memory that jobs can have, in MiB.
        architecture: as in `x86_64`; empty if Slurm does not know it, as of a node that was never up.
        gres: as in `gpu:a100:4(S:0-1)`; empty without.
        in_service: whether it takes jobs, now or as soon as it has room.
    """

    name: str
    partitions: frozenset[str]
    cpus: int
    mem_mb: int
    architecture: str
    gres: str
    in_service: bool


def partitions() -> dict[str, Partition]:
    """By name; empty if they cannot be asked."""
    try:
        return read_partitions(scheduler.call(["scontrol", "--all", "--oneliner", "show", "partition"]))
    except SchedulerError:
        return {}


def nodes() -> list[Node]:
    """Empty if they cannot be asked."""
    try:
        return read_nodes(scheduler.call(["scontrol", "--all", "--oneliner", "show", "node"]))
    except SchedulerError:
        return []


def architectures() -> set[str]:
    """Of the cluster's nodes; empty if they cannot be asked."""
    return {node.architecture for node in nodes()} - {""}


def read_partitions(text: str) -> dict[str, Partition]:
    """Parse `scontrol --oneliner show partition`; lines that are no partition are left out."""
    found = {}
    for pairs in _pairs(text):
        name, state = pairs.get("PartitionName"), pairs.get("State")
        if name and state:
            found[name] = Partition(
                name,
                state,
                pairs.get("Default") == "YES",
                read_minutes(pairs.get("MaxTime", "")),
                pairs.get("PreemptMode", ""),
            )
    return found


def read_nodes(text: str) -> list[Node]:
    """Parse `scontrol --oneliner show node`; lines that are no node are left out."""
    found = []
    for pairs in _pairs(text):
        cpus, mem_mb = pairs.get("CPUTot", ""), pairs.get("RealMemory", "")
        if not pairs.get("NodeName") or not cpus.isdigit() or not mem_mb.isdigit():
            continue
        # What the system keeps for itself.
        kept = [pairs.get(key, "0") for key in ("CoreSpecCount", "MemSpecLimit")]
        effective = pairs.get("CPUEfctv", cpus)
        gres = pairs.get("Gres", "")
        found.append(
            Node(
                name=pairs["NodeName"],
                partitions=frozenset(pairs.get("Partitions", "").split(",")) - {""},
                cpus=int(effective) if effective.isdigit() else int(cpus),
                mem_mb=int(mem_mb) - (int(kept[1]) if kept[1].isdigit() else 0),
                architecture=pairs.get("Arch", ""),
                gres="" if gres == "(null)" else gres,
                in_service=_in_service(pairs.get("State", "")),
            )
        )
    return found


def _pairs(text: str) -> Iterator[dict[str, str]]:
    """The `NAME=VALUE` words of each line. Free text comes last in it: the first of a name counts."""
    for line in text.splitlines():
        pairs: dict[str, str] = {}
        for word in line.split():
            name, is_pair, value = word.partition("=")
            if is_pair:
                pairs.setdefault(name, value)
        if pairs:
            yield pairs


def _in_service(state: str) -> bool:
    words = {word.rstrip("*~#!%$@^-+") for word in state.split("+")}
    out = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "ERROR", "UNKNOWN", "FUTURE", "NOT_RESPONDING"}
    return bool(state) and not words & out and not state.split("+")[0].endswith("*")


def read_minutes(text: str) -> float | None:
    """Slurm's times (`2:00`, `1-12:00:00`, `UNLIMITED`) in minutes; None for what is none."""
    if text in ("UNLIMITED", "INFINITE"):
        return math.inf
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def has_gres(have: str, wanted: str) -> bool:
    """Whether a node's `gpu:a100:4(S:0-1),shard:8` covers what a job asks for, as `gpu:2` or `gpu:a100:1`."""
    there = _gres(have)
    for (name, kind), count in _gres(wanted).items():
        if sum(n for (other, of), n in there.items() if other == name and kind in ("", of)) < count:
            return False
    return True


def _gres(text: str) -> dict[tuple[str, str], int]:
    """Counts by name and type (empty: any)."""
    found: dict[tuple[str, str], int] = {}
    for entry in re.sub(r"\([^)]*\)", "", text).removeprefix("gres/").replace("=", ":").split(","):
        name, *rest = entry.strip().split(":")
        if name in ("", "none"):
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", rest[-1].upper()) if rest else None
        count = int(match[1]) * 1024 ** " KMG".index(match[2] or " ") if match else 1
        # "gpu:a100" is one; "no_consume" says how it is counted, not what it is.
        kinds = [word for word in (rest[:-1] if match else rest) if word != "no_consume"]
        key = (name, kinds[0] if kinds else "")
        found[key] = found.get(key, 0) + count
    return found
