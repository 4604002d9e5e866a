"""`simhpc submit STAGE STUDY`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simhpc.cli.console import errors, name_of, output, tell
from simhpc.cli.status import wait_for
from simhpc.errors import SimhpcError, nearest
from simhpc.rundir import study_and_root
from simhpc.stages import ALL_STAGES, STAGES, stages_of
from simhpc.zoo.registry import substitution

if TYPE_CHECKING:
    from simhpc.cluster.container import Launch
    from simhpc.cluster.planning import StagePlan
    from simhpc.cluster.status import RunStatus
    from simhpc.rundir import Run

_VERBS = {"attacks": "attack"}

NoContainer = Annotated[
    bool, typer.Option("--no-container", help="Without the profile's container: in the environment of this command.")
]


def submit(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="train, attacks, evaluate, aggregate, distill, or all of these; or representations."
        ),
    ],
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")],
    profile_file: Annotated[
        Path, typer.Option("--profile", metavar="FILE", help="The cluster profile (TOML); examples in slurm/.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The run directory, on a shared disk.", show_default="runs/<name of the study>"
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only this model; may be repeated.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch scripts and what each element would do; submit nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all of it is over, and show how it goes.")] = False,
    no_container: NoContainer = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was submitted as JSON.")] = False,
) -> None:
    """Submit a stage, or all of them, as Slurm arrays: one element per model.

    Only what is neither done nor queued already is submitted. A stage waits for the queued tasks that it needs,
    and a model that fails stops no other. The shell may be closed afterwards: see `simhpc status`.

    The exit code is 1 when tasks were left out because what they need is not coming, and with --wait when a task
    failed.

    [bold]Examples[/]

      simhpc submit all jobs/demo.toml --profile slurm/devcluster.toml

      simhpc submit attacks jobs/demo.toml --profile slurm/gpu-cluster.toml --dry-run

      simhpc submit attacks jobs/demo.toml --profile slurm/gpu-cluster.toml --only vit --only resnet --wait
    """
    from simhpc.cluster import control, ledger, scheduler
    from simhpc.cluster import submit as submission
    from simhpc.cluster.planning import plan
    from simhpc.cluster.profile import load_profile
    from simhpc.cluster.status import Monitor
    from simhpc.stages.prepare import prepare, version_changes

    stages_named(stage)
    profile = load_profile(profile_file)
    if no_container:
        profile = profile.model_copy(update={"container": None})
    study, root = study_and_root(study_file, out)
    stages = stages_named(stage, stages_of(study))
    submission.check_root(root)
    say = errors if as_json else output
    with _locked_if_there(root, dry_run=dry_run):
        run = prepare(study, root, dry_run=dry_run)
    tell(map(substitution, run.study.models))
    models = control.chosen_models(run, only) if only else None
    submission.check_shares(run, stages, profile, str(profile_file))
    needed = study.resources.threads_per_task
    for name in stages:
        if profile.resources(name).cpus_per_task < needed and name != "aggregate":
            errors.print(
                f"warning: {profile_file}: {name}.cpus_per_task = {profile.resources(name).cpus_per_task}, but "
                f"resources.threads_per_task = {needed} in the study",
                markup=False,
                soft_wrap=True,
            )

    def planned(found: RunStatus) -> list[StagePlan]:
        most = scheduler.max_array_size()
        return plan(found, stages, profile, profile_name=str(profile_file), only=models, max_array_size=most)

    if dry_run:
        _print_dry_run(run, planned(Monitor(run).look()), as_json=as_json)
        return
    for change in version_changes(run):
        errors.print(f"warning: {root} was begun with other versions: {change}", markup=False, soft_wrap=True)
    with ledger.locked(run.dir):
        plans = planned(submission.look_before_submitting(run))
        for of_stage in plans:
            say.print(describe(of_stage), markup=False, soft_wrap=True)
            warn_of_blocked(of_stage)
        is_any = submit_and_tell(run, plans, as_json=as_json)
    last = f"see: simhpc status {shlex.quote(str(root))} --watch" if is_any else "nothing to submit"
    say.print(last, markup=False, soft_wrap=True)
    if wait:
        wait_for(run, stages, models, quiet=as_json)
    if any(of_stage.blocked for of_stage in plans):
        raise typer.Exit(1)


def _locked_if_there(root: Path, *, dry_run: bool) -> AbstractContextManager[None]:
    """Two who add a model at once must not undo each other. What does not exist yet, nobody else adds to."""
    from simhpc.cluster import ledger
    from simhpc.rundir import RunDir

    run_dir = RunDir(root)
    return ledger.locked(run_dir) if run_dir.study.exists() and not dry_run else nullcontext()


def submit_and_tell(run: Run, plans: Sequence[StagePlan], *, as_json: bool) -> bool:
    """Submit a plan, with a line for each array, and with JSON at the end if wanted; whether there was anything."""
    from simhpc.cluster import submit as submission

    say = errors if as_json else output
    submitted = []
    launches = submission.look_at_containers(run, plans)
    warn(run, plans, launches.values())
    for entry in submission.submit(run, plans, launches):
        submitted.append(asdict(entry))
        kind = "array" if entry.is_array else "job"
        after = f", {entry.after}" if entry.after else ""
        line = f"submitted  {entry.stage:<10} {kind} {entry.job_id}, {len(entry.models)} task(s){after}"
        say.print(line, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps({"run": str(run.dir.root), "submitted": submitted}, indent=1))
    return bool(submitted)


def warn(run: Run, plans: Sequence[StagePlan], launches: Iterable[Launch]) -> None:
    """What is worth knowing of the images and of the weights that are missing, each thing once."""
    from simhpc.cluster import submit as submission

    notes = [note for launch in launches for note in launch.checked.notes]
    for note in dict.fromkeys([*notes, submission.downloads(run, plans)]):
        if note:
            errors.print(f"warning: {note}", markup=False, soft_wrap=True)


def describe(plan: StagePlan) -> str:
    """One line on what submitting a stage comes to."""
    n = sum(len(batch.models) for batch in plan.batches)
    queued = f", {len(plan.queued)} queued already" if plan.queued else ""
    again = f" ({len(plan.again)} of them again, for new inputs)" if plan.again else ""
    return f"{plan.stage:<10} {plan.n_tasks} task(s), {plan.n_done} done{queued}, {n} to submit{again}"


def warn_of_blocked(plan: StagePlan) -> None:
    """Say which tasks are left out because what they need is not coming."""
    from simhpc.cluster.status import BEFORE

    if plan.blocked:
        shown = ", ".join(plan.blocked[:10]) + (", ..." if len(plan.blocked) > 10 else "")
        before = BEFORE[plan.stage]
        text = (
            f"warning: {plan.stage} of {len(plan.blocked)} model(s) left out, as their {before} is neither done nor "
            f"queued: {shown}. Submit {before} first, or all"
        )
        errors.print(text, markup=False, soft_wrap=True)


def stages_named(text: str, every: Sequence[str] = STAGES) -> list[str]:
    """The stages that a person means: `attacks` and `attack` are one, `all` is `every` stage.

    Raises:
        SimhpcError: there is no such stage.
    """
    if text == "all":
        return list(every)
    name = _VERBS.get(text, text)
    if name not in ALL_STAGES:
        known = ["train", "attacks", "evaluate", "aggregate", "distill", "all", "representations"]
        raise SimhpcError(f"there is no stage {text!r}{nearest(text, known)}; there are {', '.join(known)}")
    return [name]


def _print_dry_run(run: Run, plans: list[StagePlan], *, as_json: bool) -> None:
    from simhpc.cluster import submit as submission
    from simhpc.cluster.container import LAUNCHER

    launches = submission.look_at_containers(run, plans)
    warn(run, plans, launches.values())
    batches = [(batch, submission.script(run.dir, batch)) for plan in plans for batch in plan.batches]
    if as_json:
        data: list[dict[str, Any]] = [
            {
                "stage": batch.stage,
                "id": batch.id,
                "models": batch.models,
                "script": text,
                "launcher": launches[batch.id].script if batch.id in launches else None,
            }
            for batch, text in batches
        ]
        print(json.dumps({"run": str(run.dir.root), "would_submit": data}, indent=1))
        return
    for plan in plans:
        output.print(describe(plan), markup=False, soft_wrap=True)
        warn_of_blocked(plan)
    for batch, text in batches:
        output.print(f"\n----- {batch.stage}: batch {batch.id}, {len(batch.models)} task(s)", markup=False)
        print(text.rstrip())
        for number, model in enumerate(batch.models):
            element = f"element {number}" if len(batch.models) > 1 else "the job"
            output.print(f"# {element}: {batch.stage} of {name_of(model)}", markup=False, soft_wrap=True)
        if batch.id in launches:
            output.print(f"\n----- {LAUNCHER} of batch {batch.id}", markup=False)
            print(launches[batch.id].script.rstrip())
    output.print("\ndry run: nothing was submitted, nothing was written", markup=False)
