"""What the resolution policy (`attack.grid`) does to SAT, on a small zoo of different input sizes.

    python -m benchmarks.resolution [--quick]

Two architectures are trained at 24, 32 and 40 pixels each on scikit-learn's digits, stored at 48 pixels; the same
weights are then attacked and evaluated on both grids. `native`: each model's own input is attacked, and resized for
others. `canonical`: the stored pixels are attacked, with the resize inside each model. Intervals are percentiles of
2,000 resamples of the images, the same ones for both grids. Takes minutes on one thread; docs/method.md, section 3, has
the figures. They are printed, and kept in benchmarks/out/resolution.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

# First: timm, and with it torchvision, must be imported our way (its docstring says why).
import simhpc.zoo.timm_import  # noqa: F401  # isort: skip

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from sklearn.datasets import load_digits

from benchmarks import machine
from benchmarks.victims import execute
from simhpc.rundir import Run
from simhpc.stages.prepare import prepare
from simhpc.store import predictions
from simhpc.store.predictions import NOT_SHOWN
from simhpc.study import parse_study

Grid = Literal["native", "canonical"]
Floats = NDArray[np.float64]

OUT = Path(__file__).parent / "out" / "resolution.json"

STORED_PX = 48
SIZES_PX = (24, 32, 40)
CROP_PCT = 0.875
"""As most of timm's models have: with it no input agrees with the stored pixels, on any grid."""

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "resnet": {
        "timm": "resnet18",
        "args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 96], "stem_width": 16},
    },
    "efficientnet": {"timm": "test_efficientnet", "args": {}},
}
_RESAMPLES = 2000


@dataclass(frozen=True)
class Answers:
    """Per-image outcomes on one grid.

    Attributes:
        correct: bool (M, N), clean.
        fooled: bool (M, M, N): image n, attacked against the first, was shown to the second and fooled it.
    """

    correct: NDArray[np.bool_]
    fooled: NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A figure, and between what it lies in 95 % of the resamples."""

    value: float
    low: float
    high: float


def sat(answers: Answers, weights: Floats, floor_percent: float) -> Floats:
    """SAT of all ordered pairs when image n counts weights[r, n] times: (R, M, M)."""
    common = answers.correct[:, None] & answers.correct
    shown = np.einsum("abn,rn->rab", common, weights)
    rate = np.einsum("abn,rn->rab", answers.fooled & common, weights) / shown
    return np.asarray(np.log(np.maximum(floor_percent, 50.0 * (rate + rate.transpose(0, 2, 1)))))


def compare(
    native: Answers, canonical: Answers, sides: list[int], floor_percent: float, seed: int = 0
) -> dict[str, Any]:
    """Figures of the pairs of different models, each with its interval.

    Args:
        sides: input size of each model, in pixels.

    Returns:
        `mean_native`, `mean_canonical`: mean SAT; `mean_difference`: canonical minus native, and the same of pairs of
        `equal` and of `different` sizes; `spearman`: rank correlation of the two grids; `pairs`, and how many of them
        have a difference whose interval excludes zero; `largest_difference`.
    """
    n = native.correct.shape[1]
    resampled = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
    # The images as they are come first.
    weights = np.concatenate([np.ones((1, n)), resampled])
    upper = np.triu_indices(len(sides), 1)
    values = [sat(answers, weights, floor_percent)[:, *upper] for answers in (native, canonical)]
    difference = values[1] - values[0]
    is_equal = np.array(sides)[upper[0]] == np.array(sides)[upper[1]]
    low, high = np.percentile(difference[1:], (2.5, 97.5), axis=0)
    return {
        "mean_native": asdict(_interval(values[0].mean(1))),
        "mean_canonical": asdict(_interval(values[1].mean(1))),
        "mean_difference": asdict(_interval(difference.mean(1))),
        "mean_difference_equal_sizes": asdict(_interval(difference[:, is_equal].mean(1))),
        "mean_difference_different_sizes": asdict(_interval(difference[:, ~is_equal].mean(1))),
        "spearman": asdict(_interval(_spearman(*values))),
        "pairs": len(is_equal),
        "pairs_that_differ": int(((low > 0) | (high < 0)).sum()),
        "largest_difference": float(np.abs(difference[0]).max()),
    }


def _interval(values: Floats) -> Interval:
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))


def _spearman(one: Floats, two: Floats) -> Floats:
    """Rank correlation along the last axis: (R, P), (R, P) to (R,)."""
    a, b = (rankdata(values, axis=-1) for values in (one, two))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    return np.asarray((a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1)))


def write_digits(root: Path) -> None:
    """All digits, enlarged to `STORED_PX`, as class folders of PNGs."""
    bunch = load_digits()
    for position, (grey, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        small = Image.fromarray(np.rint(grey * (255.0 / 16.0)).astype(np.uint8))
        path = root / str(label) / f"{position:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((STORED_PX, STORED_PX), Image.Resampling.BICUBIC).save(path)


def run_of(root: Path, images: Path, grid: Grid, trained: Run | None, *, quick: bool) -> Run:
    """A prepared run: of models to be trained, or of the same weights on a grid."""
    raw: dict[str, Any] = {
        "name": f"resolution-{grid}",
        "images": {"source": f"folder:{images}", "n": 120 if quick else 300, "size_px": STORED_PX},
        "attack": {"eps_255": 32, "steps": 2 if quick else 30, "grid": grid},
        "resources": {"device": "cpu", "threads_per_task": 1},
        "models": [],
    }
    sizes_px = SIZES_PX[:2] if quick else SIZES_PX
    for name, architecture in ARCHITECTURES.items():
        for side in sizes_px:
            model = {"key": f"{name}-{side}", **architecture, "data": {"input_size_px": side, "crop_pct": CROP_PCT}}
            if trained is None:
                training = {"epochs": 3 if quick else 10, "lr": 2e-3, "hflip_prob": 0.0}
                model |= {"weights": "train", "training": training}
            else:
                model["weights"] = f"checkpoint:{trained.dir.checkpoint(f'{name}-{side}')}"
                model["args"] = {**architecture["args"], "num_classes": 10}
            raw["models"].append(model)
    return prepare(parse_study(raw, base=root, where="benchmark"), root)


def answers_of(run: Run) -> Answers:
    """What the prediction files of a finished run say."""
    keys = [model.key for model in run.study.models]
    found = [predictions.load(run.dir.predictions(key)) for key in keys]
    correct = np.stack([held.clean_pred == held.labels for held in found])
    rows = [[held.sources.index(key) for held in found] for key in keys]
    shown = np.stack([[held.adv_pred[row[b]] for b, held in enumerate(found)] for row in rows])
    return Answers(correct, (shown != found[0].labels) & (shown != NOT_SHOWN))


def measure(scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Train once, run both grids, compare."""
    write_digits(scratch / "images")
    trained = run_of(scratch / "trained", scratch / "images", "native", None, quick=quick)
    execute(trained, "train")
    answers = {}
    for grid in get_args(Grid):
        run = run_of(scratch / grid, scratch / "images", grid, trained, quick=quick)
        for stage in ("attack", "evaluate"):
            execute(run, stage)
        answers[grid] = answers_of(run)
    native, canonical = answers["native"], answers["canonical"]
    sides = [model.data.input_size_px or 0 for model in trained.study.models]
    floor_percent = trained.study.similarity.floor_percent

    def self_fooling(held: Answers) -> float:
        return 100.0 * float(np.mean([held.fooled[k, k].sum() / held.correct[k].sum() for k in range(len(sides))]))

    return {
        "models": [model.key for model in trained.study.models],
        "images": trained.study.images.n,
        "accuracy_percent": {grid: 100.0 * float(held.correct.mean()) for grid, held in answers.items()},
        "self_fooling_percent": {grid: self_fooling(held) for grid, held in answers.items()},
        "clean_answers_that_differ": int((native.correct != canonical.correct).sum()),
        **compare(native, canonical, sides, floor_percent),
    }


def main() -> None:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shows that it runs; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    facts, started_s = machine.facts(1, torch.device("cpu")), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch).resolve(), quick=given.quick)
    found |= {"cpu_s": time.process_time() - started_s, "machine": facts}
    print(json.dumps(found, indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
