"""`simhpc analyze`: how alike models are that differ in initialisation, hyper-parameters, regime or architecture."""

from __future__ import annotations

import json

from simhpc.analysis import strategies as analysis
from simhpc.analysis.strategies import Origin
from simhpc.offline.inputs import Inputs, Outcome, Settings, made_from
from simhpc.report import strategies as strategies_report
from simhpc.report.figure import write_svg_and_png
from simhpc.report.tables import write_json
from simhpc.rundir import RunDir
from simhpc.study import Model, Study

_TRAINING_ARGS = {
    "drop_rate",
    "drop_path_rate",
    "drop_block_rate",
    "attn_drop_rate",
    "patch_drop_rate",
    "pos_drop_rate",
    "proj_drop_rate",
}
"""Arguments of timm's models that act while these are trained, and make no other network."""


def analyze_strategies(inputs: Inputs, out: RunDir, settings: Settings) -> Outcome:
    """Mean similarity by what models differ in: `strategies.csv`, `strategies.json` and the figure."""
    options = analysis.Settings(seed=settings.seed)
    study = inputs.run.study if inputs.run is not None else None
    is_declared = study is not None and bool(study.strategies)
    notes: list[str] = []
    if study is not None and is_declared:
        place = {name: position for position, name in enumerate(inputs.names)}
        groups = analysis.declared(
            [(s.name, s.differs, [place[key] for key in s.models if key in place]) for s in study.strategies],
            len(inputs.names),
        )
    else:
        groups, notes = analysis.derived(origins(inputs.names, study), inputs.names)
    found = analysis.strategies(inputs.sat, groups, options)
    result = {
        **made_from(inputs),
        **strategies_report.summary(found, groups, inputs.names, options, is_declared=is_declared),
    }
    result["notes"] = notes = [*notes, *found.notes]
    table, summary = out.analysis("strategies.csv"), out.analysis("strategies.json")
    svg, png = out.figure("strategies.svg"), out.figure("strategies.png")
    strategies_report.write_table(found, table)
    write_json(summary, result)
    write_svg_and_png(strategies_report.draw(found, groups, inputs.sat, title=inputs.title), svg, png)
    return Outcome([table, summary, svg, png], result, notes)


def origins(names: list[str], study: Study | None) -> list[Origin]:
    """What is known of each model: from the study's entries, else from names that are timm's `architecture.tag`."""
    if study is not None:
        return [origin_of(study.model(name), study.images.source) for name in names]
    found = []
    for name in names:
        architecture, _, tag = name.partition(".")
        found.append(Origin(architecture, architecture, f"tag {tag}", "", weights=name))
    return found


def origin_of(model: Model, image_source: str) -> Origin:
    """What a study's entry says of where a model comes from.

    Two entries that agree in everything are two initialisations, whose seeds are derived from the models' keys.

    Args:
        image_source: `images.source`, of which models are trained on what the image set leaves.
    """
    arguments = {name: value for name, value in model.args.items() if name in _TRAINING_ARGS}
    network = {name: value for name, value in model.args.items() if name not in _TRAINING_ARGS}
    name = model.timm or model.module or ""
    data = model.data.model_dump(mode="json")
    input_size_px = data.pop("input_size_px")
    regime: str | None
    weights: str | None = None
    recipe: dict[str, object] = {}
    if model.is_trained_here and model.training is not None:
        recipe = model.training.model_dump(mode="json")
        regime = f"trained on {recipe.pop('images', None) or f'the rest of {image_source}'}"
    elif model.is_random:
        regime = "random"
    elif model.is_pretrained:
        regime, weights = model.weights, model.weights
    else:
        # Somebody else's: nothing says how they were trained.
        regime, weights = None, model.checkpoint_sha256 or model.weights_sha256 or model.weights
    return Origin(
        name=name,
        architecture=_text([name, network, input_size_px]),
        regime=regime,
        hyper_parameters=_text([arguments, recipe, data]),
        weights=weights,
    )


def _text(data: object) -> str:
    return json.dumps(data, sort_keys=True)
