"""Bad files are found and named, whatever is wrong with them; what can be made again is removed, and nothing else."""

from __future__ import annotations

import os
import shutil

import damage
import numpy as np
import pytest

from simhpc.errors import SimhpcError
from simhpc.rundir import Run, RunDir, open_run
from simhpc.stages import verify
from simhpc.stages.isolated import CallFailedError, Worker

_LIMIT_S = 300.0


@pytest.fixture(scope="module")
def worker():
    with Worker() as found:
        yield found


@pytest.fixture
def look(worker):
    def look(run, *, deep=True):
        return verify.verify(run, deep=deep, worker=worker)

    return look


def files_of(found):
    return [finding.file for finding in found.findings]


# ----- mutated files


def mutate(run: Run, seed: int):
    """Damage one file of the run in one way; returns the file and the name of the way."""
    random = np.random.default_rng(seed)
    names = [
        *(f"{folder}/{key}.h5" for folder in ("adversarial", "predictions") for key in ("cnn", "vit")),
        *("images.h5", "similarity.h5", "checkpoints/cnn.safetensors", "study.toml", "frozen.json", "images.txt"),
        *("similarity.csv", "pairs.csv", "models.csv", "figures/similarity.png"),
    ]
    # Every file in turn, every way in turn; the HDF5 files, which hold the numbers, more often.
    path = run.dir.root / (names[seed // 2 % len(names)] if seed % 2 else names[seed // 2 % 6])
    ways = damage.ANY + (damage.HDF5 if path.suffix == ".h5" else [])
    way = ways[(seed * 7 + seed // 2) % len(ways)]
    way(path, random)
    return path, way.__name__


def expect(worker: Worker, run: Run, whole: Run, seed: int) -> str | None:
    """What is wrong with what is said of one mutated file; None if all is well."""
    path, way = mutate(run, seed)
    name = path.relative_to(run.dir.root).as_posix()
    case = f"seed {seed}: {way} of {name}"
    try:
        found = verify_root(run.dir.root, worker)
        is_named = name in files_of(found)
        if not is_named and not is_same(path, whole.dir.root / name):
            return f"{case} was not found: {found.findings}"
        problems, numbers = worker.call(damage.aggregated, str(run.dir.root), timeout_s=_LIMIT_S)
    except CallFailedError as error:
        # An error with a message is as good as a problem; a crash or a hang is not.
        return None if "Error: " in str(error) and str(run.dir.root) in str(error) else f"{case}: {error}"
    _, wanted = damage.aggregated(str(whole.dir.root))
    for key, value in numbers.items():
        have, want = np.array(value, dtype=float), np.array(wanted[key], dtype=float)
        known = np.isfinite(have) & (have != -1)
        if not np.array_equal(have[known], want[known]):
            return f"{case} gives other numbers ({key})"
        if not np.array_equal(have, want, equal_nan=True) and not problems:
            return f"{case} leaves {key} unknown and gives no reason"
    return None


def verify_root(root, worker):
    run_dir = RunDir(root)
    try:
        return verify.verify(open_run(root), deep=True, worker=worker)
    except SimhpcError as error:
        return verify.Report(1, [verify.Finding(run_dir.study.name, str(error), "")], [])


def is_same(path, original):
    try:
        return damage.content(path) == damage.content(original)
    except Exception:
        return False


def expect_all(worker, finished, tmp_path, seeds):
    wrong = []
    for seed in seeds:
        root = tmp_path / f"run{seed}"
        shutil.copytree(finished.dir.root, root, copy_function=os.link)
        run = open_run(root)
        # Only what is changed is copied.
        for path in root.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                path.unlink()
                path.write_bytes(data)
        if (problem := expect(worker, run, finished, seed)) is not None:
            wrong.append(problem)
        shutil.rmtree(root)
    assert not wrong, "\n".join(wrong)


def test_mutated_files_are_found_or_harmless(worker, finished, tmp_path):
    expect_all(worker, finished, tmp_path, range(0, 700, 35))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(10))
def test_seven_hundred_mutated_files_are_found_or_harmless(worker, finished, tmp_path, part):
    expect_all(worker, finished, tmp_path, range(part, 700, 10))
