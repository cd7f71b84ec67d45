"""The files of a journal: appending to the newest, reading any."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.store.folders import Folder
from service.store.framing import Damage, Frame, frame, parse
from service.store.reference import Model

if sys.platform == "darwin":
    import fcntl

logger = logging.getLogger(__name__)

FORMAT: Final = 1

#: Number of the segment, and how many of its bytes.
Position = tuple[int, int]


class UnknownFormat(Exception):
    """A segment was written by a release that this one does not understand."""


class SegmentWriter:
    """Appends frames to the newest segment and begins a new one when that is full.

    One thread at a time may append, and close; any number may flush meanwhile.

    Raises OSError from the constructor when the folder cannot be written.
    """

    def __init__(self, folder: Folder, model: Model, *, segment_bytes: int, synced: bool) -> None:
        self._folder = folder
        self._head = frame(_encode_head(model), 0)
        self._segment_bytes = segment_bytes
        self._synced = synced
        self._descriptor = -1
        self._number = 0
        self._size = 0
        # Whether the newest segment's name is on the disk, if it is to be.
        self._named = False
        self._flush_lock = threading.Lock()
        self._change_lock = threading.Lock()
        # Up to where flushes reached, and up to where the last one should have that failed.
        self._flushed: Position = (0, 0)
        self._failed: Position = (0, 0)
        self.begin_segment()

    @property
    def position(self) -> Position:
        """Where the next frame goes, unless a new segment is begun for it."""
        return self._number, self._size

    def append(self, data: bytes) -> Position:
        """Write a frame; where it begins. Raises OSError, and has then changed nothing."""
        if self._descriptor < 0 or self._size + len(data) > self._segment_bytes:
            self.begin_segment()
        begin = self.position
        self._write(data)
        return begin

    def flush(self, mark: Position) -> None:
        """Return when everything up to ``mark`` is on the disk. Threads that come together share one flush.

        Raises OSError: then nothing is known about what is on the disk. Each thread is told whose mark a flush that
        failed should have reached: the kernel tells of a failure once, and the next flush would succeed.
        """
        with self._flush_lock:
            if self._failed >= mark:
                raise OSError(errno.EIO, "another thread's flush failed")
            if self._flushed < mark:
                self._flush_written()

    def flush_again(self) -> None:
        """Flush what has been written, also what a flush that failed should have reached. Raises OSError."""
        with self._flush_lock:
            self._flush_written()

    def close(self, *, flush: bool = True) -> None:
        """Flush, unless nothing is to be flushed or what is in the file is needed no more, and close it."""
        with self._flush_lock:
            try:
                if flush:
                    self._flush_written()
            finally:
                with self._change_lock:
                    descriptor, self._descriptor = self._descriptor, -1
                if descriptor >= 0:
                    os.close(descriptor)

    def leave_deleted(self) -> None:
        """Close the newest segment where somebody has deleted it or moved it away: the next append begins another."""
        with suppress(OSError):  # where that cannot be told, what there is works
            if self._descriptor >= 0 and not self._folder.segment(self._number).exists():
                self.close(flush=False)

    def _flush_written(self) -> None:
        """With the flush lock, which keeps the file open meanwhile."""
        with self._change_lock:
            descriptor, reached = self._descriptor, self.position
        if descriptor < 0 or not self._synced or self._flushed >= reached:
            return
        try:
            _flush(descriptor)
            if not self._named:
                # Not when it was made: those who append would wait for that.
                self._folder.flush_names()
                self._named = True
        except OSError:
            self._failed = reached
            raise
        self._flushed = reached

    def begin_segment(self, *, flush: bool = True) -> None:
        """Go on in a new file; ``flush`` as for `close`. Raises OSError, and has then changed nothing.

        Where somebody has deleted the folder it is in a new one: records would be refused until a restart.

        The file before is closed last: in a process that has reached its limit of open files a connection would take
        its place.
        """
        try:
            if flush:
                with self._flush_lock:
                    self._flush_written()  # before it is closed: one that cannot be flushed now is flushed again
            path, descriptor = self._create(self._number + 1)
        except FileNotFoundError:
            with self._flush_lock:  # whoever flushes may be flushing the folder, too
                self._folder.begin_anew()
            path, descriptor = self._create(self._number + 1)
        try:
            if os.write(descriptor, self._head) < len(self._head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        with self._flush_lock, self._change_lock:  # whoever flushes needs the one before until then
            before, self._descriptor = self._descriptor, descriptor
            self._named = False
            self._number, self._size = self._number + 1, len(self._head)
        if before >= 0:
            os.close(before)

    def _create(self, number: int) -> tuple[Path, int]:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
        path = self._folder.segment(number)
        return path, os.open(path, flags, 0o600)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:] if written else data)
        except OSError:
            # Half a frame must not stay in front of those to come.
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                self.close()
            raise
        with self._change_lock:
            self._size += written


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds from some offset on; ``model`` is None when its head frame was not read, or is damaged."""

    frames: list[Frame]
    damages: list[Damage]
    model: Model | None


def read(path: Path, begin: int = 0, end: int | None = None) -> Contents:
    """The frames of a segment between two offsets at which frames begin. Raises OSError and UnknownFormat."""
    with path.open("rb") as file:
        file.seek(begin)
        data = file.read() if end is None else file.read(end - begin)
    frames, damages = parse(data)
    model = None
    if frames and frames[0].count == 0:
        model = _decode_head(frames.pop(0).payload)
    return Contents(frames, damages, model)


def report(path: Path, damages: list[Damage], *, last: bool) -> None:
    """Log what of a segment could not be read, and keep a copy of it, unless that is what its process was writing when
    it died. Only the ``last`` segment of a dead process can end in that.
    """
    lost = [damage for damage in damages if not (last and damage.unfinished)]
    for damage in damages:
        size = damage.end - damage.start
        if damage not in lost:
            # Its client was never told that it is stored.
            logger.warning("the journal %s ends in %d bytes of an unfinished record", path, size)
        else:
            logger.error("the journal %s is damaged: %d bytes at %d are lost", path, size, damage.start)
    if lost:
        copy = path.parent.parent / f"damaged-{path.parent.name}-{path.name}"
        try:
            copy.touch(mode=0o600)  # before there is anything in it: addresses and users, as in the journal
            shutil.copyfile(path, copy)
        except OSError as error:
            # A full disk: what is intact must not wait for it.
            logger.error("no copy of it can be kept: %s", error.strerror)
        else:
            logger.error("a copy of it is kept as %s", copy)


def _encode_head(model: Model) -> bytes:
    head = {
        "format": FORMAT,
        "version_tag": model.version_tag,
        "filename": model.filename,
        "labels": model.labels,
    }
    return orjson.dumps(head)


def _decode_head(payload: bytes) -> Model:
    head: dict[str, Any] = orjson.loads(payload)
    if head["format"] != FORMAT:
        raise UnknownFormat(f"format {head['format']} of the journal is not known to this release")
    return Model(head["version_tag"], head["filename"], tuple(head["labels"]))


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync stops at the drive's cache there
    elif sys.platform == "win32":
        os.fsync(descriptor)
    else:
        os.fdatasync(descriptor)
