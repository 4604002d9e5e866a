"""Saved states: the newest that is whole, of this training, and nothing that a file could execute."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch

from simhpc.errors import BadFileError
from simhpc.zoo.training import States


def state(step):
    return {"step": step, "model": {"w": torch.full((1000,), float(step))}}


def test_the_last_ones_are_kept(tmp_path):
    states = States(tmp_path, "a" * 64)
    assert states.last() == 0
    assert states.path_of_last() is None
    for step in (5, 20, 100):
        states.save(step, state(step))
    assert [path.name for path in sorted(tmp_path.rglob("*.*"))] == ["step-000000020.pt", "step-000000100.pt"]
    assert states.last() == 100
    assert states.load(100)["model"]["w"][0] == 100


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_folder_that_another_copy_removes_while_a_state_is_written(tmp_path, monkeypatch, moment):
    states, real, calls = States(tmp_path, "a" * 64), torch.save, []
    states.save(1, state(1))

    def save(what, path):
        calls.append(path)
        if len(calls) == 1 and moment == "before":
            shutil.rmtree(tmp_path / ("a" * 16))
        real(what, path)
        if len(calls) == 1 and moment == "after":
            shutil.rmtree(tmp_path / ("a" * 16))

    monkeypatch.setattr(torch, "save", save)
    states.save(2, state(2))
    assert len(calls) == 2
    assert states.last() == 2

    def always(what, path):
        real(what, path)
        path.unlink()

    monkeypatch.setattr(torch, "save", always)
    with pytest.raises(FileNotFoundError):
        states.save(3, state(3))
    assert states.last() == 2


@pytest.mark.parametrize("damage", ["cut off", "flipped", "empty"])
def test_a_damaged_state_is_passed_over(tmp_path, damage):
    states = States(tmp_path, "a" * 64)
    states.save(1, state(1))
    path = states.save(2, state(2))
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes({"cut off": data[:-300], "flipped": data, "empty": b""}[damage])
    assert states.last() == 1
    with pytest.raises(BadFileError, match=str(path)):
        states.load(2)


def test_a_new_state_is_kept_however_many_damaged_ones_are_later(tmp_path):
    """A training that had to begin again is before them for a while."""
    states = States(tmp_path, "a" * 64)
    for step in (20, 30):
        states.save(step, state(step)).write_bytes(b"")
    for step in (3, 5, 7):
        states.save(step, state(step))
        assert states.last() == step
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == [f"step-{step:09d}.pt" for step in (5, 7, 20, 30)]
    for step in (29, 31):
        states.save(step, state(step))
    assert [path.name for path in sorted(tmp_path.rglob("*.pt"))] == ["step-000000030.pt", "step-000000031.pt"]


def test_another_training_goes_on_from_its_own(tmp_path):
    ours, theirs = States(tmp_path, "a" * 64), States(tmp_path, "b" * 64)
    path = ours.save(3, state(3))
    assert theirs.last() == 0
    other = theirs.save(4, state(4))
    other.write_bytes(path.read_bytes())  # copied by hand
    assert theirs.last() == 0


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    states = States(tmp_path, "a" * 64)
    states.save(1, state(1))
    torch.save({"model": Trap()}, states.save(2, state(2)))
    (tmp_path / ("a" * 16) / "step-000000003.pt").write_bytes(pickle.dumps(Trap()))
    assert states.last() == 1
    assert "executed" not in capsys.readouterr().out
