"""`simhpc plan STUDY`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simhpc.cli.console import duration, errors, output, percent, scaled, size, tell
from simhpc.errors import SimhpcError, nearest
from simhpc.rundir import Run, RunDir, study_and_root
from simhpc.stages import ALL_STAGES, OPTIONAL_STAGES
from simhpc.study import Study
from simhpc.zoo.registry import substitution

if TYPE_CHECKING:
    from simhpc.cluster.forecast import StageForecast
    from simhpc.stages.estimate import Estimate, Facts, Speed

_NO_TIMES = "times are unknown: --measure times a few batches here, --tflops N takes what one device sustains"


def plan(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")],
    profile_file: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="A cluster profile (TOML): tasks at once, and limits to check."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run directory; what is done there is left out.", show_default="runs/<name>"
        ),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="N", help="TFLOP/s that one task's device sustains on these models.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few batches of each model on this machine.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Tasks at once without a profile.", show_default="1"),
    ] = None,
    accuracy: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Assumed of models that are not attacked yet.")
    ] = 0.8,
    optional: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="STAGE", help="Also an optional stage: representations."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Tell what a study will cost: arithmetic, memory, disk and, given a speed, time. Writes nothing.

    FLOPs are counted on shapes alone, no weights are needed; a multiply-add is two. With a profile, the time
    and memory of tasks are checked against its limits.

    [bold]Examples[/]

      simhpc plan jobs/demo.toml

      simhpc plan jobs/demo.toml --measure --workers 2

      simhpc plan jobs/demo.toml --with representations

      simhpc plan jobs/demo.toml --profile slurm/gpu-cluster.toml --tflops 40

      simhpc plan jobs/demo.toml --json | jq '.stages[] | {stage, flops}'
    """
    if tflops is not None and not 0 < tflops < float("inf"):
        raise SimhpcError(f"--tflops {tflops}: a number of TFLOP/s greater than 0 is needed")
    if tflops is not None and measure:
        raise SimhpcError("--tflops and --measure both say how fast a device is: give one of them")
    if profile_file is not None and workers is not None:
        raise SimhpcError("--workers is for one machine; with --profile, its array_parallelism counts")
    for stage in optional or []:
        if stage not in OPTIONAL_STAGES:
            known = ", ".join(OPTIONAL_STAGES)
            raise SimhpcError(f"--with {stage}: {nearest(stage, OPTIONAL_STAGES)[2:] or f'optional is {known}'}")
    from simhpc.cluster.forecast import forecast, uses_gpu, warnings
    from simhpc.cluster.profile import load_profile
    from simhpc.stages.device import cuda_devices
    from simhpc.stages.estimate import count_costs, estimate, look, speed_from
    from simhpc.stages.prepare import prepare

    study, root = study_and_root(study_file, out)
    profile = load_profile(profile_file) if profile_file is not None else None
    if RunDir(root).study.exists() and not RunDir(root).images.exists():
        raise SimhpcError(f"{RunDir(root).images} has gone: simhpc run or simhpc submit draws it again, plan does not")
    run = prepare(study, root, dry_run=True)
    tell(map(substitution, run.study.models))
    facts = look(run)
    costs = count_costs(run.study, facts.num_classes)
    speeds = _measured(run.study, facts.num_classes) if measure else None
    if tflops is not None:
        speeds = {key: speed_from(cost, tflops) for key, cost in costs.items()}
    if profile is not None:
        on_gpu = [stage for stage in ALL_STAGES if uses_gpu(profile, study.resources, stage)]
        at_once = {stage: profile.resources(stage).array_parallelism for stage in ALL_STAGES}
        processes = {stage: profile.resources(stage).processes for stage in ALL_STAGES}
    else:
        on_gpu = list(ALL_STAGES) if study.resources.device != "cpu" and cuda_devices() else []
        at_once, processes = dict.fromkeys(ALL_STAGES, workers or 1), dict.fromkeys(ALL_STAGES, 1)
    found = estimate(
        run, facts, costs,
        accuracy=accuracy, speeds=speeds, on_gpu=on_gpu, processes=processes, optional=optional or (),
    )  # fmt: skip
    stages = forecast(found, at_once)
    notes = warnings(found, profile, str(profile_file)) if profile is not None else []
    result = _Plan(run, facts, found, stages, notes)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
        return
    # In a file, nothing is cut.
    console = output if output.is_terminal else Console(file=output.file, width=250, highlight=False)
    result.show(console, accuracy)
    for note in notes:
        errors.print(f"warning: {note}", markup=False, soft_wrap=True)
    if speeds is None:
        output.print(_NO_TIMES, markup=False, soft_wrap=True)


def _measured(study: Study, num_classes: int) -> dict[str, Speed]:
    from simhpc.stages.timing import import_seconds, measure

    import_s, speeds = import_seconds(), {}
    for number, model in enumerate(study.models, 1):
        errors.print(f"measuring {model.key} ({number} of {len(study.models)})", markup=False, soft_wrap=True)
        speeds[model.key] = measure(model, study, num_classes, import_s=import_s)
    alike: dict[str, Speed] = {}
    for student in study.students:
        name = student.distillation.name
        if name not in alike:
            errors.print(f"measuring the students of {name}", markup=False, soft_wrap=True)
            alike[name] = measure(student.model, study, num_classes, import_s=import_s)
        speeds[student.key] = alike[name]
    return speeds


@dataclass(frozen=True)
class _Plan:
    """All that is shown."""

    run: Run
    facts: Facts
    found: Estimate
    stages: Sequence[StageForecast]
    warnings: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        study = self.run.study
        models = [
            {
                "model": model.key,
                "timm": model.timm_name,
                "input_size_px": model.data.input_size_px,
                "accuracy": self.found.accuracy[model.key],
                "is_accuracy_known": model.key in self.facts.accuracy,
                "parameters": cost.parameters,
                "weight_bytes": cost.weight_bytes,
                "forward_flops_per_image": cost.forward_flops,
                "forward_and_gradient_flops_per_image": cost.gradient_flops,
                "saved_bytes_per_image": cost.saved_bytes,
                "saved_bytes_per_batch": cost.saved_fixed_bytes,
                "counted_on": cost.counted_on,
                **(
                    {f"{name}_per_image" if name != "start_s" else name: value for name, value in asdict(speed).items()}
                    if (speed := self._speed(model.key)) is not None
                    else {}
                ),
            }
            for model, cost in ((model, self.found.costs[model.key]) for model in study.models)
        ]
        tasks = [
            {**asdict(task.task), **{name: value for name, value in asdict(task).items() if name != "task"}}
            for task in self.found.tasks
        ]
        return {
            "study": study.name,
            "run": str(self.run.dir.root),
            "images": study.images.n,
            "steps": study.attack.steps,
            "batch_size": study.resources.batch_size,
            "models": models,
            "tasks": tasks,
            "stages": [asdict(stage) for stage in self.stages],
            "flops": sum(stage.flops for stage in self.stages),
            "todo_flops": sum(stage.todo_flops for stage in self.stages),
            "device_hours": None if self._device_s() is None else (self._device_s() or 0) / 3600,
            "wall_s": self._wall_s(),
            "disk": {
                "files": [
                    {"kind": kind, "expected_bytes": expected, "most_bytes": most}
                    for kind, (expected, most) in self.found.files.items()
                ],
                "expected_bytes": self._disk()[0],
                "most_bytes": self._disk()[1],
                "temporary_most_bytes": self._temporary(),
                "largest_file": self.found.largest_file,
                "largest_file_most_bytes": self.found.largest_file_bytes,
                "evaluations_read_bytes": sum(task.read_bytes for task in self.found.of_stage("evaluate")),
            },
            "warnings": list(self.warnings),
        }

    def show(self, console: Console, accuracy: float) -> None:
        study = self.run.study
        unknown = sum(model.key not in self.facts.accuracy for model in study.models)
        text = (
            f"{study.name}: {len(study.models)} models, {study.images.n} images, {study.attack.name} with "
            f"{study.attack.steps} steps, batches of {study.resources.batch_size}"
        )
        if unknown:
            text += f"; accuracy of {unknown} assumed, {percent(accuracy)}"
        console.print(text, markup=False, soft_wrap=True)
        console.print()
        console.print(self._models())
        console.print()
        console.print(self._stages())
        console.print()
        expected, most = self._disk()
        kinds = ", ".join(f"{kind} {size(expected)}" for kind, (expected, _) in self.found.files.items())
        lines = [
            f"disk     {size(expected)}, at most {size(most)}: {kinds}",
            f"         largest file {self.found.largest_file}, at most {size(self.found.largest_file_bytes)}; "
            f"while it runs, at most {size(self._temporary())} more",
            f"reading  {size(sum(task.read_bytes for task in self.found.of_stage('evaluate')))} of adversarial images "
            "by the evaluations (not in their times)",
        ]
        if (device_s := self._device_s()) is not None:
            lines.append(f"time     {device_s / 3600:.2f} device-hours, {duration(self._wall_s())} from start to end")
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)

    def _models(self) -> Table:
        table = _table(
            "model", "input", "params", "weights", "forward", "+ gradient", "kept/image", "attack FLOP", "evaluate FLOP"
        )
        by_task = {(task.task.stage, task.task.model): task for task in self.found.tasks}
        times = self.found.speeds is not None
        table.add_column("attack memory", justify="right", no_wrap=True)
        table.add_column("adversarial", justify="right", no_wrap=True)
        for name in ("train", "attack", "evaluate") if times else ():
            table.add_column(f"{name} time", justify="right", no_wrap=True)
        for model in self.run.study.models:
            cost, attack, evaluate = (
                self.found.costs[model.key],
                by_task["attack", model.key],
                by_task["evaluate", model.key],
            )
            row = [
                model.key,
                f"{model.data.input_size_px} px",
                scaled(cost.parameters, ""),
                size(cost.weight_bytes),
                scaled(cost.forward_flops, "FLOP"),
                scaled(cost.gradient_flops, "FLOP"),
                size(cost.saved_bytes),
                scaled(attack.flops, ""),
                scaled(evaluate.flops, ""),
                size(attack.device_bytes or attack.memory_bytes) + (" GPU" if attack.device_bytes else ""),
                size(attack.written_bytes),
            ]
            for stage in ("train", "attack", "evaluate") if times else ():
                task = by_task.get((stage, model.key))
                row.append("" if task is None else "done" if task.is_done else duration(task.todo_s))
            table.add_row(*row)
        return table

    def _stages(self) -> Table:
        table = _table("stage", "tasks", "done", "FLOP", "to do", "peak memory", "on the GPU", "at once")
        times = self.found.speeds is not None
        for name in ("device time", "longest task", "wall time") if times else ():
            table.add_column(name, justify="right", no_wrap=True)
        for stage in self.stages:
            row = [
                stage.stage,
                str(stage.n_tasks),
                str(stage.n_done),
                scaled(stage.flops, ""),
                scaled(stage.todo_flops, ""),
                size(stage.memory_bytes),
                size(stage.device_bytes) if stage.device_bytes else "",
                str(stage.at_once),
            ]
            if times:
                row += [duration(stage.device_s), duration(stage.longest_s), duration(stage.wall_s)]
            table.add_row(*row)
        total = [
            "total",
            str(sum(stage.n_tasks for stage in self.stages)),
            str(sum(stage.n_done for stage in self.stages)),
            scaled(sum(stage.flops for stage in self.stages), ""),
            scaled(sum(stage.todo_flops for stage in self.stages), ""),
        ]
        if times:
            total += ["", "", "", duration(self._device_s()), "", duration(self._wall_s())]
        table.add_row(*total, style="bold")
        return table

    def _speed(self, key: str) -> Speed | None:
        return None if self.found.speeds is None else self.found.speeds[key]

    def _device_s(self) -> float | None:
        return _sum([stage.device_s for stage in self.stages])

    def _wall_s(self) -> float | None:
        return _sum([stage.wall_s for stage in self.stages])

    def _disk(self) -> tuple[int, int]:
        files = self.found.files.values()
        return sum(expected for expected, _ in files), sum(most for _, most in files)

    def _temporary(self) -> int:
        return max(stage.temporary_bytes for stage in self.stages)


def _sum(seconds: Sequence[float | None]) -> float | None:
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True, overflow="ellipsis")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
