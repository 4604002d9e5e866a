"""Whether a cluster can run a profile: Slurm's programs and limits, the shared disk, and a trial job on a node.

Slurm's own word decides where it gives one: each kind of job is handed to `sbatch --test-only` with the script that
`submit` would use. What is read of partitions and nodes beside it says why, and what to change.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simhpc.cluster import capacity, container, image, ledger, scheduler, submit
from simhpc.cluster.capacity import Node, Partition
from simhpc.cluster.checks import FAILED, OK, WARNING, Check, Kind, one_line
from simhpc.cluster.container import Checked
from simhpc.cluster.planning import Batch
from simhpc.cluster.profile import Container, Profile, StageResources
from simhpc.cluster.trial import run_trial
from simhpc.errors import ContainerError, SchedulerError, SimhpcError, nearest
from simhpc.rundir import RunDir
from simhpc.stages import OPTIONAL_STAGES, STAGES, STUDENT_STAGES
from simhpc.store import atomic

PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")

_TOLD = (image.VERSION, "simhpc.git-commit", "simhpc.torch", "simhpc.timm")
_FREE_GIB = 10.0
_FREE_SHARE = 0.05
_FREE_INODES = 10_000
# Slurm may send a job's signal up to a minute early (sbatch(1), --signal).
_EARLY_S = 60


def examine(profile: Profile, profile_name: str, root: Path, *, probe: bool = True) -> Iterator[Check]:
    """Look at everything that a study needs of a cluster, the quick things first.

    Args:
        profile_name: its path, for the advice.
        root: the run directory, or where it will be; it is not made.
        probe: whether to run a job on a compute node.

    Yields:
        Checks, as they are done.
    """
    yield _programs()
    yield _munge()
    controller = _controller()
    yield controller
    yield _accounting()
    folder = _existing(root)
    disk = list(_disk(root, folder))
    is_writable = all(check.level != FAILED for check in disk)
    if controller.level == FAILED:
        yield from disk
        yield Check(
            "stages", WARNING, "not checked: the controller does not answer", "run this again when the controller is up"
        )
        return
    yield from _configuration()
    partitions, nodes = capacity.partitions(), capacity.nodes()
    refused: list[Kind] = []
    kinds = _kinds(profile)
    for kind in kinds:
        for check in _kind_checks(kind, profile, profile_name, root, partitions, nodes):
            if check.level == FAILED:
                refused.append(kind)
            yield check
    yield from disk
    checked = None
    if profile.container is not None:
        checked, check = _image(profile.container)
        yield check
    # Of the stages, one that needs a GPU says most about the nodes.
    kind = next((kind for kind in kinds if kind.resources.asks_for_gpu), kinds[0])
    if not probe:
        yield Check("trial job", OK, "left out (--no-probe): shared disk and software on the nodes are not checked")
    elif kind in refused or not is_writable or (checked is None and profile.container is not None):
        if not is_writable:
            why = "the run directory cannot be written"
        elif kind in refused:
            why = f"a job with the resources of {kind.name} would be refused"
        else:
            why = "there is no image to run it in"
        yield Check("trial job", WARNING, f"not started: {why}", "run this again when that is mended")
    else:
        yield from run_trial(kind, folder, checked)


def _kinds(profile: Profile) -> list[Kind]:
    alike: dict[str, list[str]] = {}
    for stage in STAGES:
        alike.setdefault(profile.resources(stage).model_dump_json(), []).append(stage)
    for stage in (*STUDENT_STAGES, *OPTIONAL_STAGES):
        alike.setdefault(profile.resources(stage).model_dump_json(), [stage])
    return [Kind(tuple(stages), profile.resources(stages[0])) for stages in alike.values()]


# ----- what Slurm is and whether it answers


def _programs() -> Check:
    missing = [program for program in PROGRAMS if not scheduler.is_there(program)]
    if missing:
        return Check(
            "programs",
            # Without the accounting's program, squeue tells what is needed.
            WARNING if missing == ["sacct"] else FAILED,
            f"not in PATH: {', '.join(missing)}",
            "run simhpc on a login node of the cluster, with Slurm's bin folder in PATH (perhaps `module load slurm`)",
        )
    try:
        said = scheduler.call(["sbatch", "--version"]).strip()
    except SchedulerError as error:
        return Check(
            "programs", FAILED, one_line(error), "ask the cluster's administrators: Slurm's programs do not work"
        )
    version = re.search(r"\d+\.\d+(\.\d+)?", said)
    return Check("programs", OK, f"{', '.join(PROGRAMS)} of Slurm {version[0] if version else said[:60]}")


def _munge() -> Check:
    if not scheduler.is_there("munge", "unmunge"):
        return Check("munge", OK, "not here; whether Slurm knows who asks is seen by its answers")
    try:
        with tempfile.TemporaryDirectory() as folder:
            credential = f"{folder}/credential"
            scheduler.call(["munge", "-n", "-o", credential])
            scheduler.call(["unmunge", "-n", "-i", credential])
    except SchedulerError as error:
        try:
            auth = scheduler.configuration().get("AuthType", "")
        except SchedulerError:
            auth = ""
        if auth and auth != "auth/munge":
            return Check("munge", OK, f"does not work, nor does it need to: Slurm uses {auth}")
        return Check(
            "munge", FAILED, one_line(error), "ask the administrators: the munge daemon of this machine is off"
        )
    return Check("munge", OK, "a credential made here is read here")


def _controller() -> Check:
    advice = "without it nothing can be submitted: wait, or ask the administrators; jobs that run go on"
    try:
        said = scheduler.call(["scontrol", "ping"])
    except SchedulerError as error:
        return Check("controller", FAILED, one_line(error), advice)
    if not re.search(r"\bUP\b", said):
        return Check("controller", FAILED, one_line(said) or "scontrol ping said nothing", advice)
    return Check("controller", OK, one_line(said))


def _accounting() -> Check:
    try:
        scheduler.call(["sacct", "-X", "-n", "-P", "-o", "JobID,State"])
    except SchedulerError as error:
        return Check(
            "accounting",
            WARNING,
            one_line(error),
            "`simhpc status` works with squeue alone, but cannot tell why a job ended",
        )
    return Check("accounting", OK, "sacct answers")


def _configuration() -> Iterator[Check]:
    try:
        values = scheduler.configuration()
    except SchedulerError as error:
        yield Check("configuration", WARNING, one_line(error), "arrays are taken to have at most 1001 elements")
        return
    size = values.get("MaxArraySize", "")
    if size in ("0", "1"):
        yield Check(
            "arrays", FAILED, f"MaxArraySize = {size}: job arrays are off", "ask the administrators to raise it"
        )
    elif size.isdigit():
        yield Check("arrays", OK, f"at most {size} elements each (MaxArraySize); longer ones are split")
    else:
        yield Check("arrays", WARNING, f"MaxArraySize = {size!r}", "arrays are taken to have at most 1001 elements")
    requeue = values.get("JobRequeue", "?")
    yield Check("requeueing", OK, f"JobRequeue = {requeue}; simhpc asks for it with each job, whatever the default")
    mode, kind = values.get("PreemptMode", "?"), values.get("PreemptType", "?")
    yield Check("preemption", OK, "none" if kind.endswith("/none") else f"PreemptMode = {mode} ({kind})")


# ----- what each kind of job asks for, and what there is


def _kind_checks(
    kind: Kind,
    profile: Profile,
    profile_name: str,
    root: Path,
    partitions: Mapping[str, Partition],
    nodes: Sequence[Node],
) -> Iterator[Check]:
    wanted = kind.resources.partition.split(",") if kind.resources.partition else []
    if not wanted:
        wanted = [name for name, partition in partitions.items() if partition.is_default]
    if partitions:
        check = _check_partition(kind, wanted, partitions, profile_name)
        yield check
        if check.level == FAILED:
            return
    else:
        yield Check(f"partition ({kind.name})", WARNING, "what scontrol tells of partitions could not be read")
    yield _check_time(kind, [partitions[name] for name in wanted if name in partitions], profile_name)
    words = _ask_slurm(kind, profile, profile_name, root)
    there = [node for node in nodes if not wanted or node.partitions & set(wanted)]
    fitting = [node for node in there if _fits(node, kind.resources)]
    fit = _check_nodes(kind, " or ".join(wanted) or "the cluster", there, fitting, profile_name)
    if fit.level == FAILED and not words:
        # Our reading of the nodes is not Slurm's, whose word counts.
        fit = Check(fit.name, WARNING, f"{fit.found}; yet Slurm takes the job", fit.advice)
    yield fit
    name = f"sbatch ({kind.name})"
    if not words:
        yield Check(name, OK, "sbatch --test-only takes the job")
    elif "node configuration is not available" in words and fitting and not any(node.in_service for node in fitting):
        yield Check(name, WARNING, words, "it would wait in the queue until such a node is back in service")
    else:
        yield Check(name, FAILED, words, _advice(words, profile_name))


def _check_partition(
    kind: Kind, wanted: Sequence[str], partitions: Mapping[str, Partition], profile_name: str
) -> Check:
    name = f"partition ({kind.name})"
    there_are = f"there are {', '.join(sorted(partitions))}"
    if not wanted:
        return Check(
            name, FAILED, "none named, and the cluster has no default", f"set it in {profile_name}; {there_are}"
        )
    if unknown := [each for each in wanted if each not in partitions]:
        return Check(
            name,
            FAILED,
            f"there is no partition {unknown[0]!r}{nearest(unknown[0], partitions)}",
            f"change it in {profile_name}; {there_are}",
        )
    found = [partitions[each] for each in wanted]
    told = ", ".join(f"{each.name} is {each.state.lower()}{_preemption(each)}" for each in found)
    if all(each.state != "UP" for each in found):
        return Check(name, FAILED, told, "wait until it is up, or choose another partition")
    if any(each.state != "UP" for each in found):
        return Check(name, WARNING, told, "jobs run in the others only")
    return Check(name, OK, told + ("" if kind.resources.partition else " (the default)"))


def _preemption(partition: Partition) -> str:
    if partition.preempt_mode in ("", "OFF"):
        return ""
    return f", where a job that gives way meets {partition.preempt_mode}"


def _check_time(kind: Kind, partitions: Sequence[Partition], profile_name: str) -> Check:
    name = f"time limit ({kind.name})"
    resources = kind.resources
    short = [each for each in partitions if each.max_min is not None and each.max_min < resources.timeout_min]
    asked = f"timeout_min = {resources.timeout_min}"
    if short:
        limits = ", ".join(f"{each.name} allows {each.max_min:g} min" for each in short)
        return Check(
            name,
            FAILED if len(short) == len(partitions) else WARNING,
            f"{asked}, but {limits}",
            f"lower timeout_min in {profile_name}, or choose another partition: a task that saves its work goes on "
            "after its limit",
        )
    if resources.delay_s + _EARLY_S >= resources.timeout_min * 60:
        return Check(
            name,
            WARNING,
            f"{asked}; tasks are told to save {resources.delay_s} s before, and Slurm may do so a minute earlier: "
            "they may be stopped as they start",
            f"raise timeout_min in {profile_name}",
        )
    return Check(name, OK, f"{resources.timeout_min} min; tasks are told to save {resources.delay_s} s before")


def _fits(node: Node, resources: StageResources) -> bool:
    return (
        node.cpus >= resources.cpus_per_task * resources.tasks_per_node
        and node.mem_mb >= math.ceil((resources.mem_gb or 0) * 1024)
        and capacity.has_gres(node.gres, _gres_of(resources))
    )


def _gres_of(resources: StageResources) -> str:
    return resources.gres or (f"gpu:{resources.gpus_per_node}" if resources.gpus_per_node else "")


def _check_nodes(kind: Kind, where: str, there: Sequence[Node], fitting: Sequence[Node], profile_name: str) -> Check:
    name = f"nodes ({kind.name})"
    if not there:
        return Check(name, WARNING, f"no node of {where} could be read", "see what sbatch says")
    resources = kind.resources
    memory = "" if resources.mem_gb is None else f"{resources.mem_gb:g} GiB"
    asked = ", ".join(
        word
        for word in (f"{resources.cpus_per_task * resources.tasks_per_node} CPU(s)", memory, _gres_of(resources))
        if word
    )
    if not fitting:
        gres = ", ".join(sorted({node.gres for node in there if node.gres})) or "no gres"
        return Check(
            name,
            FAILED,
            f"no node of {where} has {asked} together; there is at most {max(node.cpus for node in there)} CPU(s), "
            f"{max(node.mem_mb for node in there) / 1024:.1f} GiB, {gres}",
            f"ask for less in {profile_name}, or choose another partition",
        )
    in_service = sum(node.in_service for node in fitting)
    told = f"{len(fitting)} of {len(there)} in {where} have {asked}"
    if not in_service:
        return Check(name, WARNING, f"{told}, but none is in service now", "jobs wait until one is: see `sinfo -R`")
    return Check(name, OK, told + (f", {in_service} in service" if in_service < len(fitting) else ""))


def _ask_slurm(kind: Kind, profile: Profile, profile_name: str, root: Path) -> str:
    """Why sbatch would refuse an array of these stages, in its own words; empty if it would not."""
    most = kind.resources.array_parallelism
    batch = Batch(
        ledger.new_id(),
        kind.stages[0],
        ("first", "second"),
        kind.resources,
        profile.retry,
        profile_name,
        at_once=most,
        container=profile.container,
    )
    return one_line(submit.refusal(RunDir(root.resolve()), batch))


def _advice(words: str, profile_name: str) -> str:
    low = words.lower()
    if "account" in low or "qos" in low:
        key = "account" if "account" in low else "qos"
        return f"set {key} in {profile_name}{_associations()}"
    if "time limit" in low:
        return f"lower timeout_min in {profile_name}"
    return f"change what {profile_name} asks for"


def _associations() -> str:
    """What the accounting lets this user use, as the end of a sentence; empty if it cannot be asked."""
    columns = "format=Account%100,Partition%100,QOS%200"
    try:
        said = scheduler.call(["sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", columns])
    except SchedulerError:
        return ""
    found = []
    for line in said.splitlines():
        account, *rest = line.split("|")
        if len(rest) == 2 and account:
            found.append(
                f"account {account}"
                + "".join(f", {k} {v}" for k, v in zip(("partition", "qos"), rest, strict=True) if v)
            )
    return f"; you may use {'; '.join(found)}" if found else ""


# ----- the container


def _image(wanted: Container) -> tuple[Checked | None, Check]:
    try:
        checked = container.check(wanted)
    except ContainerError as error:
        return None, Check("image", FAILED, str(error), "or run without one: --no-container")
    labels = checked.image.labels or {}
    told = ", ".join(f"{name.removeprefix('simhpc.')} {labels.get(name, '?')}" for name in _TOLD)
    found = f"{checked.image.path}, {checked.image.size_bytes / 1e6:.0f} MB, {told}, {checked.digest[:19]}…"
    if checked.notes:
        return checked, Check("image", WARNING, f"{found}; {'; '.join(checked.notes)}", "see containers/build.sh")
    return checked, Check("image", OK, found)


# ----- the run directory's disk


def _existing(root: Path) -> Path:
    """`root`, or the folder in which it would be made."""
    root = root.resolve()
    return next(path for path in (root, *root.parents) if _is_there(path))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _disk(root: Path, folder: Path) -> Iterator[Check]:
    name = "run directory"
    try:
        submit.check_root(root)
    except SimhpcError as error:
        yield Check(name, FAILED, str(error), "give another one with --dir")
        return
    if not folder.is_dir():
        yield Check(name, FAILED, f"{folder} is a file", "give another one with --dir")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".simhpc-doctor-", dir=folder) as trial:
            # Big enough to meet a quota that is used up.
            atomic.write_text(Path(trial) / "trial", "x" * 2**20)
        space = os.statvfs(folder)
    except OSError as error:
        yield Check(
            name, FAILED, f"{folder} cannot be written: {error.strerror or error}", "give a folder of yours with --dir"
        )
        return
    yield Check(
        name, OK, f"{folder} can be written" + ("" if folder == root.resolve() else f" ({root} is not there yet)")
    )
    free_gib, all_gib = (blocks * space.f_frsize / 2**30 for blocks in (space.f_bavail, space.f_blocks))
    told = f"{free_gib:.1f} of {all_gib:.1f} GiB free (a quota may leave less)"
    # A file system that does not count its inodes has 0 of 0.
    told += f"; {space.f_favail} inodes free" if space.f_files else ""
    few_inodes = bool(space.f_files) and space.f_favail < _FREE_INODES
    if free_gib < _FREE_GIB or free_gib < _FREE_SHARE * all_gib or few_inodes:
        yield Check("disk space", WARNING, told, "make room, or give another disk with --dir")
    else:
        yield Check("disk space", OK, told)
