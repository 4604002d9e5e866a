"""`simhpc report RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from simhpc.cli.console import errors, output
from simhpc.errors import SimhpcError
from simhpc.rundir import open_run


def report(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run directory with a matrix.")] = None,
    similarity: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="In place of RUN: a matrix that `simhpc analyze --similarity` has analysed."),
    ] = None,
    analysis: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where that has written to; default: beside the matrix, NAME-analysis."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; default: report.html in RUN or DIR.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON what the page shows and what not.")] = False,
) -> None:
    """Write one HTML page about a run: matrix, clusters, every analysis, attacked images, provenance, tables. Offline.

    It is one file that needs no network and no other file: open it from disk, send it to others. Analyses that were not
    made of this very matrix are not shown, and the page says what makes them.

    [bold]Examples[/]

      simhpc report runs/demo

      simhpc report runs/imagenet69 --out similarity-of-69-models.html

      simhpc report --similarity matrix.csv
    """
    if (run_dir is None) == (similarity is None):
        raise SimhpcError("give either a run directory or --similarity, a matrix")
    if run_dir is not None and analysis is not None:
        raise SimhpcError("--analysis goes with --similarity: the analyses of a run lie in the run directory")
    from simhpc.offline import report as stage

    if run_dir is not None:
        run = open_run(run_dir)
        made = stage.write(run, out or run.dir.report)
    else:
        assert similarity is not None
        analyses = analysis or similarity.with_name(f"{similarity.stem}-analysis")
        made = stage.write_of_files(similarity, analyses, out or analyses / "report.html")
    if as_json:
        print(json.dumps(made, indent=1))
        return
    output.print(f"{made['file']} ({made['bytes'] / 1e6:.1f} MB)", markup=False, soft_wrap=True)
    for name, state in made["sections"].items():
        if state != "shown":
            errors.print(f"note: {name}: {state}", markup=False, soft_wrap=True)
    for problem in made["problems"]:
        errors.print(f"note: the matrix is incomplete: {problem}", markup=False, soft_wrap=True)
