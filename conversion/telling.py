"""Printing what came of a command, which is done whether or not that can be read."""

import os
import sys
from collections.abc import Callable


def told(tell: Callable[[], None], done: str) -> int:
    """Call `tell` to print what came of a command, and return its exit status. What is `done` does not depend on who
    reads it: where `head` has gone, nothing is missing; on a full disk the report is.
    """
    try:
        tell()
        print(end="", flush=True)
    except OSError as error:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"error: {done}, but the report cannot be printed: {error.strerror}", file=sys.stderr)
        return 1
    return 0
