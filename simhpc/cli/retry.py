"""`simhpc retry [--failed|MODEL…]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simhpc.cli.console import errors, name_of, output
from simhpc.cli.runs import RunOption, find_run
from simhpc.cli.submit import NoContainer, submit_and_tell
from simhpc.errors import SimhpcError


def retry(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]…", help="Whose failed or cancelled tasks to submit again; 'all' is the aggregation's."
        ),
    ] = None,
    run_dir: RunOption = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every task that failed.")] = False,
    cancelled: Annotated[
        bool, typer.Option("--cancelled", help="Every task that failed, and those cancelled on purpose.")
    ] = False,
    profile_file: Annotated[
        Path | None,
        typer.Option("--profile", metavar="FILE", help="Other resources.", show_default="those of the last submission"),
    ] = None,
    no_container: NoContainer = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was submitted as JSON.")] = False,
) -> None:
    """Submit failed tasks again, and after them what depends on them. They go on from what they had finished.

    Earlier logs are kept (`simhpc logs MODEL --attempt N`). A task that ran out of memory gets more of it, by
    [bold]retry.oom_memory_factor[/] in the profile, up to [bold]retry.max_mem_gb[/].

    [bold]Examples[/]

      simhpc retry --failed

      simhpc retry vit --run runs/demo

      simhpc retry --cancelled

      simhpc retry --failed --profile slurm/bigger.toml
    """
    from simhpc.cluster import control, ledger, scheduler
    from simhpc.cluster import submit as submission
    from simhpc.cluster.profile import load_profile
    from simhpc.cluster.status import OUT_OF_MEMORY

    if bool(models) + failed + cancelled != 1:
        raise SimhpcError(
            "name the models to retry, or give --failed or --cancelled: one of them (a run directory is named by --run)"
        )
    run = find_run(run_dir)
    chosen = control.chosen_models(run, models) if models else None
    profile = load_profile(profile_file) if profile_file is not None else None
    say = errors if as_json else output
    with ledger.locked(run.dir):
        found = submission.look_before_submitting(run)
        planned = control.plan_retry(
            run,
            found,
            models=chosen,
            profile=profile,
            max_array_size=scheduler.max_array_size(),
            is_cancelled_too=cancelled,
            is_contained=not no_container,
        )
        for task in planned.tasks:
            memory = planned.raised.get((task.model, task.stage))
            more = f", now with {memory:.3g} GiB" if memory else ""
            if task.reason.startswith(OUT_OF_MEMORY) and not memory and profile is None:
                more = ", with as much as before: a --profile can give more, or say retry.oom_memory_factor"
            say.print(
                f"again      {task.stage:<10} {name_of(task.model)}: {task.reason}{more}", markup=False, soft_wrap=True
            )
        if not submit_and_tell(run, planned.plans, as_json=as_json):
            n_cancelled = sum(task.state == "cancelled" for task in found.tasks)
            also = (
                f"; {n_cancelled} task(s) were cancelled: name their models, or give --cancelled" if n_cancelled else ""
            )
            say.print(f"nothing of that has failed{also}", soft_wrap=True)
