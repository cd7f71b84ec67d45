"""SIGHUP: a reload is asked for; or the terminal that the service was started from is gone, which means the end. It is
listened for with the signals that always mean the end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

RELOAD_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()

# One that is gone is no terminal any longer: whether it was one is to be known from the beginning.
_TERMINAL = os.isatty(0)


def hold_back() -> None:
    """From here on SIGHUP waits until it is let through. Until somebody listens for it, it would end the process."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK, RELOAD_SIGNALS)


def listen(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    """From here on `handler` gets what ends the service and what reloads it."""
    for number in (signal.SIGTERM, signal.SIGINT, *RELOAD_SIGNALS):
        signal.signal(number, handler)


def let_through() -> None:
    """Somebody listens; one that has come meanwhile is heard now."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RELOAD_SIGNALS)


def hung_up() -> bool:
    """Whether the terminal that the service was started from is gone."""
    return _TERMINAL and not os.isatty(0)
