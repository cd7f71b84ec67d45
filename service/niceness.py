"""Threads that give way: to the event loops of all workers, which predictions wait for."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress


def give_way(niceness: int) -> None:
    """Make this thread so nice at least; on Linux, elsewhere it would be the whole process.

    A service that is nicer already may not take that back. A sandbox may forbid it: no reason not to work.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
