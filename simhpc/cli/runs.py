"""Which run a command is about, when nobody says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simhpc.errors import SimhpcError
from simhpc.rundir import Run, RunDir, open_run

RunOption = Annotated[
    Path | None,
    typer.Option(
        "--run", metavar="DIR", help="The run directory.", show_default="this folder, or the only one in runs/"
    ),
]


def find_run(root: Path | None) -> Run:
    """Open the run directory that was named, or that this folder is, or the only one in `runs/`.

    Raises:
        SimhpcError: none was named, and there is no single one to choose.
    """
    if root is not None:
        return open_run(root)
    if RunDir(Path()).study.exists():
        return open_run(Path())
    found = sorted(path.parent for path in Path("runs").glob("*/study.toml"))
    if len(found) == 1:
        return open_run(found[0])
    if not found:
        raise SimhpcError("there is no run directory here and none in runs/: name one")
    raise SimhpcError(f"there are several runs: name one of {', '.join(str(path) for path in found)}")
