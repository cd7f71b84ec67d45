"""Signals that wait, without anything heavy to import: it is for the time in which that is imported."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Until the end these signals wait, and in what is started meanwhile until it lets them through.

    They do not on Windows, which has no such thing.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear() -> None:
    """From here on SIGTERM and SIGINT come, and the ends of processes are told, whatever who started this one does.

    What it blocks, and that it ignores SIGCHLD, is passed on to what it starts. A service could not be stopped then; or
    the system would clear its workers away when they end, and keep from it that they have.
    """
    if sys.platform != "win32":
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
