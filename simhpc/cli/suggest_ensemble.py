"""`simhpc suggest-ensemble RUN`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from simhpc.cli.console import end_with, output, tell
from simhpc.rundir import open_run

_NAMES = {
    "greedy": "greedy",
    "most_accurate": "the most accurate",
    "least_similar": "the least similar",
    "best_single": "best single model",
}


def suggest_ensemble(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory with a matrix.")],
    size: Annotated[int, typer.Option(metavar="K", help="Number of members, from 2.")] = 3,
    among: Annotated[
        str, typer.Option(metavar="KEY,KEY,...", help="Candidates.", show_default="all models of the run")
    ] = "",
    include: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A model that must be a member; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split of the images into halves.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Suggest models whose averaged probabilities are right most often, with an honest estimate of how often. Offline.

    Each rule chooses on one half of the images and is judged on the other, and the reverse: the accuracies are of
    images that no choice has seen. The members shown are chosen on all images. A candidate whose predictions are
    missing or damaged is left out; the exit code is then 1. docs/analyses.md says more.

    [bold]Examples[/]

      simhpc suggest-ensemble runs/demo

      simhpc suggest-ensemble runs/imagenet69 --size 5 --include resnet50

      simhpc suggest-ensemble runs/imagenet69 --size 2 --among deit_small,resnet50,swin_tiny

      simhpc suggest-ensemble runs/demo --json | jq .choices[0].members
    """
    from simhpc.offline import suggest_ensemble as stage

    candidates = [key.strip() for key in among.split(",") if key.strip()]
    run = open_run(run_dir)
    found = stage.suggest_ensemble(run, size, among=candidates, include=include or [], seed=seed)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    end_with(found["problems"])


def _show(found: dict[str, Any]) -> None:
    def line(text: str) -> None:
        output.print(text, markup=False, soft_wrap=True)

    line(
        f"{found['size']} of {len(found['candidates'])} models; accuracy on {found['n_images']} images, each answered "
        "by a choice that has not seen it (95 % interval)"
    )
    for choice in found["choices"]:
        accuracy = _interval(choice["accuracy"], choice["ci_low"], choice["ci_high"])
        line(f"{_NAMES[choice['rule']]:<19} {accuracy}   {', '.join(choice['members'])}")
    for choice in found["choices"][1:]:
        gain = _interval(choice["gain"], choice["gain_ci_low"], choice["gain_ci_high"], sign="+")
        better = "; take these instead" if choice["gain_ci_high"] < 0 else ""
        line(f"greedy gains {gain} points on {_NAMES[choice['rule']]}{better}")
    halves = found["choices"][0]["halves"]
    if {*halves[0]} != {*halves[1]}:
        line(f"the halves of the images chose differently: {' and '.join(', '.join(half) for half in halves)}")
    tell(found["notes"])


def _interval(value: float, low: float, high: float, sign: str = "") -> str:
    one, two, three = (format(100.0 * number, f"{sign}.1f") for number in (value, low, high))
    return f"{one} [{two}, {three}]" + ("" if sign else " %")
