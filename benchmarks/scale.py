"""Part `scale`: how long the commands take on a run of a thousand models, before and beside the work itself.

The run is finished: small ResNets on digits, of which one was trained, attacked and evaluated, and its files copied for
all others under their own names and hashes. Every command is a process of its own, as a user starts it; Slurm's
programs are stand-ins that know of no job.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.numpy import load_file

from benchmarks.measures import OURS, Check, Measure, Part
from benchmarks.options import Options
from benchmarks.victims import digits_study, execute
from simhpc.cluster import ledger
from simhpc.cluster.status import Monitor
from simhpc.rundir import Run
from simhpc.stages import STAGES, done_tasks
from simhpc.stages.prepare import prepare
from simhpc.stages.progress import ProgressFile
from simhpc.store import adversarial, checkpoint, predictions
from simhpc.study import dump_study

_IMAGES = 20
_SUBMISSIONS = 20
"""Of each stage: what a run looks like that has been retried again and again."""

_PROFILE = """
[defaults]
timeout_min = 60
cpus_per_task = 1
mem_gb = 4
"""

_INPUTS = """
import sys
from pathlib import Path
from simhpc.rundir import open_run
from simhpc.offline.inputs import inputs_of_run
run = open_run(Path(sys.argv[1]))
inputs_of_run(run, run.dir, Path(sys.argv[2]))
"""


def measure(options: Options, scratch: Path) -> Part:
    """Wall and CPU seconds of each command, of its start, and of looks at the run from within one process."""
    m = 12 if options.quick else 1000
    part = Part(facts={"models": m, "images": _IMAGES, "submissions": 3 * _SUBMISSIONS})
    study_file, profile, components = (scratch / name for name in ("study.toml", "profile.toml", "components.csv"))
    profile.write_text(_PROFILE, encoding="utf-8")
    started_s = time.perf_counter()
    run = finished_run(scratch / "run", study_file, m)
    part.facts["seconds to make the run"] = time.perf_counter() - started_s
    keys = [model.key for model in run.study.models]
    components.write_text("Model name,Depth\n" + "".join(f"{key},{len(key)}\n" for key in keys), encoding="utf-8")
    programs = _no_jobs(scratch / "bin")
    where = str(run.dir.root)
    commands = {
        "--version (Python and imports)": ["--version"],
        "aggregate": ["aggregate", where],
        "status --json": ["status", where, "--json"],
        "verify": ["verify", where],
        "run, nothing to do": ["run", str(study_file), "--out", where, "--json"],
        "submit all --dry-run, nothing to do": [
            *("submit", "all", str(study_file), "--profile", str(profile), "--out", where, "--dry-run"),
        ],
    }
    for name, words in commands.items():
        program = "from simhpc.cli.app import main; main()"
        part.measures.extend(_timed(name, [sys.executable, "-c", program, *words], programs, options.repetitions))
    begun = [sys.executable, "-c", _INPUTS, where, str(components)]
    part.measures.extend(_timed("analyze, until the first analysis", begun, programs, options.repetitions))
    os.environ["PATH"], before = programs, os.environ["PATH"]
    try:
        monitor, looks = Monitor(run), list[float]()
        for _ in range(1 + options.repetitions):
            started_s = time.perf_counter()
            found = monitor.look()
            looks.append(time.perf_counter() - started_s)
    finally:
        os.environ["PATH"] = before
    part.measures.append(Measure("look", "s", "first look of status --watch", {OURS: looks[:1]}))
    part.measures.append(Measure("look", "s", "each later look", {OURS: looks[1:]}))
    counts = Counter(task.state for task in found.tasks)
    n_done = len(done_tasks(run, STAGES))
    part.checks.append(Check("every task is done", n_done == 3 * m + 1, f"{n_done} of {3 * m + 1}, states {counts}"))
    files = {str(path.relative_to(run.dir.root)): len(list(path.iterdir())) for path in run.dir.folders()}
    part.facts["entries per folder"] = {name: n for name, n in sorted(files.items()) if n}
    return part


def finished_run(root: Path, study_file: Path, n_models: int) -> Run:
    """A run of so many models with every file that the stages leave, but for the matrix; and its study file."""
    keys = [f"model-{number:04d}" for number in range(n_models)]
    study = digits_study(keys, _IMAGES, epochs=1, steps=1)
    study_file.write_text(dump_study(study), encoding="utf-8")
    run = prepare(study, root)
    for stage in ("train", "attack", "evaluate"):
        execute(run, stage, keys[0])
    first = run.dir
    weights, said = load_file(first.checkpoint(keys[0])), checkpoint.metadata_of(first.checkpoint(keys[0]))
    attacked, answered = adversarial.load(first.adversarial(keys[0])), predictions.load(first.predictions(keys[0]))
    for model in run.study.models[1:]:
        checkpoint.save(
            first.checkpoint(model.key), weights, {**said, "model": model.key, "model_sha256": model.sha256()}
        )
        origin = replace(attacked.provenance, model=model.key, model_sha256=model.sha256())
        replace(attacked, provenance=origin).save(first.adversarial(model.key))
    hashes = [adversarial.header(first.adversarial(key)).content_sha256 for key in keys]
    answers = replace(
        answered,
        sources=keys,
        source_sha256=hashes,
        adv_pred=answered.adv_pred.repeat(n_models, axis=0),
        adv_margin=answered.adv_margin.repeat(n_models, axis=0),
    )
    for model in run.study.models:
        origin = replace(answered.provenance, model=model.key, model_sha256=model.sha256())
        replace(answers, provenance=origin).save(first.predictions(model.key))
        for stage in ("train", "attack", "evaluate"):
            with ProgressFile(first.progress(stage, model.key), "1_0") as progress:
                progress.report(1, 1, "image")
    for number, stage in enumerate(("train", "attack", "evaluate") * _SUBMISSIONS, start=1):
        entry = ledger.Submission(
            id=ledger.new_id(), stage=stage, models=tuple(keys), job_id=str(number), is_array=True,
            folder=f"{stage}-{number}", after="", submitted_unix_s=time.time() - 1e6 + number, user="somebody",
            host="login", resources={"mem_gb": 4.0, "timeout_min": 60}, retry={}, profile="profile.toml",
        )  # fmt: skip
        ledger.write(first, entry)
    return run


def _timed(name: str, command: Sequence[str], path: str, repetitions: int) -> list[Measure]:
    """Wall and CPU seconds, and what `command` says if it fails."""
    wall_s, cpu_s = list[float](), list[float]()
    for _ in range(repetitions):
        before, started_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            command, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        wall_s.append(time.perf_counter() - started_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr.decode(errors='replace')}")
    return [Measure("command", "s", name, {OURS: wall_s}), Measure("command_cpu", "CPU s", name, {OURS: cpu_s})]


def _no_jobs(folder: Path) -> str:
    """A PATH with stand-ins for what is asked of Slurm here."""
    folder.mkdir()
    for name in ("sacct", "squeue", "scontrol", "sbatch", "srun"):
        program = folder / name
        program.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
        program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
