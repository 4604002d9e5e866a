"""What the matrix costs: `simhpc aggregate` on synthetic predictions of many models, as a process of its own.

    .venv/bin/python benchmarks/aggregation.py [--models 69] [--images 5000] [--folder DIR]

Writes a run directory in the format of every run (accuracies of 60 to 85 %, fooling that depends on image, source,
target and kinship), aggregates it, prints wall and CPU seconds, the phases and the peak memory, and keeps them in
benchmarks/out/aggregation.json. The run directory is deleted afterwards: 1,000 models x 5,000 images are 30 GB, made in
minutes. Start and imports are everything until the work begins, Python's own start included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from simhpc.rundir import RunDir
from simhpc.store.predictions import NOT_SHOWN, PredictionSet
from simhpc.store.provenance import Provenance
from simhpc.study import Study, dump_study, parse_study

CLASSES = 1000
FAMILIES = 12
OUT = Path(__file__).parent / "out" / "aggregation.json"

# The measured process: the program itself, with a clock around its phases and all imports done beforehand.
PROGRAM = """
import json, sys, time
started_s, report, run_dir = float(sys.argv[1]), sys.argv[2], sys.argv[3]
import scipy.cluster.hierarchy, scipy.spatial.distance
from simhpc.analysis import similarity as analysis
from simhpc.cli import app
from simhpc.report import heatmap, tables
from simhpc.stages import aggregate as stage
from simhpc.store.similarity import SimilarityMatrix
seconds = {"start and imports": time.monotonic() - started_s}

def timed(name, owner, function):
    original = getattr(owner, function)
    def clocked(*args, **kwargs):
        before_s = time.monotonic()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - before_s
    setattr(owner, function, clocked)

timed("reading and checks", stage, "gather")
timed("counts", analysis, "count_pairs")
timed("intervals", analysis, "bootstrap_intervals")
for table in ("write_similarity", "write_pairs", "write_models"):
    timed("tables", tables, table)
timed("heatmap", heatmap, "write")
timed("similarity.h5", SimilarityMatrix, "save")
sys.argv = ["simhpc", "aggregate", run_dir, "--json"]
before_s = time.monotonic()
try:
    app.main()
finally:
    named = sum(seconds.values()) - seconds["start and imports"]
    seconds["other (study, identity of inputs)"] = time.monotonic() - before_s - named
    open(report, "w").write(json.dumps(seconds))
"""


def study_of(models: int, images: int) -> Study:
    """A study of models that only predictions exist of."""
    raw = {
        "name": f"synthetic-{models}",
        "images": {"source": "folder:images", "n": images, "size_px": 256},
        "models": [
            {"key": f"model-{k:04d}", "timm": "resnet50", "weights": f"pretrained:tag{k:04d}"} for k in range(models)
        ],
    }
    return parse_study(raw, base=Path("/synthetic"), where="synthetic")


class Synthetic:
    """Answers of models that differ in accuracy, robustness and family."""

    def __init__(self, models: int, images: int) -> None:
        random = np.random.default_rng(0)
        self.labels = random.integers(0, CLASSES, images).astype(np.int32)
        difficulty = random.standard_normal(images)
        own = random.standard_normal((models, images))
        accuracy = random.uniform(0.60, 0.85, models)
        ease = -0.8 * difficulty + 0.6 * own
        self.correct = ease > np.quantile(ease, 1 - accuracy, axis=1).diagonal()[:, None]
        self.family = random.integers(0, FAMILIES, models)
        self.strength = random.normal(-1.6, 0.3, models).astype(np.float32)
        self.weakness = random.normal(0.0, 0.3, models).astype(np.float32)
        self.shared = (0.7 * difficulty + 0.3 * own).astype(np.float32)

    def answers_of(self, b: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Predictions int32 (M, N) and margins float16 (M, N) of model b on all attacked images."""
        random = np.random.default_rng([1, b])
        kinship = np.where(self.family == self.family[b], 1.0, 0.0).astype(np.float32)
        kinship[b] = 5.0
        pull = self.shared + (self.strength + self.weakness[b] + kinship)[:, None]
        fooled = pull + 0.7 * random.standard_normal(pull.shape, dtype=np.float32) > 0
        shown = self.correct & self.correct[b]
        wrong = (self.labels + 1 + random.integers(0, CLASSES - 1, len(self.labels), dtype=np.int32)) % CLASSES
        pred = np.where(shown, np.where(fooled, wrong, self.labels), np.int32(NOT_SHOWN))
        return pred, np.where(shown, -pull, np.nan).astype(np.float16)


def write_predictions(root: Path, study: Study, b: int) -> None:
    """The predictions file of model b, through the program's own writer."""
    synthetic, model = _synthetic(len(study.models), study.images.n), study.models[b]
    pred, margin = synthetic.answers_of(b)
    PredictionSet(
        provenance=Provenance(
            model=model.key,
            timm_name=model.timm_name,
            model_sha256=model.sha256(),
            weights_sha256="0" * 64,
            study_sha256=study.settings_sha256(),
            images_sha256="0" * 64,
            attack=study.attack.model_dump_json(),
            attack_code_sha256="0" * 64,
            batch_size=1,
            seed=study.seed,
            precision="float32",
            engine="synthetic",
            device="cpu",
            threads=1,
            torch="synthetic",
            timm="synthetic",
            container="none",
        ),
        labels=synthetic.labels,
        clean_pred=np.where(synthetic.correct[b], synthetic.labels, (synthetic.labels + 1) % CLASSES).astype(np.int32),
        clean_margin=np.zeros(study.images.n, dtype=np.float16),
        # Aggregation does not read them; of all classes they would be 10 GB for 1,000 models.
        clean_probabilities=np.zeros((study.images.n, 1), dtype=np.float16),
        sources=[other.key for other in study.models],
        source_sha256=[f"{k:064x}" for k in range(len(study.models))],
        adv_pred=pred,
        adv_margin=margin,
    ).save(RunDir(root).predictions(model.key))


_made: dict[tuple[int, int], Synthetic] = {}


def _synthetic(models: int, images: int) -> Synthetic:
    if (models, images) not in _made:
        _made[models, images] = Synthetic(models, images)
    return _made[models, images]


def make_run(root: Path, study: Study) -> None:
    """Write `study.toml` and `predictions/`, with as many processes as there are cores."""
    root.mkdir(parents=True, exist_ok=True)
    RunDir(root).study.write_text(dump_study(study), encoding="utf-8")
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.starmap(write_predictions, [(root, study, b) for b in range(len(study.models))], chunksize=1)


def measure(root: Path, work: Path) -> dict[str, Any]:
    """Aggregate once: wall and CPU seconds, phases in seconds, peak memory in bytes, and what came out."""
    phases, before = work / "phases.json", resource.getrusage(resource.RUSAGE_CHILDREN)
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, repr(started_s), str(phases), str(root)],
        stdout=subprocess.PIPE, check=False, text=True,
    )  # fmt: skip
    wall_s, after = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"simhpc aggregate failed with exit code {done.returncode}")
    summary = json.loads(done.stdout)
    return {
        "wall_s": wall_s,
        "cpu_user_s": after.ru_utime - before.ru_utime,
        "cpu_system_s": after.ru_stime - before.ru_stime,
        "peak_rss_bytes": after.ru_maxrss * 1024,
        "phases_s": json.loads(phases.read_text()),
        "pairs_known": summary["pairs"],
    }


def main() -> None:
    """Make the run, aggregate it, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=69)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=1, help="how often to aggregate")
    parser.add_argument("--folder", type=Path, help="keep the synthetic run there, and use the one that lies there")
    given = parser.parse_args()
    study = study_of(given.models, given.images)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        root = given.folder or work / "run"
        if not RunDir(root).study.exists():
            started_s = time.monotonic()
            make_run(root, study)
            print(
                f"synthetic run of {given.models} models x {given.images} images: {time.monotonic() - started_s:.0f} s"
            )
        # The writers were children too and count towards the peak: a process of its own starts from nothing.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rounds = [pool.apply(measure, (root, work)) for _ in range(given.rounds)]
    for found in rounds:
        start_s = found["phases_s"]["start and imports"]
        print(
            f"aggregate: {found['wall_s']:.2f} s, of which start and imports {start_s:.2f} s; "
            f"CPU {found['cpu_user_s']:.1f} s + {found['cpu_system_s']:.1f} s system; "
            f"peak {found['peak_rss_bytes'] / 2**20:.0f} MiB; {found['pairs_known']} pairs"
        )
        for name, phase_s in found["phases_s"].items():
            print(f"  {name:<36}{phase_s:9.2f} s")
    OUT.parent.mkdir(exist_ok=True)
    report = {
        "models": given.models,
        "images": given.images,
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "rounds": rounds,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(OUT)


if __name__ == "__main__":
    main()
