"""A thousand models: what is looked at, and how often, grows with the models and not with their pairs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import h5py
import pytest
from cluster.test_status import submit
from safetensors.numpy import load_file

from simhpc.cluster import ledger
from simhpc.cluster.local import run_stages
from simhpc.cluster.status import Monitor
from simhpc.rundir import Run
from simhpc.stages import ALL_STAGES, done_tasks
from simhpc.stages.progress import ProgressFile, read_progress
from simhpc.store import adversarial, checkpoint, predictions
from simhpc.store.atomic import remove_leftovers
from simhpc.study import dump_study

_counting: list[Counter[str]] = []


def _hear(event: str, arguments: tuple) -> None:
    if _counting and event in ("open", "os.scandir", "os.listdir"):
        _counting[-1][event] += 1


@contextmanager
def counted(monkeypatch):
    """Files opened by Python and by h5py, folders listed, and files asked about, inside the context."""
    counts: Counter[str] = Counter()
    init, stat = h5py.File.__init__, os.stat

    def new_init(self, *arguments, **options):
        counts["h5py"] += 1
        init(self, *arguments, **options)

    def new_stat(*arguments, **options):
        counts["stat"] += 1
        return stat(*arguments, **options)

    if not _counting:
        sys.addaudithook(_hear)
    _counting.append(counts)
    with monkeypatch.context() as patch:
        patch.setattr(h5py.File, "__init__", new_init)
        patch.setattr(os, "stat", new_stat)
        yield counts
    _counting.append(Counter())


def many(finished: Run, root: Path, n_models: int) -> Run:
    """A finished run of so many copies of one model: files as they would be, but for the number of images."""
    shutil.copytree(finished.dir.root, root)
    like, keys = finished.study.model("cnn"), [f"m{number:04d}" for number in range(n_models)]
    models = tuple(like.model_copy(update={"key": key}) for key in keys)
    run = Run(replace(finished.dir, root=root), finished.study.model_copy(update={"models": models}))
    attacked = adversarial.load(finished.dir.adversarial("cnn"))
    answered = predictions.load(finished.dir.predictions("cnn"))
    weights, said = load_file(finished.dir.checkpoint("cnn")), checkpoint.metadata_of(finished.dir.checkpoint("cnn"))
    for model in models:
        origin = replace(attacked.provenance, model=model.key, model_sha256=model.sha256())
        identity = {"model": model.key, "model_sha256": model.sha256()}
        checkpoint.save(run.dir.checkpoint(model.key), weights, {**said, **identity})
        replace(attacked, provenance=origin).save(run.dir.adversarial(model.key))
    headers = {key: adversarial.header(run.dir.adversarial(key)) for key in keys}
    row = answered.sources.index("cnn")
    for number, model in enumerate(models):
        origin = replace(answered.provenance, model=model.key, model_sha256=model.sha256())
        replace(
            answered, provenance=origin, sources=keys, source_sha256=[headers[key].content_sha256 for key in keys],
            adv_pred=answered.adv_pred[[row] * n_models], adv_margin=answered.adv_margin[[row] * n_models],
        ).save(run.dir.predictions(model.key))  # fmt: skip
        for stage in ("train", "attack", "evaluate"):
            with ProgressFile(run.dir.progress(stage, model.key), f"7_{number}") as progress:
                progress.report(1, 1, "image")
    submit(run, "attack", tuple(keys), "7")
    return run


def test_a_look_opens_each_file_once(finished, slurm, tmp_path, monkeypatch):
    """Twice the models, twice the files: not four times, as each pair would be. A later look reads none again."""
    found = {}
    for n_models in (10, 20):
        run = many(finished, tmp_path / f"{n_models}", n_models)
        with counted(monkeypatch) as first:
            assert len(done_tasks(run, ("train", "attack", "evaluate"))) == 3 * n_models
        with counted(monkeypatch) as again:
            assert len(done_tasks(run, ("train", "attack", "evaluate"))) == 3 * n_models
        assert again["h5py"] == 0
        assert again["open"] == 0
        # Each checkpoint, adversarial set and predictions file once, and the image set.
        assert again["stat"] <= 3 * n_models + 5
        found[n_models] = first["h5py"], first["open"], first["stat"], again["stat"]
        monitor = Monitor(run)
        with counted(monkeypatch) as looked:
            monitor.look()
        assert looked["os.scandir"] + looked["os.listdir"] <= 3
        assert looked["open"] >= n_models  # the progress of what was submitted
        with counted(monkeypatch) as looked_again:
            assert monitor.look().task("attack", "m0003").done == 1
        assert looked_again["open"] <= 2  # the ledger: what is over is not read again
        found[n_models] += (looked["open"], looked_again["stat"])
    for of_ten, of_twenty in zip(found[10], found[20], strict=True):
        assert of_twenty <= 2 * of_ten + 20, found


def test_headers_are_read_without_hdf5(finished, tmp_path, monkeypatch):
    run = many(finished, tmp_path / "run", 10)
    with counted(monkeypatch) as counts:
        headers = [predictions.header.__wrapped__(run.dir.predictions(model.key)) for model in run.study.models]
        sets = [adversarial.header.__wrapped__(run.dir.adversarial(model.key)) for model in run.study.models]
    assert (counts["h5py"], counts["open"]) == (0, 20)
    hashes = {each.provenance.model: each.content_sha256 for each in sets}
    assert {each.sources_sha256 for each in headers} == {predictions.sources_identity(hashes)}


def test_a_run_looks_at_what_is_done_once_a_stage(finished, slurm, tmp_path, monkeypatch):
    """Whether a model has seen all sets was once asked of all sets for each model."""
    found = []
    for n_models in (10, 20):
        run = many(finished, tmp_path / f"{n_models}", n_models)
        with counted(monkeypatch) as counts:
            events = list(run_stages(run, ["train", "attack", "evaluate"], workers=1))
        assert [(each.n_tasks, each.n_done) for each in events] == [(n_models, n_models)] * 3
        found.append(counts["stat"])
    assert found[1] <= 2 * found[0] + 20


def test_progress_is_written_less_often_the_longer_a_task_runs(tmp_path, monkeypatch):
    """A thousand tasks of hours that replace their files twice a second would keep a shared disk from its work."""
    now_s, written_s = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with ProgressFile(tmp_path / "p.json") as progress:
        write = progress._write
        monkeypatch.setattr(progress, "_write", lambda reading: (written_s.append(now_s), write(reading)))
        for tenth in range(20_000):
            now_s = tenth / 10
            progress.report(tenth, 20_000, "step")
    gaps = [after - before for before, after in pairwise(written_s)]
    assert min(gaps[:-1]) >= 0.5 - 1e-9
    assert max(gaps) <= 10.2
    assert [sum(start <= at < start + 30 for at in written_s) for start in (0, 300, 1500)] == [60, 9, 3]


def test_looking_needs_no_torch(finished, copied):
    study = finished.dir.root.parent / "study.toml"
    commands = [["status"], ["status", "--json"], ["verify"], ["run", str(study), "--out"]]
    program = (
        "import sys\n"
        "from simhpc.cli import app\n"
        "if __name__ == '__main__':\n"  # verify starts another process
        f"    for command in {commands!r}:\n"
        f"        sys.argv = ['simhpc', *command, {str(copied.dir.root)!r}]\n"
        "        try:\n"
        "            app.main()\n"
        "        except SystemExit as stop:\n"
        "            assert not stop.code, command\n"
        "        assert not {'torch', 'timm'} & set(sys.modules), command\n"
    )
    script = copied.dir.root.parent / "commands.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 task(s) executed") == 1


def test_cleaning_up_lists_each_folder_once_and_asks_of_no_file(finished, slurm, tmp_path, monkeypatch):
    run = many(finished, tmp_path / "run", 10)
    n_folders = len(list(run.dir.folders()))
    with counted(monkeypatch) as counts:
        remove_leftovers(run.dir.folders())
    assert counts["os.scandir"] <= 2 * n_folders
    assert counts["stat"] == counts["open"] == 0


def test_no_folder_grows_with_the_pairs_or_the_images(finished, slurm, tmp_path):
    for n_models in (10, 20):
        run = many(finished, tmp_path / f"{n_models}", n_models)
        assert max(len(list(folder.iterdir())) for folder in run.dir.folders()) <= n_models + 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_models(finished, slurm, tmp_path, simhpc, capfd):
    """Prints what docs/guarantees.md says; the numbers depend on the machine, what is counted does not."""
    run = many(finished, tmp_path / "run", 1000)
    (run.dir.study).write_text(dump_study(run.study))
    for number in range(200):
        entry = ledger.read(run.dir)[0]
        ledger.write(run.dir, replace(entry, id=f"{entry.id}-{number}"))
    told = []

    def timed(what, do):
        started_s, cpu_s = time.perf_counter(), time.process_time()
        result = do()
        told.append(f"{what}: {time.perf_counter() - started_s:.2f} s, {time.process_time() - cpu_s:.2f} s of a core")
        return result

    assert len(timed("ledger of 201 entries", lambda: ledger.read(run.dir))) == 201
    assert len(timed("done_tasks, first", lambda: done_tasks(run, ALL_STAGES))) == 3000
    assert len(timed("done_tasks, again", lambda: done_tasks(run, ALL_STAGES))) == 3000
    monitor = Monitor(run)
    timed("look", monitor.look)
    timed("look again", monitor.look)
    progress = [run.dir.progress("attack", model.key) for model in run.study.models]
    timed("1,000 progress files", lambda: [read_progress(path) for path in progress])
    timed("clean up", lambda: remove_leftovers(run.dir.folders()))
    timed("simhpc status", lambda: simhpc("status", run.dir.root))
    timed("simhpc status --json", lambda: simhpc("status", run.dir.root, "--json"))
    with capfd.disabled():
        print("\n" + "\n".join(told))
