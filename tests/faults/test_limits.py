"""What the machine may lack or do while a task runs: space, permission, file handles, a steady clock, solitude."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults.conftest import KEYS, TASKS, contents
from faults.forks import Work
from faults.test_kills import STAGES, work

from simhpc.errors import BadFileError, NoSpaceError
from simhpc.stages.progress import ProgressFile, read_progress
from simhpc.store import adversarial, attack_parts, predictions
from simhpc.store.atomic import remove_leftovers, replacing, temporary_name, write_text

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="to mount a file system, one has to be root")


@contextmanager
def mounted(folder: Path, size_kb: int):
    """A file system of its own; skips where even root may not mount one (in most containers)."""
    folder.mkdir()
    options = ["-o", f"size={size_kb}k", "-t", "tmpfs", "simhpc-test", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def finish(forks, undisturbed, stage, root):
    (end,) = forks.do(work(undisturbed, stage, root))
    assert end.code == 0, end.log
    assert contents(root) == undisturbed.after[stage]


def final_files_are_whole(undisturbed, stage, root):
    after = undisturbed.after[stage]
    found = contents(root)
    assert [name for name in found if ".tmp." in name] == []
    assert [name for name in found if name in after and name.endswith((".h5", ".safetensors", ".csv", ".png", ".toml"))
            and found[name] != after[name]] == []  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_files_may_not_become_large_enough(forks, undisturbed, tmp_path, stage):
    """A limit on the size of files is met where a full disk would be, and needs no root."""
    root = undisturbed.copy(stage, tmp_path / "run")
    (end,) = forks.do(work(undisturbed, stage, root, file_bytes=3000))
    assert end.code == 2, end.log
    assert "could not be written: " in end.log
    assert "File too large" in end.log or "torch could not write all of it" in end.log
    assert f"SimhpcError: {root}" in end.log
    assert "MiB are free there" in end.log
    if root.exists():
        final_files_are_whole(undisturbed, stage, root)
    finish(forks, undisturbed, stage, root)


@as_root
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk(forks, undisturbed, tmp_path, stage):
    disk = tmp_path / "disk"
    with mounted(disk, 4000):
        root = undisturbed.copy(stage, disk / "run")
        free_bytes = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (free_bytes - 12_000))
        (end,) = forks.do(work(undisturbed, stage, root))
        assert end.code == 2, end.log
        assert f"SimhpcError: {root}" in end.log
        assert "could not be written: " in end.log
        assert "No space left on device" in end.log or "torch could not write all of it" in end.log
        assert "(0.0 MiB are free there)" in end.log
        ballast.unlink()
        if root.exists():
            final_files_are_whole(undisturbed, stage, root)
        finish(forks, undisturbed, stage, root)


@as_root
def test_a_folder_that_may_only_be_read(forks, undisturbed, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, 20_000):
        for stage, _ in TASKS:
            root = undisturbed.copy(stage, disk / stage)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            before = contents(root)
            (end,) = forks.do(work(undisturbed, stage, root))
            assert end.code == 1
            assert f"Read-only file system: '{root}/" in end.log
            assert contents(root) == before
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            finish(forks, undisturbed, stage, root)


@pytest.mark.parametrize("stage", [stage for stage, _ in TASKS])
def test_file_handles_are_used_up(forks, undisturbed, tmp_path, stage):
    """Whatever number is left, a task ends well or says what it lacks, and never takes a good file for a bad one."""
    codes = set()
    for number, open_files in enumerate((7, 8, 9, 10, 12, 40)):
        root = undisturbed.copy(stage, tmp_path / f"{number}")
        (end,) = forks.do(work(undisturbed, stage, root, open_files=open_files))
        codes.add(end.code)
        if end.code != 0:
            assert "Too many open files" in end.log
            assert "delete it" not in end.log
        final_files_are_whole(undisturbed, stage, root)
    finish(forks, undisturbed, stage, root)
    assert 0 in codes
    assert codes != {0}


def test_a_source_that_is_replaced_under_its_reader(forks, undisturbed, tmp_path):
    """The handle becomes stale, as on NFS: the other sources are kept, and the same command again does the rest."""
    root = undisturbed.copy("evaluate", tmp_path / "run")
    stale = str(root / "adversarial" / "vit.h5")
    (end,) = forks.do(work(undisturbed, "evaluate", root, stale=stale))
    assert end.code == 2
    assert f"{stale} was replaced while it was being read" in end.log
    assert "delete it" not in end.log
    held = predictions.outline(root / "predictions" / "cnn.h5")
    assert held.sources == ["cnn"]
    finish(forks, undisturbed, "evaluate", root)


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(undisturbed, tmp_path):
    """On a local disk the reader has the old file until it closes it."""
    root = undisturbed.copy("evaluate", tmp_path / "run")
    path = root / "adversarial" / "cnn.h5"
    whole = adversarial.load(path)
    images = adversarial.iterate_images(path, 3)
    first = next(images)
    with replacing(path) as temporary:
        temporary.write_bytes((root / "adversarial" / "vit.h5").read_bytes())
    rest = list(images)
    assert (first == whole.images[:3]).all()
    assert sum(map(len, rest)) == len(whole.images) - 3
    assert adversarial.header(path).provenance.model == "vit"  # no cache of the old one


@pytest.mark.parametrize("stage", [stage for stage, _ in TASKS])
def test_a_clock_that_goes_backwards(forks, undisturbed, tmp_path, stage):
    root = undisturbed.copy(stage, tmp_path / "run")
    (end,) = forks.do(work(undisturbed, stage, root, clock_jumps_s=-100.0))
    assert end.code == 0, end.log
    assert contents(root) == undisturbed.after[stage]
    reading = read_progress(root / "progress" / stage / f"{dict(TASKS)[stage]}.json")
    assert reading.updated_unix_s >= reading.started_unix_s
    assert reading.rate_per_s >= 0
    assert reading.eta_s is None or reading.eta_s >= 0


def test_progress_goes_on_being_written_after_the_clock_was_set_back(tmp_path, monkeypatch):
    now = [1_000_000.0, 0.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[1])
    with ProgressFile(tmp_path / "p.json") as progress:
        progress.report(0, 10, "image")
        for done in range(1, 10):
            now[0] -= 1000.0
            now[1] += 1.0
            progress.report(done, 10, "image")
            reading = read_progress(tmp_path / "p.json")
            assert reading.done == done
            assert reading.updated_unix_s == reading.started_unix_s
            assert reading.rate_per_s == 0
            assert reading.eta_s is None


def but_logs(files):
    """Without the logs of trainings: of two copies the later one's stays, and may end when the other is done."""
    return {name: data for name, data in files.items() if not name.startswith("metrics/")}


@pytest.mark.parametrize("stage", STAGES[1:])
def test_two_tasks_on_one_output(forks, undisturbed, tmp_path, stage):
    for number in range(3):
        root = undisturbed.copy(stage, tmp_path / f"{number}")
        ends = forks.do(work(undisturbed, stage, root), work(undisturbed, stage, root))
        assert [end.code for end in ends] == [0, 0], [end.log for end in ends]
        assert but_logs(contents(root)) == but_logs(undisturbed.after[stage])


def test_two_whole_runs_in_one_directory(forks, undisturbed, tmp_path):
    """Both are begun in a directory that does not exist yet, and do all tasks of all stages."""
    both = Work("all", str(tmp_path / "run"), str(undisturbed.study))
    ends = forks.do(both, both)
    assert [end.code for end in ends] == [0, 0], [end.log for end in ends]
    whole, found = undisturbed.after[STAGES[-1]], contents(tmp_path / "run")
    assert found.keys() >= whole.keys()
    after = but_logs(whole)
    assert [name for name in after if found[name] != after[name]] == []
    assert len(KEYS) == sum(name.startswith("predictions/") for name in found)


def test_leftovers_of_living_writers_are_left_alone(tmp_path):
    mine = temporary_name(tmp_path / "a.csv")
    host, namespace, _, token = mine.name.rpartition(".tmp.")[2].rsplit(".", 3)
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        mine.name: True,
        f"a.csv.tmp.{host}.{namespace}.{gone.pid}.{token}": False,
        f"a.csv.tmp.{host}.1.{gone.pid}.{token}": True,  # of another container, whose processes are not seen here
        f"a.csv.tmp.other-host.{namespace}.{gone.pid}.{token}": True,
        f"a.csv.tmp.{host}.{gone.pid}.{token}": True,  # of an earlier simhpc: until it is a day old
        "a.csv": True,
        "notes.tmp": True,
    }
    for name in names:
        (tmp_path / name).write_text("x")
    remove_leftovers([tmp_path, tmp_path / "not-there"])
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
    for name in names:
        if names[name]:
            os.utime(tmp_path / name, (0, 0))
    remove_leftovers([tmp_path])
    # Of a living process of this host even then.
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "a.csv", "notes.tmp"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("Can't write data (file write failed: time = x, errno = 122, error message = 'Disk quota exceeded')"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"),
    ],
)
def test_every_librarys_way_to_say_that_there_is_no_space(tmp_path, error):
    def fail():
        with replacing(tmp_path / "f.bin") as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(NoSpaceError, match=r"f\.bin could not be written: (No space|Disk quota)"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_unchanged(tmp_path):
    with pytest.raises(OSError, match="Input/output"), replacing(tmp_path / "f.bin"):
        raise OSError(5, "Input/output error")


def test_an_unreadable_part_of_an_attack_is_made_again(tmp_path):
    parts = attack_parts.AttackParts(tmp_path, "0" * 64)
    write_text(tmp_path / ("0" * 16) / "0000000.h5", "torn")
    assert parts.load() == {}
    with pytest.raises(BadFileError):
        adversarial.header(tmp_path / ("0" * 16) / "0000000.h5")
