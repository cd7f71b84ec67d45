"""Noticing that a file was replaced: by its time, its size and which file it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Signature = tuple[int, int, int] | None


class WatchedFiles:
    """Files that may be replaced while the service runs. Looking costs a system call for each.

    Links are followed: Kubernetes replaces a mounted secret by pointing a link elsewhere.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen = self._look()

    def changed(self) -> bool:
        """Whether any is another than when this was asked last."""
        now = self._look()
        if now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> list[Signature]:
        return [_signature(path) for path in self._paths]


def _signature(path: Path) -> Signature:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
