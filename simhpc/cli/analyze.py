"""`simhpc analyze RUN`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from simhpc.cli.console import end_with, errors, output
from simhpc.errors import SimhpcError
from simhpc.rundir import RunDir, open_run


class _Encoding(StrEnum):
    same_different = "same-different"
    value_pairs = "value-pairs"


def analyze(
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run directory with a matrix.")] = None,
    similarity: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="In place of RUN: a square matrix with the models' names on both axes."),
    ] = None,
    components: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="One row per model, its name first, one column per component. For a RUN they are read from the "
            "architectures if this is not given.",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN2",
            help="Another run with the same models (by their keys), of another attack, say: are the matrices alike? "
            "Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for analysis/ and figures/; default: RUN, or beside the matrix, NAME-analysis.",
        ),
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(
            metavar="K|auto",
            help="Number of clusters; the paper has 10. auto: by the silhouette.",
            show_default="the study's, auto",
        ),
    ] = None,
    encoding: Annotated[
        _Encoding | None,
        typer.Option(
            help="What the regression is told of a pair: does it share the value, or which two values.",
            show_default="the study's, same-different",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of everything random in the analyses.", show_default="the study's, 0"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say what a similarity matrix means: which components make models alike, and which models form clusters. Offline.

    Tables go to analysis/, figures to figures/; docs/analyses.md explains every column. How is said by the study's
    section analysis, unless an option says otherwise. An analysis that cannot be done stops no other; the exit code is
    then 1.

    [bold]Examples[/]

      simhpc analyze runs/demo

      simhpc analyze runs/imagenet69 --clusters 10

      simhpc analyze runs/imagenet69 --against runs/imagenet69-eps4 --against runs/imagenet69-apgd

      simhpc analyze --similarity matrix.csv --components table.csv --out meaning

      simhpc analyze runs/demo --json | jq .importance.ranking
    """
    if (run_dir is None) == (similarity is None):
        raise SimhpcError("give either a run directory or --similarity, a matrix")
    if against and run_dir is None:
        raise SimhpcError("--against compares two run directories: give RUN, not --similarity")
    changes: dict[str, Any] = {}
    if clusters is not None:
        changes["clusters"] = _number_of_clusters(clusters)
    if encoding is not None:
        changes["encoding"] = encoding.value
    if seed is not None:
        changes["seed"] = seed
    from simhpc.offline import analyze as stage
    from simhpc.offline import inputs as analysis_inputs

    if run_dir is not None:
        run = open_run(run_dir)
        where = RunDir(out) if out is not None else run.dir
        others = [(str(path), open_run(path)) for path in against or ()]
        inputs = analysis_inputs.inputs_of_run(run, where, components, others)
    else:
        assert similarity is not None
        inputs = analysis_inputs.inputs_of_files(similarity, components)
        where = RunDir(out if out is not None else similarity.with_name(f"{similarity.stem}-analysis"))
    settings = inputs.run.study.analysis if inputs.run is not None else analysis_inputs.Settings()
    settings = settings.model_copy(update=changes)
    summary = stage.analyze(inputs, where, settings, lambda name: errors.print(f"{name} ...", style="dim"))
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        _show(summary)
    end_with(summary["problems"])


def _number_of_clusters(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 2:
        raise SimhpcError(f"--clusters must be 'auto' or a number from 2, not {text!r}")
    return int(text)


def _decimal(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _show(summary: dict[str, Any]) -> None:
    def line(text: str) -> None:
        output.print(text, markup=False, soft_wrap=True)

    for path in summary["files"]:
        line(path)
    if found := summary.get("importance"):
        first = ", ".join(found["ranking"][:3])
        line(f"importance: {first} first" if first else "importance: 0 of each")
        in_sample, one, both = (_decimal(found[key]) for key in ("r2_in_sample", "r2_held_out", "r2_both_held_out"))
        line(f"            R2 {in_sample} in sample, {one} with one model or both held out, {both} with both")
    if found := summary.get("clusters"):
        by = {"given": " as asked for", "silhouette": " by the silhouette", "nothing": ""}[found["chosen_by"]]
        p_value = _decimal(found["p_value"])
        line(f"clusters:   {found['n_clusters']}{by}, mean stability {found['mean_stability']:.2f}, p = {p_value}")
        for each in found["clusters"]:
            apart = f"  ({'; '.join(each['set_apart_by'][:3])})" if each["set_apart_by"] else ""
            line(f"  {each['cluster']:>3}  {', '.join(each['models'])}{apart}")
    if found := summary.get("strategies"):
        means = ", ".join(f"{kind} {_decimal(row['mean_sat'])}" for kind, row in found["kinds"].items())
        line(f"strategies: mean SAT of pairs that differ in {means}")
    if found := summary.get("reliability"):
        sure, unsure = (len(found[key]) for key in ("nearest_is_sure", "nearest_is_not_sure"))
        whole = _decimal(found["split_half"]["spearman"]["whole"])
        line(
            f"reliability: {whole} by halves of the images; the nearest is certain at 95 % of {sure} of {sure + unsure}"
        )
        for other in found["against"]:
            line(f"  against {other['run']}: rank correlation {_decimal(other['agreement']['spearman'])}")
            for difference in other["differences"]:
                line(f"    {difference}")
    if found := summary.get("ensembles"):
        of_size = {each["size"]: each for each in found["trends"] if _is_of(each, "mean_sat", "error_reduction")}
        for each in found["sizes"]:
            gain, trend = each["mean_error_reduction"], of_size[each["size"]]
            much = "unknown" if gain is None else f"{100 * gain:.1f} %"
            line(f"ensembles:  of {each['size']}: error reduction {much} on average, against mean SAT {_rho(trend)}")
    if found := summary.get("measures"):
        for each in found["correlations"]:
            if each["one"] == "sat":
                line(f"measures:   SAT against {each['other'].replace('_', ' ')} {_rho(each)}")
    for each in (summary.get("distillation") or {}).get("distillations", []):
        gain = next(gain for gain in each["gains"] if gain["group"] == "all")
        text = "unknown" if gain["mean"] is None else f"{100 * gain['mean']:+.1f} points"
        line(f"distillation {each['name']}: {each['n_students']} students of {each['n_teachers']} teachers, {text}")
        for of in each["correlations"]:
            if (of["group"], of["given"], of["method"]) == ("all", None, "spearman"):
                interval = "" if of["ci_low"] is None else f" [{of['ci_low']:.2f}, {of['ci_high']:.2f}]"
                line(f"  rank correlation with {of['property'].replace('_', ' ')}: {_decimal(of['r'])}{interval}")
    for note in summary["notes"]:
        line(f"note: {note}")


def _is_of(trend: dict[str, Any], predictor: str, outcome: str) -> bool:
    return bool((trend["predictor"], trend["outcome"]) == (predictor, outcome))


def _rho(found: dict[str, Any]) -> str:
    low, high = _decimal(found["ci_low"]), _decimal(found["ci_high"])
    return f"rank correlation {_decimal(found['rho'])} [{low}, {high}]"
