"""Threads that give way: to the event loops of all workers, which predictions wait for."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def give_way(niceness: int) -> None:
    """Make this thread nicer than its process by so much; on Linux, elsewhere it would be the whole process.

    A sandbox may forbid it: no reason not to work.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.nice(niceness)
