"""The log, on stderr: lines for people, or a JSON object a line for programs.

It tells of the service, not of its clients: no image, no address, no name. Where it is about one request it has that
request's id.
"""

from __future__ import annotations

import faulthandler
import io
import json
import logging
import math
import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

LogFormat = Literal["console", "json"]

_CONSOLE = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `timestamp` (ISO 8601, UTC), `level`, `logger`, `process`, `message`.

    Beside them `exception`, the traceback, where there is one, and `request_ids` where the log call brings them as
    `extra`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if (request_ids := getattr(record, "request_ids", None)) is not None:
            line["request_ids"] = request_ids
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a character, as in the name of a file that is no UTF-8
            return json.dumps(line, default=str)


class Seldom:
    """For a line of the log that would come again and again: once a minute is enough."""

    _SECONDS = 60.0

    def __init__(self) -> None:
        self._silent_until = -math.inf

    def is_due(self, now: float) -> bool:
        """Whether to write it now, by a clock that does not go back."""
        if now < self._silent_until:
            return False
        self._silent_until = now + self._SECONDS
        return True


class Reasons(set[str]):
    """Why something fails, as the log has it already: each reason once in an outage, and not too many of them."""

    _MOST = 10  # there may be a number in each

    def is_news(self, reason: str) -> bool:
        """Whether to write this reason."""
        if reason in self or len(self) >= self._MOST:
            return False
        self.add(reason)
        return True


# As the log was configured in this process, for those that it spawns, which inherit none.
_configuration: tuple[str, LogFormat] | None = None


def log_configuration() -> tuple[str, LogFormat] | None:
    """What `configure_logging` was told in this process; None where it was told nothing."""
    return _configuration


def configure_logging(level: str, form: LogFormat) -> None:
    """Log to stderr from `level` on. The libraries' chatter is left out.

    Another call changes nothing of it, nor does one in a process that was forked since: that has its parent's log.
    """
    global _configuration
    _configuration = level, form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(_CONSOLE))
    logging.basicConfig(level=level, handlers=[handler])
    # Alembic tells of each of its plugins; the store says itself what it migrated.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def connection_log() -> logging.Logger:
    """For the library of connections, without what peers can cause: handshakes that fail and connections that drop."""
    logger = logging.getLogger("service.websockets")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_no_peer_caused)
    # The event loop's, which tells of each write between the end of a TLS connection and when it says so to us: uvloop,
    # and asyncio's own, which is Windows', each in its words.
    logging.getLogger("asyncio").addFilter(_no_peer_caused)
    return logger


def _no_peer_caused(record: logging.LogRecord) -> bool:
    return record.msg not in (
        "opening handshake failed",
        "SSL connection is closed",
        "socket.send() raised exception.",
    )


def silence_native_libraries() -> None:
    """Drop what C libraries write to stderr by themselves; for a process of its own.

    libpng and OpenCV complain there of every damaged image, as often as a client sends one: lines that are no log's,
    and where nobody reads them, a pipe that fills up and holds up the process. The log, Python's own messages and the
    trace of a crash (`faulthandler`) still go where stderr leads.
    """
    sys.stderr.flush()
    # Unbuffered, as Python's own: what a full disk did not take would be tried again at the end, and fail it.
    raw = os.fdopen(os.dup(2), "wb", buffering=0)
    kept = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = kept
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(kept)
    faulthandler.enable(kept)
