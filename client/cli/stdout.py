"""Standard output that takes every text, and whose failures are told from every other error of the system."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
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


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What an encoding cannot write, as JSON escapes it: in JSON it is read as what it was, elsewhere it is told."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("visionai.escaped", _escaped)


@contextmanager
def checked_output() -> Iterator[None]:
    """Within, all that is written to `sys.stdout` is, or `OutputFailed` is raised, by the end at the latest.

    What its encoding does not have, as a bar in a file on Windows, is escaped.
    """
    stream = sys.stdout
    if stream is None:  # started with it closed: nothing is written, and nothing fails
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
        return
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="visionai.escaped")
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
