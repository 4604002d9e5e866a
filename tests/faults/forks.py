"""A process that has imported everything once, and whose forks do one piece of work each, with a fault built in.

Importing torch takes seconds, and two hundred kills need four hundred processes. The server itself computes nothing: a
process that has used threads cannot be forked safely.

A point at which a fork is killed is named by what it is about to do there: `(operation, file, number)`, the number
counting the same operation on the same file. Operations are all that change the file system from Python (creating or
opening a file for writing, renaming, removing, making and removing folders, and fsync), and of h5py, which writes from
C, creating a file, writing a dataset and closing. Killed right after an operation means killed before the next.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Point = tuple[str, str, int]

END: Point = ("end", "", 1)
"""After the last operation."""


@dataclass(frozen=True)
class Work:
    """What one fork does.

    Attributes:
        what: `task`, `prepare` or `all`: one task, the preparation of a run, or that and all tasks of all stages.
        root: the run directory.
        study: its study file; not needed for a task.
        stage, model: the task.
        kill_at: where it is killed; None nowhere.
        torn: of what it has written and not flushed to the disk, the second half is lost, as if the machine had failed.
        kill_after_s: when it is killed from outside; None never.
        open_files: how many files it may have open; None as many as there may be.
        file_bytes: how large a file may become; None as large as there is room for.
        clock_jumps_s: added to the time of day again at each reading, negative: the clock goes backwards all the time.
        stale: a file whose handle becomes stale while h5py reads it.
    """

    what: str
    root: str
    study: str = ""
    stage: str = ""
    model: str = ""
    kill_at: Point | None = None
    torn: bool = False
    kill_after_s: float | None = None
    open_files: int | None = None
    file_bytes: int | None = None
    clock_jumps_s: float = 0.0
    stale: str = ""


@dataclass(frozen=True)
class End:
    """How a fork ended.

    Attributes:
        code: 0 done; 2 a SimhpcError; 1 anything else; negative: the signal that ended it.
        log: what it printed, and its traceback.
        points: what it did to the file system, in order.
        elapsed_s: seconds it took.
        cpu_s: seconds of a core.
    """

    code: int
    log: str
    points: list[Point] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Forks:
    """The server, as its tests see it."""

    def __init__(self) -> None:
        here = Path(__file__)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here.parents[2], here.parents[1])))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.forks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=here.parents[2],
        )  # fmt: skip

    def do(self, *works: Work) -> list[End]:
        """Do one or several pieces of work at once, and wait for them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(work) for work in works]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return [End(**{**end, "points": [_point(point) for point in end["points"]]}) for end in answer]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def serve() -> None:
    """Read work from standard input, a line of JSON at a time, and answer each with a line."""
    for name in ("simhpc.zoo.timm_import", "simhpc.stages.prepare"):
        importlib.import_module(name)
    for line in sys.stdin:
        works = [Work(**{**work, "kill_at": _point(work["kill_at"])}) for work in json.loads(line)]
        print(json.dumps([asdict(end) for end in _do(works)]), flush=True)


def _do(works: Sequence[Work]) -> list[End]:
    logs, notes, imported = ([os.memfd_create("") for _ in works] for _ in range(3))
    started_s = time.monotonic()
    pids = []
    for work, log, note, modules in zip(works, logs, notes, imported, strict=True):
        if (pid := os.fork()) == 0:
            code = _child(work, log, note)
            os.write(modules, "\n".join(sys.modules).encode())
            os._exit(code)
        pids.append(pid)
    ends = []
    for work, pid, log, note in zip(works, pids, logs, notes, strict=True):
        if work.kill_after_s is not None:
            time.sleep(max(0.0, started_s + work.kill_after_s - time.monotonic()))
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        points = [_point(json.loads(line)) for line in _text(note).splitlines()]
        ends.append(End(code, _text(log), points, time.monotonic() - started_s, usage.ru_utime + usage.ru_stime))  # type: ignore[arg-type]
    # What one fork had to import, the next one will find here.
    for name in itertools.chain.from_iterable(_text(modules).splitlines() for modules in imported):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    return ends


def _text(descriptor: int) -> str:
    with os.fdopen(descriptor, "r", errors="replace") as file:
        file.seek(0)
        return file.read()


def _child(work: Work, log: int, note: int) -> int:
    from simhpc.errors import SimhpcError

    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        at_end = _break(work, lambda point: os.write(note, (json.dumps(point) + "\n").encode()))
        _work(work)
        at_end()
    except SimhpcError as error:
        print(f"SimhpcError: {error}", flush=True)
        return 2
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


def _work(work: Work) -> None:
    from simhpc.stages import evaluate, progress, stage_module, stages_of, train
    from simhpc.stages.prepare import prepare
    from simhpc.stages.task import execute_task
    from simhpc.study import load_study

    # What is written now and then is written whenever it can be: the same operations in every repetition.
    evaluate._SAVE_INTERVAL_S = progress._MIN_INTERVAL_S = 0.0
    train._SAVING_SHARE = float("inf")
    if work.what == "task":
        execute_task(work.root, work.stage, work.model)
        return
    run = prepare(load_study(Path(work.study)), Path(work.root))
    if work.what == "all":
        for stage in stages_of(run.study):
            for task in stage_module(stage).tasks(run):
                execute_task(work.root, stage, task.model)


def _break(work: Work, note: Callable[[Point], object]) -> Callable[[], None]:
    """Build the faults into this process, and note what it does to the file system.

    Returns:
        To be called when the work is done.
    """
    root = str(Path(work.root).resolve())
    counts: Counter[tuple[str, str]] = Counter()
    flushed_bytes: dict[str, int] = {}  # of all files that were written to

    def at(operation: str, path: object, to: object = None) -> None:
        if not isinstance(path, str | os.PathLike) or not (absolute := os.path.abspath(path)).startswith(root):  # noqa: PTH100
            return
        name = re.sub(r"\.tmp\..*", ".tmp", absolute.removeprefix(root).lstrip("/"))
        counts[operation, name] += 1
        point = (operation, name, counts[operation, name])
        note(point)
        if operation == "fsync":
            flushed_bytes.setdefault(absolute, 0)  # also what neither Python nor h5py has written
        if point == work.kill_at:
            die()
        if operation in ("open", "h5 create"):
            flushed_bytes.setdefault(absolute, 0)
        elif operation == "fsync":
            with contextlib.suppress(FileNotFoundError):  # another copy of the task has replaced it
                flushed_bytes[absolute] = os.stat(absolute).st_size  # noqa: PTH116
        elif operation == "rename" and absolute in flushed_bytes:
            flushed_bytes[os.path.abspath(str(to))] = flushed_bytes.pop(absolute)  # noqa: PTH100

    def die() -> None:
        for path, kept in flushed_bytes.items() if work.torn else ():
            if os.path.isfile(path):  # noqa: PTH113
                size = os.stat(path).st_size  # noqa: PTH116
                os.truncate(path, size - max(0, size - kept) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    _watch_python(at)
    _watch_h5py(at, work.stale)
    if work.open_files is not None or work.file_bytes is not None:
        import resource

        if work.open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (work.open_files, work.open_files))
        if work.file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # Python does so at its start; C programs die of it
            resource.setrlimit(resource.RLIMIT_FSIZE, (work.file_bytes, work.file_bytes))
    if work.clock_jumps_s:
        now_s, n_readings = time.time(), 0

        def jumping() -> float:
            nonlocal n_readings
            n_readings += 1
            return now_s + n_readings * work.clock_jumps_s

        time.time = jumping
    return lambda: die() if work.kill_at == END else None


def _watch_python(at: Callable[..., None]) -> None:
    names = {"os.rename": "rename", "os.remove": "remove", "os.mkdir": "mkdir", "os.rmdir": "rmdir", "os.link": "link"}

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                at("open", path)
        elif event in names:
            # shutil.rmtree removes by names relative to an open folder.
            folder = arguments[-1] if event in ("os.remove", "os.rmdir") else -1
            path = arguments[0]
            if isinstance(folder, int) and folder >= 0:
                path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)  # noqa: PTH115, PTH118
            at(names[event], path, arguments[1])

    sys.addaudithook(heard)
    # Not done: it is the process that fails here, and hundreds of real ones wait for the disk.
    os.fsync = lambda descriptor: at("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115


def _watch_h5py(at: Callable[..., None], stale: str) -> None:
    import errno

    import h5py

    init, close, write, read = h5py.File.__init__, h5py.File.close, h5py.Dataset.__setitem__, h5py.Dataset.__getitem__

    def new_init(self: Any, name: Any, mode: str = "r", *arguments: Any, **options: Any) -> None:
        if mode != "r":
            at("h5 create", os.fspath(name))
        init(self, name, mode, *arguments, **options)

    def new_close(self: Any) -> None:
        if self and self.mode != "r":
            at("h5 close", self.filename)
        close(self)

    def new_write(self: Any, *arguments: Any) -> None:
        at(f"h5 write {self.name}", self.file.filename)
        write(self, *arguments)
        self.file.flush()

    def new_read(self: Any, *arguments: Any) -> Any:
        if stale and self.file.filename == stale:
            raise OSError(f"Can't synchronously read data (file read failed: errno = {errno.ESTALE}, error message = "
                          f"'{os.strerror(errno.ESTALE)}')")  # fmt: skip
        return read(self, *arguments)

    h5py.File.__init__, h5py.File.close = new_init, new_close
    h5py.Dataset.__setitem__, h5py.Dataset.__getitem__ = new_write, new_read


def _point(plain: Sequence[Any] | None) -> Point | None:
    return None if plain is None else (str(plain[0]), str(plain[1]), int(plain[2]))


@contextlib.contextmanager
def started() -> Iterator[Forks]:
    forks = Forks()
    try:
        yield forks
    finally:
        forks.close()


if __name__ == "__main__":
    serve()
