"""The cluster profile: where a study runs, typed and validated. One TOML file describes one cluster.

`[defaults]` holds for every stage; a table named after a stage overrides it key by key. Where they have no
table of their own, `distill` gets what trainings get, and the optional stage `representations` what attacks get.
`[container]` names the image that tasks run in. slurm/README.md lists the keys.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from simhpc.errors import ProfileError
from simhpc.sections import Section, check_plain, explain, read_toml
from simhpc.stages import ALL_STAGES

# One word: it becomes one line of a batch script.
Word = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]+$", max_length=500)]

_OURS = {
    "array": "array_parallelism",
    "begin": None,
    "clusters": None,
    "cpus-per-task": "cpus_per_task",
    "dependency": None,
    "error": None,
    "export": None,
    "gpus-per-node": "gpus_per_node",
    "gres": "gres",
    "job-name": None,
    "kill-on-invalid-dep": None,
    "mem": "mem_gb",
    "nodes": "nodes",
    "no-requeue": None,
    "ntasks": None,
    "ntasks-per-node": "tasks_per_node",
    "open-mode": None,
    "parsable": None,
    "quiet": None,
    "output": None,
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "requeue": None,
    "signal": "signal_delay_s",
    "test-only": None,
    "time": "timeout_min",
    "wait": None,
    "wrap": None,
}


class StageResources(Section):
    """What each task of a stage gets, and how Slurm is to run the stage's array."""

    partition: Word | None = None
    """Slurm partition(s), comma-separated; absent: the cluster's default."""
    account: Word | None = None
    qos: Word | None = None
    timeout_min: Annotated[int, Field(ge=1)] = 60
    """Time limit of one task in minutes. A task that saves its work goes on after it, in a new job slot."""
    signal_delay_s: Annotated[int, Field(ge=1)] | None = None
    """How long before the limit a task is told to save and requeue; default: 15 s per minute of limit, at most 120."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes of one task; only a training can use more than one."""
    tasks_per_node: Annotated[int, Field(ge=1)] = 1
    """Processes of one task on each of its nodes, in Slurm's words tasks: those that train one model together."""
    cpus_per_task: Annotated[int, Field(ge=1)] = 1
    """Cores of each process."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory of one task on each of its nodes, in GiB; absent: the cluster's default."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    gres: Word | None = None
    """Generic resources instead of `gpus_per_node`, as in `gpu:a100:1`."""
    array_parallelism: Annotated[int, Field(ge=1)] = 256
    """Tasks of one stage that may run at once: the `%` of a Slurm array."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further sbatch options by their long names, as in `{ constraint = "a100", exclude = "node7" }`."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of the batch script, as in `module load cuda`."""

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, said in value.items():
            if not re.fullmatch("[a-z][a-z0-9-]*", name):
                raise ValueError(f"{name!r}: write the long name of an sbatch option without its dashes: constraint")
            if name in _OURS:
                where = f"the profile's own key for it is {_OURS[name]}" if _OURS[name] else "simhpc sets it itself"
                raise ValueError(f"{name!r} does not belong into sbatch: {where}")
            if isinstance(said, str) and not (said and said.isprintable()):
                raise ValueError(f"{name}: one line of text that is not empty (given: {said!r})")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.gres is not None and self.gpus_per_node:
            raise ValueError("set gres or gpus_per_node, not both")
        if 0 < self.gpus_per_node < self.tasks_per_node:
            raise ValueError(
                f"tasks_per_node = {self.tasks_per_node} processes cannot share gpus_per_node = {self.gpus_per_node}"
            )
        if self.delay_s >= self.timeout_min * 60:
            raise ValueError(
                f"signal_delay_s = {self.signal_delay_s} is not less than timeout_min = {self.timeout_min}: "
                "a task would be interrupted as it starts"
            )
        return self

    @property
    def delay_s(self) -> int:
        """`signal_delay_s`, or its default."""
        return min(120, 15 * self.timeout_min) if self.signal_delay_s is None else self.signal_delay_s

    @property
    def processes(self) -> int:
        """Of one task, on all its nodes."""
        return self.nodes * self.tasks_per_node

    @property
    def asks_for_gpu(self) -> bool:
        return self.gpus_per_node > 0 or (self.gres is not None and "gpu" in self.gres)


class Retry(Section):
    """What `simhpc retry` changes."""

    oom_memory_factor: Annotated[float, Field(ge=1, le=16)] = 1.0
    """A task that ran out of memory gets this many times as much (1: no more)."""
    max_mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Never more than this, in GiB."""

    def raised(self, mem_gb: float) -> float:
        """Memory of a retry after `mem_gb` was not enough, in GiB; never less than that."""
        most = float("inf") if self.max_mem_gb is None else self.max_mem_gb
        return max(mem_gb, min(mem_gb * self.oom_memory_factor, most))


_VARIABLE = "[A-Za-z_][A-Za-z0-9_]*"
PathText = Annotated[str, Field(pattern=r"^[^\x00]+$")]
"""A path; what a shell would read in it means nothing."""


class Bind(Section):
    """A file or folder of the nodes that tasks see inside the image."""

    source: PathText
    target: PathText | None = None
    """Its path inside; absent: the same."""
    mode: Literal["ro", "rw"] = "ro"

    @field_validator("target")
    @classmethod
    def _is_absolute(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("must be an absolute path")
        return value

    @property
    def inside(self) -> str:
        return self.source if self.target is None else self.target


class Container(Section):
    """The image that tasks run in, and what of the node they see inside it."""

    image: PathText
    """A SIF file, as containers/build.sh makes it."""
    binds: tuple[Bind, ...] = ()
    """Files and folders besides the run directory, the study's images and checkpoints, and the weights' caches."""
    env: tuple[Annotated[str, Field(pattern=f"^{_VARIABLE}$")], ...] = ()
    """Variables of the job that are let in, besides Slurm's."""
    flags: tuple[PathText, ...] = ()
    """Further flags of `apptainer exec`."""
    scratch: PathText | None = None
    """A folder of the node's for temporary files, or `$NAME`: the folder that this variable names in the job. Absent:
    Apptainer's own, in memory, of 64 MiB by default."""
    nv: bool | None = None
    """Whether NVIDIA's devices and libraries are let in; absent: where a stage asks for a GPU."""

    @field_validator("binds", mode="before")
    @classmethod
    def _plain_paths(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return tuple({"source": each} if isinstance(each, str) else each for each in value)
        return value

    @field_validator("scratch")
    @classmethod
    def _path_or_variable(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/") and not re.fullmatch(rf"\${_VARIABLE}", value):
            raise ValueError("must be an absolute path, or $NAME for the path that a variable of the job holds")
        return value


class Profile(Section):
    """A whole profile: every stage's resources, complete."""

    train: StageResources = StageResources()
    attack: StageResources = StageResources()
    evaluate: StageResources = StageResources()
    aggregate: StageResources = StageResources()
    distill: StageResources = StageResources()
    representations: StageResources = StageResources()
    retry: Retry = Retry()
    container: Container | None = None
    """Absent: tasks run in the environment that they are submitted from."""

    @model_validator(mode="after")
    def _only_trainings_are_shared(self) -> Self:
        for stage in ALL_STAGES:
            if stage not in _TRAIN and self.resources(stage).processes > 1:
                raise ValueError(
                    f"{stage} cannot use more than one process: nodes and tasks_per_node belong into [train] (or "
                    "[distill]), not into [defaults]"
                )
        return self

    def resources(self, stage: str) -> StageResources:
        """What one of `stages.ALL_STAGES` gets."""
        found: StageResources = getattr(self, stage)
        return found


_TRAIN = ("train", "distill")
_LIKE = {"representations": "attack", "distill": "train"}
"""Stages without a table of their own that get what another has, as they compute the like of it."""


def load_profile(path: Path) -> Profile:
    """Read and validate a profile. Relative paths in it are relative to the file's folder.

    Raises:
        ProfileError: unreadable, not TOML, or not a profile; the message lists every wrong key.
    """
    profile = parse_profile(read_toml(path, "profile", ProfileError), where=str(path))
    if profile.container is None:
        return profile
    base = path.resolve().parent
    binds = tuple(bind.model_copy(update={"source": _absolute(bind.source, base)}) for bind in profile.container.binds)
    changes = {"image": _absolute(profile.container.image, base), "binds": binds}
    return profile.model_copy(update={"container": profile.container.model_copy(update=changes)})


def _absolute(path: str, base: Path) -> str:
    return os.path.normpath(base / Path(path).expanduser())


def parse_profile(raw: dict[str, Any], *, where: str) -> Profile:
    """Validate a profile given as plain data; see `load_profile`."""
    check_plain(raw, where, "profile", ProfileError)
    defaults = raw.get("defaults", {})
    lines: list[str] = []
    if not isinstance(defaults, dict):
        raise ProfileError(f"{where}: defaults: must be a table (given: {defaults!r})")
    try:
        StageResources.model_validate(_with_tuples(defaults))
    except ValidationError as error:
        lines = [f"defaults.{explain(details, StageResources)}" for details in error.errors()]
    if not lines:
        merged = {key: value for key, value in raw.items() if key != "defaults"}
        if isinstance(raw.get("container"), dict):
            merged["container"] = _with_tuples(raw["container"])
        likewise = {stage: other for stage, other in _LIKE.items() if stage not in raw}
        for stage in ALL_STAGES:
            own = raw.get(likewise.get(stage, stage), {})
            merged[stage] = _merged(defaults, own) if isinstance(own, dict) else own
        try:
            return Profile.model_validate(merged)
        except ValidationError as error:
            of_others = {(stage,) for stage in likewise}
            lines = [explain(details, Profile) for details in error.errors() if details["loc"][:1] not in of_others]
    raise ProfileError("\n  ".join([f"{where}: {len(lines)} problem(s) in the profile", *lines]))


def _merged(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = {**defaults, **own}
    if isinstance(own.get("sbatch"), dict) and isinstance(defaults.get("sbatch"), dict):
        merged["sbatch"] = {**defaults["sbatch"], **own["sbatch"]}
    # Two ways to ask for GPUs: a stage that uses one does not inherit the other.
    if "gpus_per_node" in own and "gres" not in own:
        merged.pop("gres", None)
    if "gres" in own and "gpus_per_node" not in own:
        merged.pop("gpus_per_node", None)
    return _with_tuples(merged)


def _with_tuples(table: dict[str, Any]) -> dict[str, Any]:
    """TOML's lists as the tuples that frozen sections hold."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
