"""A timer of the event loop that is exact to some microseconds, where event loops sleep in whole milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Final

# <time.h> and <sys/timerfd.h>. `time.perf_counter` reads the same clock on Linux.
_CLOCK_MONOTONIC: Final = 1
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Calls `on_time` on the event loop at the time that `arm` was last given, once.

    A timer of the kernel's (timerfd) on Linux. Elsewhere it is the event loop's own, up to a millisecond late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_time: Callable[[], None]) -> None:
        self._loop = loop
        self._on_time = on_time
        self._handle: asyncio.TimerHandle | None = None
        self._file: int | None = None
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._spec = _Itimerspec()
            self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_CLOEXEC | os.O_NONBLOCK)
            if self._file < 0:
                raise OSError(ctypes.get_errno(), "timerfd_create")
            loop.add_reader(self._file, self._expired)

    def arm(self, at: float) -> None:
        """Be on time at `at`, in seconds of `time.perf_counter`, instead of what was asked before."""
        if self._file is None:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0.0, at - time.perf_counter()), self._on_time)
            return
        seconds = int(at)
        # Nothing at all would disarm it.
        self._spec.value.seconds = seconds
        self._spec.value.nanoseconds = max(1, int((at - seconds) * 1e9))
        if self._libc.timerfd_settime(self._file, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never be on time again."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file is not None:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = None

    def _expired(self) -> None:
        assert self._file is not None
        os.read(self._file, 8)  # or it would be called again at once
        self._on_time()
