from __future__ import annotations

import os

import pytest

from simhpc.store.filecache import cached_by_file, each_file_once, exists


def test_reads_again_only_what_changed(tmp_path):
    calls = []

    @cached_by_file
    def read(path):
        calls.append(path.name)
        return path.read_text()

    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError):
        read(path)
    path.write_text("one")
    assert [read(path), read(path)] == ["one", "one"]
    replacement = tmp_path / "g"
    replacement.write_text("two")
    os.utime(replacement, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # same size and time, another file
    replacement.replace(path)
    assert [read(path), read(path)] == ["two", "two"]
    assert calls == ["f", "f", "f"]


def test_what_is_said_inside_is_of_one_moment(tmp_path):
    read = cached_by_file(lambda path: path.read_text())
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("first")
    with each_file_once():
        assert (read(one), exists(two)) == ("first", False)
        one.write_text("another")
        two.write_text("there now")
        with each_file_once():
            assert (read(one), exists(two)) == ("first", False)
        assert (read(one), exists(two)) == ("first", False)
    assert (read(one), exists(two)) == ("another", True)
