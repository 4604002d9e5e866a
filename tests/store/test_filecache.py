from __future__ import annotations

import os

import pytest

from simhpc.store.filecache import cached_by_file


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
