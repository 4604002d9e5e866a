"""Logs of several starts in one file."""

from __future__ import annotations

import threading
import time

from simhpc.cluster import logs

FIRST = "submitit INFO (t) - Starting with JobEnvironment(job_id=7_0)\n===== simhpc: attempt 1 of job 7_0\nworking\n"
SECOND = "submitit INFO (t) - Starting with JobEnvironment(job_id=7_0)\n===== simhpc: attempt 2 of job 7_0\ndone\n"


def test_starts_are_told_apart():
    assert logs.split(FIRST + SECOND) == [FIRST, SECOND]
    assert logs.split(FIRST) == [FIRST]
    assert logs.split("module: command not found\n") == ["module: command not found\n"]
    assert logs.split("") == []
    assert logs.split("loading\n" + FIRST + "killed\n" + SECOND) == ["loading\n" + FIRST + "killed\n", SECOND]


def test_a_log_is_followed_before_it_exists_and_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_ASK_S", 0.0)
    monkeypatch.setattr(logs, "_POLL_S", 0.05)
    path, over = tmp_path / "x.out", threading.Event()

    def write():
        time.sleep(0.2)
        with path.open("a") as file:
            for part in (FIRST, SECOND):
                file.write(part)
                file.flush()
                time.sleep(0.2)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert "".join(logs.follow(path, over.is_set)) == FIRST + SECOND
    writer.join()
