"""Who owns which journal: one folder per process, held by a lock that the kernel releases when the process dies.

::

    JOURNAL_DIR/.lock                            held for moments, while folders are made, taken over or removed
    JOURNAL_DIR/journal-<random>/.lock           held by the owner for as long as it lives
    JOURNAL_DIR/journal-<random>/00000001.segment ...
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

_LOCK: Final = ".lock"
_PREFIX: Final = "journal-"
_NAME: Final = re.compile(_PREFIX + "[0-9a-f]{12}")
_SUFFIX: Final = ".segment"


class Folder:
    """A folder of segments that this process holds."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._directory: int | None = None

    def segment(self, number: int) -> Path:
        """The path of a segment."""
        return self.path / f"{number:08d}{_SUFFIX}"

    def segments(self) -> list[Path]:
        """The segments that exist, oldest first. Raises OSError when that cannot be told."""
        try:
            return sorted(path for path in self.path.iterdir() if path.suffix == _SUFFIX)
        except FileNotFoundError:
            return []

    def flush_names(self) -> None:
        """Make the names of new files as durable as their content, which Windows does by itself. Raises OSError.

        The folder stays open: a process that has reached its limit of open files is to store all the same.
        """
        if sys.platform != "win32":
            if self._directory is None:
                self._directory = os.open(self.path, os.O_RDONLY)
            os.fsync(self._directory)

    def begin_anew(self) -> None:
        """Be another folder, in place of one that somebody has deleted or moved away. Raises OSError."""
        another = create(self.path.parent)
        logger.error("the journal %s was deleted or moved away, and goes on in %s", self.path, another.path)
        with suppress(OSError), ExitStack() as held:
            self._close(held)
        self.path, self._lock, self._directory = another.path, another._lock, None

    def delete(self, segments: Iterable[Path]) -> None:
        """Delete segments that hold nothing that the database lacks.

        One that cannot be deleted, since the disk is read-only by now say, does no harm: whoever reads it again stores
        nothing twice.
        """
        for path in segments:
            with suppress(OSError):
                path.unlink()

    def delete_all(self, *, but: Path | None = None) -> None:
        """Delete all segments, or all but one; see `delete`."""
        with suppress(OSError):
            self.delete(path for path in self.segments() if path != but)

    def release(self) -> None:
        """Let another process take what is in it. Removed when no segment is left, if it can be removed."""
        with suppress(OSError), ExitStack() as held:
            self._close(held)
            if not self.path.exists():
                return
            with _exclusively(self.path.parent):
                # First, because Windows does not delete what is open. Nobody looks before the outer lock is free.
                held.close()
                if not self.segments():
                    (self.path / _LOCK).unlink()
                    self.path.rmdir()

    def _close(self, held: ExitStack) -> None:
        held.callback(os.close, self._lock)
        if self._directory is not None:
            held.callback(os.close, self._directory)


def create(root: Path) -> Folder:
    """A new folder, held by this process. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _exclusively(root):
        path = root / f"{_PREFIX}{secrets.token_hex(6)}"
        path.mkdir(mode=0o700)
        lock = _try_lock(path / _LOCK)
        if lock is None:
            raise OSError(f"{path} cannot be locked")
        return Folder(path, lock)


def adopt(root: Path, told: set[Path]) -> tuple[list[Folder], OSError | None]:
    """Take over the folders whose owners have died.

    One that cannot be opened keeps nobody from the others; it is logged, unless it is in ``told``, and put there. The
    error of the last such one is returned, too.

    Raises OSError when ``root`` cannot be read.
    """
    adopted, failed = [], None
    with _exclusively(root):
        for path in sorted(root.iterdir()):
            if not _NAME.fullmatch(path.name):
                continue
            # Made where it is missing: the owner died while it made the folder, or while it removed it.
            try:
                lock = _try_lock(path / _LOCK)
            except OSError as error:
                failed = error
                if path not in told:
                    told.add(path)
                    logger.error("the journal %s cannot be taken over: %s", path, error.strerror)
                continue
            if lock is not None:
                adopted.append(Folder(path, lock))
    return adopted, failed


def any_segments(root: Path) -> bool:
    """Whether there are any in ``root``, of a process that lives or of one that died."""
    return any(root.glob(f"{_PREFIX}*/*{_SUFFIX}"))


@contextmanager
def _exclusively(root: Path) -> Iterator[None]:
    descriptor = _open(root / _LOCK)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    descriptor = _open(path)
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
