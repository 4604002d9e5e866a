"""`simhpc doctor --profile FILE`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from simhpc.cli.console import errors, output
from simhpc.cli.submit import NoContainer

if TYPE_CHECKING:
    from simhpc.cluster.checks import Check

_COLOURS = {"ok": "green", "warning": "yellow", "FAILED": "bold red"}


def doctor(
    profile_file: Annotated[
        Path, typer.Option("--profile", metavar="FILE", help="The cluster profile (TOML); examples in slurm/.")
    ],
    root: Annotated[
        Path, typer.Option("--dir", metavar="RUNDIR", help="A run directory, or where one will be; it is not made.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    no_container: NoContainer = False,
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Run no trial job on a compute node.")] = False,
) -> None:
    """Check that a cluster can run a profile, before a study is submitted to it.

    Looks at Slurm's programs, its limits and what the profile asks for, at the run directory's disk, and, with a
    small job on a compute node, at what tasks will find there: with a container in the profile, inside its image.
    The job attacks a small model, on the CPU and on every GPU that it sees. Nothing stays behind.

    The exit code is 1 when something [bold]FAILED[/]; a warning is something to know.

    [bold]Examples[/]

      simhpc doctor --profile slurm/devcluster.toml

      simhpc doctor --profile slurm/gpu-cluster.toml --dir /scratch/me/runs

      simhpc doctor --profile slurm/gpu-cluster.toml --no-probe --json
    """
    from simhpc.cluster.checks import FAILED, WARNING
    from simhpc.cluster.doctor import examine
    from simhpc.cluster.profile import load_profile
    from simhpc.cluster.trial import WAIT_S

    profile = load_profile(profile_file)
    if no_container:
        profile = profile.model_copy(update={"container": None})
    if not no_probe:
        text = f"a trial job is run at the end; it may wait {WAIT_S:.0f} s for a node, --no-probe leaves it out"
        errors.print(text, soft_wrap=True)
    checks = []
    for check in examine(profile, str(profile_file), root, probe=not no_probe):
        checks.append(check)
        if not as_json:
            _print(check)
    n_failed, n_warnings = (sum(check.level == level for check in checks) for level in (FAILED, WARNING))
    if as_json:
        data = {"profile": str(profile_file), "dir": str(root.resolve()), "ok": not n_failed}
        print(json.dumps({**data, "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        output.print(f"{len(checks)} checks, {n_warnings} warning(s), {n_failed} FAILED", highlight=False)
    if n_failed:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    line = Text.assemble((f"{check.level:<8} ", _COLOURS[check.level]), f"{check.name}: {check.found}")
    output.print(line, soft_wrap=True)
    if check.advice:
        output.print(Text(f"{'':<8} → {check.advice}"), soft_wrap=True)
