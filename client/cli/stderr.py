"""Standard error whose failures change nothing of how a command ends."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TextIO, cast


class _Messages:
    """A text stream that drops what it cannot write: nobody can be told, and the exit code still says what happened."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def messages(stream: TextIO | None) -> TextIO:
    """What `sys.stderr` is to be, for good: Python flushes it once more at exit."""
    if stream is None:  # started with it closed: `print` would take the output in its place
        stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", errors="backslashreplace")
    return cast("TextIO", _Messages(stream))
