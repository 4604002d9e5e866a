"""Part `scaling`: what one model's tasks cost in studies of more and more models.

An attack knows one model, so its cost must not depend on how many there are; an evaluation shows one model all
adversarial sets, so its cost must grow linearly.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measures import OURS, Measure, Part
from benchmarks.options import Options
from benchmarks.victims import digits_run, execute

PLOT = "scaling.png"

STUDIES = (4, 8, 16)

_STEPS = 5


def measure(options: Options, scratch: Path) -> Part:
    """CPU seconds of each task of each study, in this process, one thread."""
    sizes, n, epochs = ((2, 3), 40, 1) if options.quick else (STUDIES, 300, 3)
    keys = [f"model-{number:02d}" for number in range(max(sizes))]
    part = Part(facts={"images": n, "steps": _STEPS})
    largest = digits_run(scratch / f"{len(keys)}-models", keys, n, epochs=epochs, steps=_STEPS)
    execute(largest, "train")
    cost_s: dict[str, dict[int, list[float]]] = {"attack": {}, "evaluate": {}}
    for size in sorted(sizes, reverse=True):
        run = digits_run(scratch / f"{size}-models", keys[:size], n, epochs=epochs, steps=_STEPS)
        for key in keys[:size]:
            if run.dir.root != largest.dir.root:
                run.dir.checkpoint(key).parent.mkdir(exist_ok=True)
                shutil.copy(largest.dir.checkpoint(key), run.dir.checkpoint(key))
        for stage, by_size in cost_s.items():
            by_size[size] = []
            execute(run, stage, keys[0])  # not counted: the first task of a process pays for what is loaded once
            # From nothing: a source that is covered is not shown again.
            run.dir.predictions(keys[0]).unlink(missing_ok=True)
            for key in keys[:size]:
                started_s = time.process_time()
                execute(run, stage, key)
                by_size[size].append(time.process_time() - started_s)
    for stage, by_size in cost_s.items():
        part.measures.extend(
            Measure(f"{stage}_cost", "CPU s per model", f"{size} models", {OURS: values})
            for size, values in sorted(by_size.items())
        )
    part.facts.update(_law(cost_s))
    return part


def _law(cost_s: dict[str, dict[int, list[float]]]) -> dict[str, float]:
    """How the medians depend on the number of models."""
    sizes = sorted(cost_s["attack"])
    attack, evaluate = ([statistics.median(cost_s[stage][size]) for size in sizes] for stage in ("attack", "evaluate"))
    slope, intercept, r2 = line(sizes, evaluate)
    return {
        f"attack cost, {sizes[-1]} models / {sizes[0]} models": attack[-1] / attack[0],
        "evaluation: CPU s per model and source": slope,
        "evaluation: CPU s per model besides": intercept,
        "evaluation: R² of the straight line": r2,
    }


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least-squares straight line: slope, intercept and R²."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.asarray(y) - (slope * np.asarray(x) + intercept)
    total = np.asarray(y) - np.mean(y)
    return float(slope), float(intercept), float(1.0 - (residual @ residual) / (total @ total))


def plot(part: Part, path: Path) -> None:
    """Cost per model over the number of models, with every task as a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, stage in zip(figure.subplots(1, 2), ("attack", "evaluate"), strict=True):
        found = {int(m.model.split()[0]): m.values[OURS] for m in part.measures if m.name == f"{stage}_cost"}
        for size, values in found.items():
            axes.plot([size] * len(values), values, "o", color="tab:blue", alpha=0.35, markersize=4)
        medians = [statistics.median(values) for values in found.values()]
        if stage == "attack":
            axes.axhline(statistics.mean(medians), color="tab:orange", label="constant")
        else:
            slope, intercept, _ = line(list(found), medians)
            ends = np.array([0.0, max(found)])
            axes.plot(ends, slope * ends + intercept, color="tab:orange", label="straight line through the medians")
        axes.set(title=stage, xlabel="models in the study", ylabel="CPU seconds per model", xticks=list(found))
        axes.set_ylim(bottom=0.0)
        axes.set_xlim(left=0.0)
        axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
