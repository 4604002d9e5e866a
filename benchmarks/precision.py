"""Part `precision`: whether SAT is the same when models compute in less than single precision.

A trained zoo of five kinds from jobs/demo.toml, attacked and evaluated once in float32 and once in each other precision
that the device has; the weights are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.victims import execute
from simhpc.rundir import Run
from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, similarity
from simhpc.store.similarity import SimilarityMatrix
from simhpc.study import Study, load_study, parse_study

STUDY = Path(__file__).parents[1] / "jobs" / "demo.toml"

MODELS = ("mixer", "resnet", "efficientnet", "convnext", "vit")


def measure(options: Options, scratch: Path) -> Part:
    """The zoo in each precision, against float32 with its confidence intervals."""
    others = ("bfloat16",) if options.device.type == "cpu" else ("tf32", "bfloat16")
    # All are trained here, to the same weights on every device.
    trained = prepare(_study("float32", None, options), scratch / "trained")
    execute(trained, "train")
    part = Part(facts={"models": len(trained.study.models), "images": trained.study.images.n})
    found = {}
    for precision in ("float32", *others):
        run = prepare(_study(precision, trained, options), scratch / precision)
        for stage in ("attack", "evaluate", "aggregate"):
            execute(run, stage)
        found[precision] = similarity.load(run.dir.similarity)
        fooled = [_self_fooling(run, model.key) for model in run.study.models]
        part.measures.append(Measure("self_fooling_by_precision", "%", precision, {OURS: fooled}))
    for precision in others:
        differences, outside = compare(found["float32"], found[precision])
        part.facts[f"{precision}: largest difference of SAT"] = float(differences.max())
        part.facts[f"{precision}: median difference of SAT"] = float(np.median(differences))
        part.checks.append(
            Check(
                f"SAT in {precision} is within the confidence interval of SAT in float32",
                outside == 0,
                f"{outside} of {len(differences)} pairs are outside",
            )
        )
    return part


def compare(single: SimilarityMatrix, other: SimilarityMatrix) -> tuple[np.ndarray[Any, Any], int]:
    """Absolute differences of SAT over the pairs of different models, and how many leave the interval of `single`."""
    pairs = np.triu_indices(len(single.models), 1)
    values, low, high = other.sat[pairs], single.ci_low[pairs], single.ci_high[pairs]
    return np.abs(values - single.sat[pairs]), int(((values < low) | (values > high)).sum())


def _study(precision: str, trained: Run | None, options: Options) -> Study:
    whole = load_study(STUDY)
    raw = whole.model_dump(mode="json", exclude_none=True)
    raw["precision"] = precision
    raw["resources"] = {"device": options.device.type, "threads_per_task": options.threads}
    raw["models"] = [model for model in raw["models"] if model["key"] in MODELS]
    if options.quick:
        raw["images"]["n"], raw["models"], raw["attack"]["steps"] = 40, raw["models"][1:3], 2
    for model in raw["models"]:
        if options.quick:
            model["training"]["epochs"] = 1
        if trained is not None:
            del model["training"]
            model["weights"] = f"checkpoint:{trained.dir.checkpoint(model['key'])}"
            model["args"] = {**model["args"], "num_classes": 10}
    del raw["training"]
    return parse_study(raw, base=STUDY.parent, where="benchmark")


def _self_fooling(run: Run, key: str) -> float:
    header = adversarial.header(run.dir.adversarial(key))
    return 100.0 * header.n_fooled / header.n_attacked
