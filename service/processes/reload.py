"""Asking a running service to reload: SIGHUP, or the control socket, which also tells how it went.

A connection to the control socket is the request; what comes back when the roll is over is one line of JSON. Who may
connect is a matter of the socket file's permissions: only the service's user, and root.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import orjson

from service.canary import check_canary
from service.engine.calibration import calibrated
from service.errors import StartupError
from service.processes.apart import Progress
from service.processes.cpus import check_layout
from service.settings import Settings, load_settings
from service.telemetry.logs import Seldom

log = logging.getLogger(__name__)

# Seconds to wait when the process cannot open another file.
_OUT_OF_FILES = 1.0

# What the supervisor has used up by the time of a reload: a change waits for a restart.
_FIXED = ("host", "port", "workers", "control_socket", "log_level", "log_format")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reload went: what is served now, and why it is not what was asked for. `canary_tag` is None for none.

    Where some workers had been replaced when it failed, what the others serve; `error` tells the mix.
    """

    version_tag: str
    error: str | None
    canary_tag: str | None = None


def reloaded(current: Settings, _: Progress) -> Settings:
    """The settings as they are now in `.env`, where the environment leaves them open. For `apart`: it may take long.

    Raises:
        StartupError: a value is wrong, or the new model or provider cannot be used.
    """
    fresh = load_settings()
    fresh = calibrated(replace(fresh, workers=fresh.workers or current.workers), current)
    check_canary(fresh, current)
    kept = {name: getattr(current, name) for name in _FIXED}
    if waiting := [name.upper() for name, value in kept.items() if getattr(fresh, name) != value]:
        log.warning("not reloaded, since it needs a restart: %s", ", ".join(waiting))
    fresh = replace(fresh, **kept)
    check_layout(fresh)
    return fresh


def differences(old: Settings, new: Settings) -> list[str]:
    """Names of the settings that changed. Not their values: one is a password."""
    return [each.name.upper() for each in fields(old) if getattr(old, each.name) != getattr(new, each.name)]


class ControlSocket:
    """The supervisor's end. It has a `fileno`, and is readable when somebody asks."""

    def __init__(self, path: Path, listener: socket.socket) -> None:
        self._path = path
        self._inode = path.lstat().st_ino
        self._listener = listener
        self._asking: list[socket.socket] = []
        # Until then whoever waits for it would be told at once of a request that cannot be taken.
        self.looked_at_from = 0.0
        self._told = Seldom()

    @classmethod
    def open(cls, path: Path | None) -> ControlSocket | None:
        """Listen at `path`; None where that cannot be, which is logged: SIGHUP remains.

        A socket that is there is replaced: a service that was killed leaves its own. Of two that share a path, the one
        that was started last is found. Anything else that is there stays: it is a database, say, and a mistake.
        """
        if path is None or not hasattr(socket, "AF_UNIX"):
            return None
        own = path.parent / f"{path.name}.{os.getpid()}"  # `with_name` refuses a folder such as `/`
        listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            listener.bind(str(own))
            listener.listen()
            listener.setblocking(False)
            if path.exists() and not path.is_socket():
                raise FileExistsError(errno.EEXIST, "what is there is no socket; check CONTROL_SOCKET")
            own.rename(path)
        except OSError as exc:
            listener.close()
            with contextlib.suppress(OSError):  # where it cannot be made it cannot be removed
                own.unlink()
            log.warning("no control socket at %s (%s): reload with SIGHUP", path, exc.strerror or exc)
            return None
        finally:
            os.umask(mask)
        return cls(path, listener)

    def fileno(self) -> int:
        """For `wait`."""
        return self._listener.fileno()

    def accept(self) -> bool:
        """Take a request, which `answer` will answer. False if there is none after all, or it cannot be taken now."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as exc:  # no files left, no memory left
            now = time.monotonic()
            if self._told.is_due(now):
                log.error("a request to reload cannot be taken, and waits: %s", exc.strerror)
            self.looked_at_from = now + _OUT_OF_FILES
            return False
        connection.setblocking(False)
        self._asking.append(connection)
        return True

    def answer(self, outcome: Outcome) -> None:
        """Tell all who asked."""
        line = orjson.dumps(outcome) + b"\n"
        for connection in self._asking:
            with connection, contextlib.suppress(OSError):  # it may not have waited
                connection.sendall(line)
        self._asking.clear()

    def close(self) -> None:
        """Close this process' end only."""
        self._listener.close()
        for connection in self._asking:
            connection.close()

    def remove(self) -> None:
        """Close, and remove the file, unless another service has taken its place, or its folder lets nothing go.

        The next service replaces one that stays.
        """
        self.close()
        with contextlib.suppress(OSError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()


def request_reload(path: Path | None) -> Outcome:
    """Ask the service at `path` to reload, and wait until it has.

    Raises:
        StartupError: there is none, or it ended meanwhile.
    """
    if path is None or not hasattr(socket, "AF_UNIX"):
        raise StartupError("this service has no control socket; set CONTROL_SOCKET")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            line = connection.makefile("rb").readline()
    except OSError as exc:
        raise StartupError(
            f"no service answers at {path} ({exc.strerror or exc}): start this where it was started, "
            "or set CONTROL_SOCKET as it was set"
        ) from None
    if not line:
        raise StartupError("the service ended before it had reloaded")
    return Outcome(**orjson.loads(line))
