"""Bad files are found and named, whatever is wrong with them; what can be made again is removed, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import damage
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tiny import execute_all, tiny, write_study

from simhpc.errors import BadFileError, ForeignFileError, SimhpcError
from simhpc.offline import verify, verify_files
from simhpc.offline.isolated import CallFailedError, Worker
from simhpc.rundir import Run, RunDir, open_run
from simhpc.stages import aggregate, distill
from simhpc.stages.prepare import prepare
from simhpc.store import adversarial, answers, attack_parts, checkpoint, image_set, predictions, similarity
from simhpc.store import representations as representation_files
from simhpc.store.atomic import temporary_name
from simhpc.study import load_study

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
    # The HDF5 files, which hold the numbers, more often.
    path = run.dir.root / names[random.integers(len(names) if seed % 2 else 6)]
    ways = damage.ANY + (damage.HDF5 if path.suffix == ".h5" else [])
    way = ways[random.integers(len(ways))]
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


# ----- what is found, and what is said


@pytest.mark.parametrize("deep", [False, True])
def test_a_finished_run_is_clean(look, finished, deep):
    found = look(finished, deep=deep)
    assert (found.findings, found.notes) == ([], [])
    files = [path for path in finished.dir.root.rglob("*") if path.is_file() and path.parent.name != "metrics"]
    assert found.n_files == len(files)


def test_files_without_a_seal_are_never_given_to_hdf5(look, copied, monkeypatch):
    """Of every kind: plain HDF5 from the first byte, whose headers nothing protects."""
    run, held = copied, adversarial.load(copied.dir.adversarial("vit"))
    numbers = damage.aggregated(str(run.dir.root))
    answers.save(run.dir.answers("cnn", "a" * 64), np.zeros((3, 10), np.float32), teacher="cnn", identity="a" * 64)
    parts = attack_parts.AttackParts(run.dir.attack_parts("cnn"), "b" * 64)
    parts.save(0, held.images[:2])
    run.dir.partial_predictions("vit").parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.dir.predictions("vit"), run.dir.partial_predictions("vit"))
    representation_files.Representations(
        held.provenance, "{}", "fc", 70, 2, np.zeros((70, 4), np.float16), 1.0, np.arange(2, dtype=np.int32),
        np.zeros((2, 3, 8, 8), np.float16), np.zeros(2, np.float32), np.zeros(2, np.float32),
    ).save(run.dir.representations("vit"))  # fmt: skip
    paths = sorted(run.dir.root.rglob("*.h5"))
    assert {path.relative_to(run.dir.root).parts[0] for path in paths} == {
        *("images.h5", "similarity.h5", "adversarial", "predictions", "representations", "answers", "partial"),
    }
    for path in paths:
        path.write_bytes(path.read_bytes()[damage.seal.BLOCK_BYTES :])
    found = {finding.file: finding for finding in look(run).findings if finding.what.startswith("has no seal")}
    assert {run.dir.root / name for name in found} == set(paths)
    assert not any(finding.is_removable for finding in found.values())
    with monkeypatch.context() as patch:
        patch.setattr("h5py.File", lambda *_, **__: pytest.fail("HDF5 was asked"))
        assert parts.load() == {}
        with pytest.raises(ForeignFileError, match=r"images\.h5 has no seal .*: move it away, or delete it"):
            image_set.load(run.dir.images)
        matrix = aggregate.aggregate(run, lambda *_: None)
    assert np.isnan(matrix.sat).all()
    assert len([problem for problem in matrix.problems if "has no seal" in problem]) == len(run.study.models)
    # The same command again makes them anew.
    run.dir.images.unlink()
    run = prepare(run.study, run.dir.root)
    execute_all(run)
    assert damage.aggregated(str(run.dir.root)) == numbers


def test_without_deep_headers_and_origins_are_looked_at(look, copied):
    shutil.copyfile(copied.dir.predictions("cnn"), copied.dir.predictions("vit"))
    os.truncate(copied.dir.adversarial("cnn"), 2000)
    found = {finding.file: finding for finding in look(copied, deep=False).findings}
    assert "model is cnn, this run's is vit" in found["predictions/vit.h5"].what
    assert not found["predictions/vit.h5"].is_removable  # whole, and perhaps somebody's only one
    assert found["adversarial/cnn.h5"].is_removable
    assert "delete it" in found["adversarial/cnn.h5"].todo


def moved_outside(images):
    images = images.copy()
    images[0, 0, 0, 0] = 255 if images[0, 0, 0, 0] < 128 else 0
    return images


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("adversarial", lambda f: {"images": moved_outside(f.images)}, "levels (linf) from its clean one"),
        ("adversarial", lambda f: {"n_fooled": f.n_fooled - 1}, "n_fooled is"),
        ("adversarial", lambda f: {name: getattr(f, name)[:-1] for name in ("index", "images", "adv_pred")}, "(X_A)"),
        ("adversarial", lambda f: {"clean_margin": -f.clean_margin}, "'clean_margin' contradicts the answers"),
        (
            "adversarial",
            lambda f: {"clean_probabilities": f.clean_probabilities[:, ::-1].copy()},
            "most probable class",
        ),
        ("predictions", lambda f: {"labels": (f.labels + 1) % 10}, "its labels are not those of images.h5"),
        ("predictions", lambda f: {"adv_pred": np.where(f.adv_pred == -1, -1, f.adv_pred + 77)}, "is no class"),
        ("predictions", lambda f: {"adv_margin": -f.adv_margin}, "contradicts the answers"),
        ("predictions", lambda f: {"adv_pred": np.full_like(f.adv_pred, -1)}, "are not X_AB"),
        ("predictions", lambda f: {"source_sha256": ["0" * 64, *f.source_sha256[1:]]}, "covers an older attack"),
    ],
)
def test_numbers_that_contradict_each_other(look, copied, file, change, expected):
    """Files that are whole and sealed, of the right model and study, and wrong: only --deep can know."""
    path = getattr(copied.dir, file)("vit")
    found = {"adversarial": adversarial, "predictions": predictions}[file].load(path)
    replace(found, **change(found)).save(path)
    assert [finding for finding in look(copied, deep=False).findings if finding.file.startswith(file)] == []
    of_file = [finding for finding in look(copied).findings if finding.file == f"{file}/vit.h5"]
    assert any(expected in finding.what for finding in of_file), of_file


def test_a_matrix_that_the_predictions_do_not_give(look, copied):
    matrix = similarity.load(copied.dir.similarity)
    sat = matrix.sat.copy()
    sat[0, 1] += 1e-9
    replace(matrix, sat=sat).save(copied.dir.similarity)
    assert look(copied, deep=False).findings == []
    what = {finding.file: finding.what for finding in look(copied).findings}
    assert what["similarity.h5"] == "'sat' is not what the predictions give"
    assert what["similarity.csv"] == "is not what similarity.h5 says"


def test_an_edited_study_is_refused_everywhere(copied, simhpc):
    text = copied.dir.study.read_text()
    copied.dir.study.write_text(text.replace("floor_percent = 0.01", "floor_percent = 0.02"))
    code, out, _ = simhpc("verify", copied.dir.root)
    assert code == 1
    assert "study.toml: is damaged, or was edited" in out
    code, _, err = simhpc("aggregate", copied.dir.root)
    assert code == 2
    assert "was edited after simhpc had written it" in err
    copied.dir.study.write_text(text)
    damage.edit_study(copied, "floor_percent = 0.01", "floor_percent = 0.02")
    assert open_run(copied.dir.root).study.similarity.floor_percent == 0.02


def test_what_is_not_ours_is_named_and_left(look, copied):
    (copied.dir.root / "notes.txt").write_text("mine")
    (copied.dir.root / "adversarial" / "gone.h5").write_text("of a model that was removed")
    (copied.dir.root / "a\nb").write_text("a name with a line's end")
    found = look(copied)
    assert found.findings == []
    assert sorted(note.split(" is ")[0] for note in found.notes) == ["a\\nb", "adversarial/gone.h5", "notes.txt"]


def test_a_flipped_bit_that_changes_a_picture_is_found(finished, tmp_path):
    """Also where the compressed data end, of which decoders read no more than they need."""
    whole = finished.dir.heatmap.read_bytes()
    pixels, path = np.asarray(Image.open(finished.dir.heatmap)), tmp_path / "p.png"
    changed = 0
    for at in range(len(whole) - 800, len(whole) - 12, 40):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        path.write_bytes(data)
        with contextlib.suppress(OSError, SyntaxError), Image.open(path) as picture:
            changed += not np.array_equal(np.asarray(picture), pixels)
        with pytest.raises(BadFileError, match="is no whole picture"):
            list(verify_files._picture(finished, path, "", True))
    assert changed


def test_leftovers_of_killed_tasks(look, copied):
    here, elsewhere = socket.gethostname(), "another-host"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours = temporary_name(copied.dir.images).name
    names = {
        ours.replace(f".{os.getpid()}.", f".{dead.pid}."): True,
        ours: False,  # its writer is at work
        ours.replace(here, elsewhere): False,  # perhaps
        f"images.h5.tmp.{elsewhere}.2.0a1b2c": True,
    }
    for name in names:
        (copied.dir.root / name).write_text("x")
    old = time.time() - 2 * 24 * 3600
    os.utime(copied.dir.root / f"images.h5.tmp.{elsewhere}.2.0a1b2c", (old, old))
    assert {name: name in files_of(look(copied)) for name in names} == names


def test_the_links_that_submitit_makes_are_not_told(look, copied):
    (copied.dir.submissions / "train-1").mkdir(parents=True)
    script = copied.dir.submissions / "train-1" / "4_submission.sh"
    script.write_text("#!/bin/bash")
    script.with_name(".submission_file_ab12.sh").symlink_to(script)
    assert look(copied, deep=False).notes == []


def test_linked_folders_are_looked_into(look, copied, tmp_path):
    """Large folders are often kept on another disk."""
    shutil.move(copied.dir.root / "checkpoints", tmp_path / "disk")
    (copied.dir.root / "checkpoints").symlink_to(tmp_path / "disk")
    found = look(copied)
    assert found.findings == []
    assert [note.split(" is ")[0] for note in found.notes] == ["checkpoints"]
    os.truncate(tmp_path / "disk" / "vit.safetensors", 1000)
    assert "checkpoints/vit.safetensors" in files_of(look(copied, deep=False))


# ----- repair


def test_repair_removes_what_can_be_made_again_and_the_run_goes_on(look, copied, simhpc):
    numbers = damage.aggregated(str(copied.dir.root))
    os.truncate(copied.dir.predictions("vit"), 3000)
    damage._flip_late_bit(copied.dir.adversarial("cnn"), np.random.default_rng(0))
    copied.dir.similarity.write_bytes(b"")
    before = {path: path.read_bytes() for path in copied.dir.root.rglob("*") if path.is_file()}
    code, out, err = simhpc("verify", copied.dir.root, "--deep", "--repair", "--yes", "--json")
    assert code == 1
    removed = json.loads(out)["removed"]
    assert removed == ["adversarial/cnn.h5", "predictions/vit.h5", "similarity.h5"]
    assert all(name in err for name in removed)
    after = {path: path.read_bytes() for path in copied.dir.root.rglob("*") if path.is_file()}
    assert {path.relative_to(copied.dir.root).as_posix() for path in before.keys() - after.keys()} == set(removed)
    assert all(before[path] == data for path, data in after.items())
    execute_all(open_run(copied.dir.root))
    assert look(open_run(copied.dir.root)).findings == []
    assert damage.aggregated(str(copied.dir.root)) == numbers


def test_repair_asks(simhpc, copied, monkeypatch):
    os.truncate(copied.dir.predictions("vit"), 3000)
    answers = iter(["n\n", "y\n"])
    monkeypatch.setattr("typer.confirm", lambda *_, **__: next(answers) == "y\n")
    assert simhpc("verify", copied.dir.root, "--repair")[0] == 1
    assert copied.dir.predictions("vit").exists()
    assert simhpc("verify", copied.dir.root, "--repair")[0] == 1
    assert not copied.dir.predictions("vit").exists()


def test_what_nothing_is_left_to_make_it_from_is_not_removed(look, copied):
    """Predictions without images, weights and adversarial sets; and images that cannot be drawn again."""
    for folder in ("checkpoints", "adversarial"):
        shutil.rmtree(copied.dir.root / folder)
    os.truncate(copied.dir.images, 2000)
    os.truncate(copied.dir.predictions("vit"), 3000)
    damage.edit_frozen(copied, images_sha256="0" * 64)
    found = {finding.file: finding for finding in look(copied).findings}
    assert not found["images.h5"].is_removable
    assert not found["predictions/vit.h5"].is_removable
    assert "put it back from a copy" in found["predictions/vit.h5"].todo
    assert verify.repair(copied.dir, list(found.values())) == []


def test_a_file_that_was_replaced_meanwhile_is_not_removed(look, copied):
    path = copied.dir.predictions("vit")
    whole = path.read_bytes()
    os.truncate(path, 3000)
    found = look(copied, deep=False)
    path.write_bytes(whole)
    assert "predictions/vit.h5" not in verify.repair(copied.dir, found.findings)
    assert path.read_bytes() == whole


# ----- the process that reads


def test_a_crash_a_hang_and_an_error_are_told(worker):
    with pytest.raises(CallFailedError, match=r"ended the process \(SIGKILL\)"):
        worker.call(signal.raise_signal, signal.SIGKILL, timeout_s=60)
    with pytest.raises(CallFailedError, match="had not ended after 1 s"):
        worker.call(time.sleep, 100, timeout_s=1)
    with pytest.raises(CallFailedError, match="ZeroDivisionError"):
        worker.call(divmod, 1, 0, timeout_s=60)
    assert worker.call(divmod, 7, 2, timeout_s=60) == (3, 1)


def test_every_kind_of_file_has_a_check():
    assert {kind for kind, _ in verify._KINDS.values()} == set(verify_files.CHECKS)


def test_students_and_the_answers_of_their_teachers(look, copied, tmp_path):
    raw = tiny(distillations=[{"student": "vit", "teachers": ["cnn"]}])
    run = prepare(load_study(write_study(tmp_path / "s.toml", raw)), copied.dir.root)
    (student,) = run.study.students
    path, teacher = run.dir.checkpoint(student.key), run.dir.answers("cnn", "a" * 64)
    weights = load_file(run.dir.checkpoint("vit"))
    checkpoint.save(path, weights, {**distill._identity(run, student), "accuracy": "0.5"})
    answers.save(teacher, np.zeros((3, 10), np.float32), teacher="cnn", identity="a" * 64)
    assert look(run).findings == []
    checkpoint.save(path, weights, {**distill._identity(run, student), "teacher_weights_sha256": "0" * 64})
    damage._flip_late_bit(teacher, np.random.default_rng(0))
    found = {finding.file: finding for finding in look(run).findings}
    name, of_teacher = (each.relative_to(run.dir.root).as_posix() for each in (path, teacher))
    assert "from another teacher" in found[name].what
    assert not found[name].is_removable
    assert found[of_teacher].is_removable
    os.truncate(path, 900)
    assert {f.file: f.is_removable for f in look(run, deep=False).findings}[name]
