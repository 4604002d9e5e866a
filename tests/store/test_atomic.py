from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from simhpc.store.atomic import replacing, write_text


def test_text_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a" / "f.txt", "one")
    write_text(tmp_path / "a" / "f.txt", "two\n")
    assert (tmp_path / "a" / "f.txt").read_bytes() == b"two\n"


def test_nothing_appears_when_verification_fails(tmp_path):
    def refuse(_):
        raise ValueError("not what was meant")

    with pytest.raises(ValueError, match="not what was meant"), replacing(tmp_path / "f", verify=refuse) as temporary:
        temporary.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_the_final_name_alone(tmp_path):
    (tmp_path / "f").write_text("old")
    program = textwrap.dedent("""
        import os, sys, pathlib
        from simhpc.store.atomic import replacing
        with replacing(pathlib.Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), 9)
    """)
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "f"], check=False).returncode == -9
    assert (tmp_path / "f").read_text() == "old"


def test_files_have_the_users_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "f", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
