"""Standard output whose failures are told from every other error of the system."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class OutputFailed(Exception):
    """The output cannot be written. `reason` is the system's; empty where its reader has just gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.reason = "" if isinstance(error, BrokenPipeError) else error.strerror or str(error)


class _Output:
    """A text stream whose `OSError`s become `OutputFailed`, which libraries on the way do not take for their own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputFailed(error) from None

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputFailed(error) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def checked_output() -> Iterator[None]:
    """Within, all that is written to `sys.stdout` is, or `OutputFailed` is raised, by the end at the latest."""
    stream = sys.stdout
    if stream is None:  # started with it closed: print() writes nothing then
        yield
        return
    sys.stdout = cast("TextIO", _Output(stream))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # Python's own flush at exit would only print a warning
    except OutputFailed:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
    finally:
        sys.stdout = stream
