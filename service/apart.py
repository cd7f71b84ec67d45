"""Work in a process of its own: what it loads, and the memory and threads that it needs, are gone when it is done."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import TypeVar, cast

from service.errors import StartupError

Result = TypeVar("Result")

#: Is told what share of the work is done, from 0 to 1.
Progress = Callable[[float], None]


def ignore_progress(_: float) -> None:
    """For work whose progress nobody asks for."""


def run_apart(
    work: Callable[[Progress], Result], *, unfinished: str, progress: Progress = ignore_progress
) -> Result:
    """What `work` returns. Both cross the border between processes: `work` is a function of a module, or a partial of
    one. Its process ends with this one, however that ends.

    Raises:
        StartupError: what `work` raised, or `unfinished` where it came to no end, or no process can be started.
    """
    # A forked process shares what is imported. Only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work), daemon=True)  # type: ignore[attr-defined]
    try:
        process.start()
    except OSError as exc:
        ours.close()
        raise StartupError(f"a process cannot be started: {exc.strerror}") from None
    finally:
        theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "done":
                return cast("Result", value)
            if kind == "failed":
                raise StartupError(value)
            progress(value)
    except EOFError:
        raise StartupError(unfinished) from None
    finally:
        process.kill()  # it has told what it had to, or Ctrl-C came meanwhile
        process.join()
        ours.close()


def _work(pipe: Pipe, work: Callable[[Progress], object]) -> None:
    # A forked process has its parent's handlers: a supervisor's, at a reload, would tell it of these signals twice.
    # Ctrl-C and a hang-up reach the parent too, and this process ends with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        pipe.send(("done", work(lambda share: pipe.send(("progress", share)))))
    except StartupError as exc:
        pipe.send(("failed", str(exc)))


def end_with_parent() -> None:
    """Wait for the parent, and do not go on for nobody, however it ended. For a thread of its own."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
