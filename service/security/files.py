"""Files that may be replaced while the service runs: noticed by their time, their size and which file it is.

And which of them may be read at all.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from service.errors import StartupError

log = logging.getLogger(__name__)

Signature = tuple[int, int, int] | None


def refuse_endless(setting: str, path: Path) -> None:
    """Let files be read, and what is told of by reading it: that it is a folder, or is not there.

    Raises:
        StartupError: it is a FIFO, a device or a socket, and reading it might never end.
    """
    with suppress(OSError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise StartupError(f"{setting}={path} is no file, but a FIFO, a device or a socket")


class WatchedFiles:
    """Files that may be replaced, and `what` they hold. Looking costs a system call for each.

    Links are followed: Kubernetes replaces a mounted secret by pointing a link elsewhere.
    """

    def __init__(self, what: str, paths: Sequence[Path]) -> None:
        self._what = what
        self._paths = paths
        self._seen = self._look()
        self._fault: str | None = None

    def refresh(self, read: Callable[[], None]) -> bool:
        """Have `read` read the files if one was replaced since they were looked at last. Returns whether it did.

        What it refuses, with a `StartupError`, is logged once, and tried again each time: a file that is given to the
        service's user when it is there already is the same file.
        """
        now = self._look()
        replaced, self._seen = now != self._seen, now
        if not replaced and self._fault is None:
            return False
        try:
            read()
        except StartupError as exc:
            if replaced or str(exc) != self._fault:
                log.error("%s: what was read before stays in force: %s", self._what, exc)
            self._fault = str(exc)
            return False
        self._fault = None
        log.info("%s read again", self._what)
        return True

    def _look(self) -> list[Signature]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
