"""`simhpc`: the commands, and what every one of them does with errors.

Exit codes: 0 all went well; 1 some of the work failed or is incomplete; 2 bad input, nothing was done;
130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.markup import escape

from simhpc import __version__
from simhpc.cli import (
    aggregate,
    analyze,
    cancel,
    components,
    doctor,
    logs,
    models,
    plan,
    report,
    retry,
    run,
    status,
    submit,
    suggest_ensemble,
    suggest_teacher,
    validate,
    verify,
)
from simhpc.cli.console import errors
from simhpc.errors import SimhpcError
from simhpc.store.atomic import never_writable_for_all

app = typer.Typer(
    help="How alike are your image classifiers? Attack each, show the result to all, compare.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("validate")(validate.validate)
app.command("components")(components.components)
app.command("plan")(plan.plan)
app.add_typer(models.app, name="models")
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)
app.command("submit")(submit.submit)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("cancel")(cancel.cancel)
app.command("retry")(retry.retry)
app.command("aggregate")(aggregate.aggregate)
app.command("verify")(verify.verify)
app.command("analyze")(analyze.analyze)
app.command("suggest-ensemble")(suggest_ensemble.suggest_ensemble)
app.command("suggest-teacher")(suggest_teacher.suggest_teacher)
app.command("report")(report.report)

_debug = False


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"simhpc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show Python tracebacks for bad input too.")] = False,
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of all commands."""
    global _debug
    _debug = debug


def main() -> None:
    """Entry point of the `simhpc` program."""
    never_writable_for_all()
    try:
        app()
    except (SimhpcError, OSError) as error:  # OSError: no permission, no space, too many open files
        if _debug:
            raise
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{error.filename}: {error.strerror}"
        errors.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True)
        sys.exit(2)
