"""Functions called in another process: a library that crashes or hangs on a damaged file takes nothing else with it."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self


class CallFailedError(Exception):
    """The process ended, took too long, or the function raised; the message says which."""


class Worker:
    """One process that does one call at a time; a new one takes its place when it has ended or was stopped."""

    def __init__(self) -> None:
        # Not forked: this process may have threads of torch's, whose locks would stay shut in a copy of it.
        self._context = multiprocessing.get_context("spawn")
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """What `function(*arguments)` returns there.

        Args:
            function: of a module; arguments and result are plain data.
            timeout_s: after which it is stopped.

        Raises:
            CallFailedError: it did not return.
        """
        pipe = self._start()
        try:
            pipe.send((function, arguments))
            if not pipe.poll(timeout_s):
                raise CallFailedError(f"reading it had not ended after {timeout_s:.0f} s")
            is_result, value = pipe.recv()
        except (EOFError, OSError):
            process = self._process
            assert process is not None
            process.join(10)
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            self._stop()
            raise CallFailedError(f"reading it ended the process ({how})") from None
        except BaseException:
            self._stop()
            raise
        if not is_result:
            raise CallFailedError(value)
        return value

    def _start(self) -> Connection:
        if self._process is None or not self._process.is_alive() or self._pipe is None:
            self._stop()
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
        return self._pipe

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._pipe = self._process = None


def _serve(pipe: Connection) -> None:
    # Ctrl-C is for the one who asked, who then ends this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        pipe.send(answer)
