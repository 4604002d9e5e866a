"""`simhpc models list`, `show` and `fetch`."""

from __future__ import annotations

import csv
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from simhpc.cli.console import duration, errors, output, scaled, size
from simhpc.errors import SimhpcError
from simhpc.study import Model, load_study

if TYPE_CHECKING:
    from simhpc.zoo.describe import Description
    from simhpc.zoo.staging import Staged

app = typer.Typer(
    help="The paper's 69 models, any other of timm, and their weights.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

_COLUMNS = ("name", "timm", "attack_size_px", "top1_percent", "params_millions", "license", "is_staged")


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")] = False,
) -> None:
    """List the paper's 69 models: whose weights they are today, and whether those are on this machine.

    Top-1 is in percent, on ImageNet's validation set. A star marks weights that are not the paper's own but the
    nearest that there are.

    [bold]Examples[/]

      simhpc models list

      simhpc models list --csv > models.csv

      simhpc models list --json | jq '.[] | select(.license != "apache-2.0") | .name'
    """
    from simhpc.zoo.registry import paper_models
    from simhpc.zoo.weights import is_staged

    if as_json and as_csv:
        raise SimhpcError("--json and --csv both say how the list is printed: give one of them")
    rows = [
        {**asdict(entry), "is_staged": is_staged(_entry(entry.name, entry.architecture, entry.tag))}
        for entry in paper_models()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if as_csv:
        writer = csv.DictWriter(sys.stdout, [*_COLUMNS, "is_substitute"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for name in ("model", "timm"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("size", "top-1", "params M"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("license", "staged"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        star = "*" if row["is_substitute"] else ""
        numbers = (f"{row['attack_size_px']}", f"{row['top1_percent']:.1f}", f"{row['params_millions']:.1f}")
        table.add_row(f"{row['name']}{star}", row["timm"], *numbers, row["license"], "yes" if row["is_staged"] else "")
    # In a file, nothing is cut.
    console = output if output.is_terminal else Console(file=output.file, width=200, highlight=False)
    console.print(table)
    output.print(f"{len(rows)} models, the weights of {sum(row['is_staged'] for row in rows)} on this machine")
    for row in rows:
        if row["is_substitute"]:
            output.print(f"* {row['name']}: {row['note']}", markup=False, soft_wrap=True)


@app.command()
def show(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="A name of the paper, or timm's NAME or NAME.TAG.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of everything as JSON.")] = False,
) -> None:
    """Show models: preprocessing, license, size, cost and tags. A name of the paper comes with the paper's weights.

    [bold]Examples[/]

      simhpc models show convnext_tiny

      simhpc models show convnext_tiny.fb_in22k_ft_in1k resnet18

      simhpc models show gluon_xception65 --json | jq '.[0].paper.note'
    """
    from simhpc.zoo.describe import describe

    found = [describe(name) for name in names]
    if as_json:
        print(json.dumps([asdict(each) | {"data": each.data.model_dump(mode="json")} for each in found], indent=1))
        return
    for number, each in enumerate(found):
        if number:
            output.print()
        for key, value in _lines(each):
            output.print(f"{key:<10} {value}", markup=False, soft_wrap=True)


@app.command()
def fetch(
    study_file: Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (TOML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON at the end.")] = False,
) -> None:
    """Bring all pretrained weights of a study to this machine, and check them: for compute nodes without network.

    They go where timm looks for them (HF_HOME, TORCH_HOME). What is here already is checked, and fetched again if it
    is damaged, so the same command again goes on. Each file must have its publisher's checksum and fit the model. The
    exit code is 1 when weights are missing at the end.

    [bold]Examples[/]

      simhpc models fetch jobs/imagenet69.toml

      HF_HOME=/scratch/me/huggingface simhpc models fetch jobs/imagenet69.toml
    """
    study = load_study(study_file)
    wanted = [model for model in study.models if model.is_pretrained]
    from simhpc.zoo.registry import substitution
    from simhpc.zoo.staging import fetch_all, node_environment

    console = errors if as_json else output
    started_s = time.monotonic()
    fetched: list[dict[str, Any]] = []
    status = console.status("")

    def report(done: int, total: int) -> None:
        model = wanted[len(fetched)]
        status.update(f"{model.key} ({len(fetched) + 1} of {len(wanted)}): {size(done)} of {size(total)}")

    # In a file, only what has been finished is told.
    with status if console.is_terminal else nullcontext():
        for model, outcome in fetch_all(wanted, report):
            fetched.append(_as_json(model, outcome))
            console.print(f"{model.key:<28} {_describe(outcome)}", markup=False, soft_wrap=True)
            if note := substitution(model):
                console.print(f"  note: {note}", markup=False, soft_wrap=True)
    missing = [each for each in fetched if each["error"]]
    environment = node_environment(wanted) if wanted else {}
    if as_json:
        summary = {
            "study": str(study_file),
            "models": fetched,
            "missing": [each["model"] for each in missing],
            "environment": environment,
        }
        print(json.dumps(summary, indent=1))
    else:
        _print_end(fetched, missing, environment, time.monotonic() - started_s)
    if missing:
        raise typer.Exit(1)


def _print_end(
    fetched: list[dict[str, Any]], missing: list[dict[str, Any]], environment: dict[str, str], elapsed_s: float
) -> None:
    if not fetched:
        output.print("the study has no pretrained models: there is nothing to fetch")
        return
    text = f"{len(fetched) - len(missing)} of {len(fetched)} models' weights are here and checked"
    output.print(
        f"{text}, {size(sum(each['size_bytes'] for each in fetched))}, in {duration(elapsed_s)}", soft_wrap=True
    )
    for each in missing:
        output.print(f"missing: {each['model']} ({each['timm']})", markup=False, soft_wrap=True)
    output.print("compute nodes need these variables (tasks in a container are given them):")
    for name, value in environment.items():
        output.print(f"  export {name}={value}", markup=False, soft_wrap=True)


def _as_json(model: Model, outcome: Staged | SimhpcError) -> dict[str, Any]:
    entry: dict[str, Any] = {"model": model.key, "timm": model.timm_name}
    if isinstance(outcome, SimhpcError):
        return {**entry, "path": None, "size_bytes": 0, "checksum": "", "how": "", "damage": "", "error": str(outcome)}
    return {**entry, **asdict(outcome), "path": str(outcome.path), "error": ""}


def _describe(outcome: Staged | SimhpcError) -> str:
    if isinstance(outcome, SimhpcError):
        return f"FAILED: {outcome}"
    checked = outcome.checksum[:19] + "…" if outcome.checksum else "it fits; no checksum is known here"
    damage = f"  ({outcome.damage})" if outcome.damage else ""
    return f"{outcome.how:<13} {size(outcome.size_bytes):>9}  {checked}{damage}"


def _entry(key: str, architecture: str, tag: str) -> Model:
    return Model(key=key, timm=architecture, weights=f"pretrained:{tag}")


def _lines(found: Description) -> list[tuple[str, str]]:
    """What `show` prints of one model."""
    paper, data, cost = found.paper, found.data, found.cost
    lines = [(found.name, found.timm)]
    if paper is not None:
        lines.append(("paper", f"{paper.name}, attacked at {paper.attack_size_px} px"))
        lines.append(("top-1", f"{paper.top1_percent:g} % ({paper.top1_source})"))
        if paper.note:
            lines.append(("note", paper.note))
    tags = ", ".join(found.tags) or "none: timm has no weights"
    lines += [
        ("tags", tags),
        ("default", f"{found.default_tag or 'none'}{_differs(found)}"),
        ("license", f"{found.license} (of the weights, as timm states it)"),
        ("staged", "yes" if found.is_staged else "no"),
        ("input", f"{data.input_size_px} px, crop_pct {data.crop_pct:g}, {data.interpolation}"),
    ]
    if found.test_size_px is not None:
        lines.append(("", f"timm measures accuracy at {found.test_size_px} px"))
    means, stds = (", ".join(f"{value:g}" for value in values or ()) for values in (data.mean, data.std))
    lines += [
        ("pixels", f"mean {means}; std {stds}"),
        ("size", f"{scaled(cost.parameters, 'parameters')}, {size(cost.weight_bytes)}, {_outputs(found)}"),
        ("cost", f"{scaled(cost.forward_flops, 'FLOP')} forward, {scaled(cost.gradient_flops, 'FLOP')} with gradient"),
    ]
    return lines


def _outputs(found: Description) -> str:
    return f"{found.classes} outputs" if found.classes else "no head: it gives features and no classes"


def _differs(found: Description) -> str:
    tag = found.timm.partition(".")[2]
    return f" (timm's own today; not {tag})" if tag != found.default_tag else ""
