"""`simhpc verify RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simhpc.cli.console import errors, output


def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Read all data, compare the files with each other, compute the matrix again."),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Remove what is damaged and can be made again from what is whole; asks first."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --repair: do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at every file of a run: is it whole, and does it belong here? One line per finding; the exit code is then 1.

    Without --deep: headers, what files say of their making, and what each has to agree with. With it, every byte.
    Files that are none of simhpc's are named and never removed.

    [bold]Examples[/]

      simhpc verify runs/demo

      simhpc verify runs/demo --deep --json | jq .findings

      simhpc verify runs/demo --deep --repair && simhpc run jobs/demo.toml
    """
    from simhpc.offline import verify as stage

    where, found = stage.verify_root(run_dir, deep=deep)
    removable = list(dict.fromkeys(finding.file for finding in found.findings if finding.is_removable))
    if not as_json:
        for finding in found.findings:
            output.print(f"{finding.file}: {finding.what}; {finding.todo}", markup=False, soft_wrap=True)
        for note in found.notes:
            errors.print(f"note: {note}", markup=False, soft_wrap=True)
        output.print(f"{found.n_files} files looked at, {len(found.findings)} finding(s)")
    removed: list[str] = []
    if repair and removable:
        errors.print("to be removed:", *removable, sep="\n  ", markup=False, soft_wrap=True)
        if yes or typer.confirm("Remove these files?", err=True):
            removed = stage.repair(where, found.findings)
            errors.print(f"removed {len(removed)} file(s); the same `simhpc run` or `submit` again makes them anew")
    if as_json:
        findings = [
            {"file": f.file, "what": f.what, "todo": f.todo, "is_removable": f.is_removable} for f in found.findings
        ]
        summary = {"files": found.n_files, "findings": findings, "notes": found.notes, "removed": removed}
        print(json.dumps(summary, indent=1))
    if found.findings:
        raise typer.Exit(1)
