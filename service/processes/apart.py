"""Work in a process of its own: what it loads, and the memory and threads that it needs, are gone when it is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, TypeVar

from service.errors import StartupError, telling_missing_packages
from service.processes.hangup import RELOAD_SIGNALS
from service.processes.signals import held_back
from service.telemetry.logs import LogFormat, configure_logging, log_configuration

Result = TypeVar("Result")

#: Is told what share of the work is done, from 0 to 1.
Progress = Callable[[float], None]

# A forked process shares what is imported. Only Linux forks safely.
CONTEXT: BaseContext = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

# For a process to be gone once it is killed; with memory of a GPU that takes a while.
_END_SECONDS = 5.0

_HELD_BACK = (signal.SIGTERM, signal.SIGINT, *RELOAD_SIGNALS)


def ignore_progress(_: float) -> None:
    """For work whose progress nobody asks for."""


class Apart(Generic[Result]):
    """Work that is being done in another process, for who has something else to do meanwhile. See `run_apart`.

    `pipe` can be read when `hear` has something to take. Who has made one has to `end` it.

    Raises:
        StartupError: no process can be started.
    """

    result: Result

    def __init__(self, work: Callable[[Progress], Result], unfinished: str) -> None:
        self._unfinished = unfinished
        self.pipe, theirs = CONTEXT.Pipe(duplex=False)
        # No daemon: it may start a process itself.
        self._process = CONTEXT.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, work, log_configuration())
        )
        try:
            start(self._process)
        except OSError as exc:
            self.pipe.close()
            raise StartupError(f"a process cannot be started: {exc.strerror}") from None
        except BaseException:  # one that was held back, such as Ctrl-C
            self.end()
            raise
        finally:
            theirs.close()

    def hear(self, progress: Progress = ignore_progress) -> bool:
        """Take one word of it, and wait for that. Whether it was the last: `result` is there.

        Raises:
            StartupError: what the work raised, or `unfinished` where it came to no end.
        """
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            raise StartupError(self._unfinished) from None
        if kind == "failed":
            raise StartupError(value)
        if kind == "done":
            self.result = value
            return True
        progress(value)
        return False

    def end(self) -> None:
        """End its process, which has told what it had to, or is not waited for any longer.

        One that waits for a drive which never answers ends when that does, and not before: it is left behind.
        """
        self._process.kill()
        self._process.join(_END_SECONDS)
        self.pipe.close()


def run_apart(
    work: Callable[[Progress], Result], *, unfinished: str, progress: Progress = ignore_progress
) -> Result:
    """What `work` returns. Both cross the border between processes: `work` is a function of a module, or a partial of
    one. Its process ends with this one, however that ends.

    Raises:
        StartupError: what `work` raised, or `unfinished` where it came to no end, or no process can be started.
    """
    apart = Apart(work, unfinished)
    try:
        while not apart.hear(progress):
            pass
        return apart.result
    finally:
        apart.end()


def _work(pipe: Pipe, work: Callable[[Progress], object], log_as: tuple[str, LogFormat] | None) -> None:
    begin()
    threading.Thread(target=end_with_parent, daemon=True).start()
    if log_as is not None:
        configure_logging(*log_as)
    try:
        with telling_missing_packages():
            pipe.send(("done", work(lambda share: pipe.send(("progress", share)))))
    except StartupError as exc:
        pipe.send(("failed", str(exc)))


def start(process: BaseProcess) -> None:
    """Start a process, which is to `begin`, or leave nothing of it.

    Raises:
        OSError: the system has no memory, no process or no file left for it.
    """
    before = _open_files()
    try:
        with held_back(*_HELD_BACK):
            process.start()
    except OSError:
        # Where the fork fails multiprocessing leaves its own pipes open: those of hours of trying are all there may be.
        for descriptor in _open_files() - before:
            os.close(descriptor)
        raise


def begin() -> None:
    """What a process does first that `start` started: it has its parent's handlers until then, and hears nothing.

    They would lose what it is told, or tell the parent a second time of what the whole process group gets. SIGTERM ends
    it; Ctrl-C and a hang-up are for its parent to pass on.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, *RELOAD_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_BACK)


def _open_files() -> set[int]:
    """The numbers of this process' open files; none elsewhere than on Linux, where processes are not forked."""
    if sys.platform != "linux":
        return set()
    found = set()
    for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):  # it is what listed them
            os.fstat(number)
            found.add(number)
    return found


def end_with_parent() -> None:
    """Wait for the parent, and do not go on for nobody, however it ended. For a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
