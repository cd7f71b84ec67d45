"""A backlog on disk: records are appended to a journal before they are acknowledged, and read again after a crash.

Appending is one ``write`` per micro-batch. Until the database has them, the newest records are also kept in memory,
so that the journal is read only when more have piled up than memory is meant for, and after a crash.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.settings import Fsync
from service.store import folders, segments
from service.store.backlog import Batch, oldest
from service.store.framing import frame
from service.store.orphans import Orphans
from service.store.reference import Model
from service.store.segments import Position, SegmentWriter
from service.telemetry.logs import Seldom

logger = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 4 * 1024 * 1024
JOURNAL_BYTES: Final = 4 * 1024**3
MEMORY_RECORDS: Final = 10_000
FSYNC_INTERVAL_S: Final = 1.0
RENEW_INTERVAL_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One append that is in memory too."""

    payload: bytes
    count: int
    segment: int


class JournalBacklog:
    """See :class:`service.store.backlog.Backlog`. What ``append`` took is in the journal when it returns True.

    With ``fsync`` "never" or "interval" that means: in the operating system's hands, safe from the death of this
    process but not from a power loss ("interval": of the last second). With "always" it is on the disk itself;
    threads that append at the same time share a flush.

    What the database has is deleted with its segment: where others follow it, and where nothing waits, though then at
    most every ``RENEW_INTERVAL_S``.

    What processes that died left in the same ``root`` is taken over by ``orphans``; by default they are its own.

    Raises OSError from the constructor when ``root`` cannot be made or written, or no thread can be started to flush.
    """

    def __init__(
        self,
        root: Path,
        model: Model,
        *,
        fsync: Fsync = "interval",
        segment_bytes: int = SEGMENT_BYTES,
        journal_bytes: int = JOURNAL_BYTES,
        memory_records: int = MEMORY_RECORDS,
        orphans: Orphans | None = None,
    ) -> None:
        self._model = model
        self._fsync: Fsync = fsync
        self._journal_bytes = journal_bytes
        self._memory_records = memory_records
        self._lock = threading.Lock()
        self._sealed = False
        self._closed = False
        self._append_error: str | None = None
        self._flush_error: str | None = None
        self._told = False
        # A disk that has room for one record and not for the next would fill the log, too.
        self._tells = Seldom()

        self._folder = folders.create(root)
        try:
            self._writer = SegmentWriter(
                self._folder, model, segment_bytes=segment_bytes, synced=fsync != "never"
            )
        except OSError:
            self._folder.release()
            raise
        # Bytes of each segment that exists, by number, and of all.
        self._sizes: dict[int, int] = {}
        self._bytes = 0

        # The queue's head is in memory. When _spilled is set the rest is on disk only, from that position on.
        self._memory: deque[Entry] = deque()
        self._memory_count = 0
        self._spilled: Position | None = None
        self._pending = 0

        self._next_renewal = time.monotonic() + RENEW_INTERVAL_S

        self._orphans = orphans or Orphans(root, model)
        self._took_orphans = False

        self._dirty = threading.Event()
        self._stopping = threading.Event()
        if fsync == "interval":
            flushing = threading.Thread(target=self._flush_regularly, name="store-fsync", daemon=True)
            try:
                flushing.start()
            except RuntimeError as error:  # the system has none to give
                self._writer.close(flush=False)
                self._folder.delete_all()
                self._folder.release()
                raise OSError(errno.EAGAIN, str(error)) from None

    @property
    def pending(self) -> int:
        """See :class:`Backlog`; with what is known of other processes' journals."""
        return self._pending + self._orphans.pending

    @property
    def error(self) -> str | None:
        """See :class:`Backlog`; also why the flush in intervals, or reading what others left, fails and is repeated."""
        return self._append_error or self._flush_error or self._orphans.error

    @property
    def size_bytes(self) -> int:
        """What this process's journal takes on the disk."""
        return self._bytes

    def append(self, payload: bytes, count: int) -> bool:
        """Write the records to the journal; False, with the reason in ``error``, when they may be lost."""
        data = frame(payload, count)
        with self._lock:
            if self._sealed:
                return False
            try:
                if self._bytes + len(data) > self._journal_bytes:
                    raise OSError(0, f"its limit of {self._journal_bytes} bytes is reached")
                begin = self._writer.append(data)
            except OSError as error:
                return self._failed(error)
            mark = self._writer.position
            self._bytes += mark[1] - self._sizes.get(mark[0], 0)
            self._sizes[mark[0]] = mark[1]
            self._remember(payload, count, begin)
        if self._fsync == "always":
            try:
                self._writer.flush(mark)
            except OSError as error:
                return self._failed(error)
        elif self._fsync == "interval" and not self._dirty.is_set():
            self._dirty.set()
        if self._append_error is not None:
            self._works_again()
        return True

    def take(self, limit: int) -> Batch | None:
        """See :class:`Backlog`. What processes that died left comes first."""
        if self._closed:
            return None
        batch = self._orphans.take(limit)
        self._took_orphans = batch is not None
        if batch is not None:
            return batch
        while not self._memory:
            if self._spilled is None:
                self._renew()
                return None
            self._read_back(self._spilled)
        with self._lock:
            return oldest(((entry.payload, entry.count) for entry in self._memory), limit, self._model)

    def acknowledge(self, batch: Batch) -> None:
        """See :class:`Backlog`. Segments that hold nothing else are deleted."""
        if self._took_orphans:
            self._orphans.acknowledge(batch)
            return
        with self._lock:
            if self._closed:
                return
            for _ in batch.payloads:
                self._memory.popleft()
            self._memory_count -= batch.count
            self._pending -= batch.count
            if self._memory:
                needed = self._memory[0].segment
            else:
                needed, _ = self._spilled or self._writer.position
            done = [number for number in self._sizes if number < needed]
            for number in done:
                self._bytes -= self._sizes.pop(number)
        self._folder.delete(self._folder.segment(number) for number in done)
        self._renew()

    def seal(self) -> None:
        """See :class:`Backlog`."""
        with self._lock:
            self._sealed = True
        # A sibling that died a moment ago may have no successor any more, when a whole service ends.
        self._orphans.look_next()

    def close(self) -> None:
        """See :class:`Backlog`. The journal is deleted unless something in it is not in the database yet."""
        self.seal()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._stopping.set()
            self._dirty.set()
            with suppress(OSError):  # what cannot be flushed is there for the next process all the same
                self._writer.close()
            if self._pending == 0:
                self._folder.delete_all()
        self._orphans.close()
        self._folder.release()

    def _failed(self, error: OSError) -> bool:
        self._append_error = _reason(error)
        if not self._told and self._tells.is_due(time.monotonic()):
            self._told = True
            logger.error(
                "predictions are answered and not stored, since the journal in %s cannot be written: %s",
                self._folder.path.parent,
                error.strerror,
            )
        return False

    def _works_again(self) -> None:
        self._append_error = None
        if self._told:
            self._told = False
            logger.info("the journal can be written again: predictions are stored")

    def _renew(self) -> None:
        """Where nothing waits, delete what there is and go on in a new segment, if it is time or appending has failed.

        Addresses and users would stay on the disk until the segment is full, and rows that were deleted since would
        come back after a crash; and a service that is idle would learn from its next client only that a fault is gone.
        """
        if self._append_error is None and (not self._sizes or time.monotonic() < self._next_renewal):
            return
        with self._lock:  # what is appended comes before it, and waits, or goes to the new segment
            if self._sealed or self._memory or self._spilled is not None:
                return
            self._next_renewal = time.monotonic() + RENEW_INTERVAL_S
            try:
                self._writer.begin_segment(flush=False)
            except OSError:
                if self._append_error is None:
                    return  # what there is works, and is renewed another time
                if not self._make_room():
                    return
            self._folder.delete_all(but=self._folder.segment(self._writer.position[0]))
            self._sizes.clear()
            self._bytes = 0
            self._works_again()

    def _make_room(self) -> bool:
        """Delete the segments, which on a full disk may be what fills it, and begin one; whether that went well."""
        with suppress(OSError):
            self._writer.close(flush=False)
        self._folder.delete_all()
        try:
            self._writer.begin_segment()
        except OSError as error:
            return self._failed(error)
        return True

    def _remember(self, payload: bytes, count: int, begin: Position) -> None:
        self._pending += count
        if self._spilled is not None:
            return
        if self._memory and self._memory_count + count > self._memory_records:
            self._spilled = begin
            return
        self._memory.append(Entry(payload, count, begin[0]))
        self._memory_count += count

    def _read_back(self, begin: Position) -> None:
        """Continue the memory, which is empty, with the rest of the segment that ``begin`` is in."""
        number, offset = begin
        with self._lock:
            newest, size = self._writer.position
        end = size if number == newest else None
        # Without the lock: reading must not hold up those who append.
        path = self._folder.segment(number)
        deleted = False
        try:
            contents = segments.read(path, offset, end)
        except FileNotFoundError:
            deleted = True
            contents = segments.Contents([], [], None)
            # Its folder may have been another: see `Folder.begin_anew`.
            logger.error(
                "the segment %s of the journal in %s was deleted: the records that were only there are lost",
                path.name,
                path.parent.parent,
            )
        segments.report(path, contents.damages, last=False)
        entries = [Entry(frame.payload, frame.count, number) for frame in contents.frames]
        with self._lock:
            if deleted and number == self._writer.position[0]:
                self._writer.close()  # what is appended from now on goes to another file, or is refused
            self._memory.extend(entries)
            self._memory_count = sum(entry.count for entry in entries)
            self._spilled = (number + 1, 0) if end is None else (number, end)
            if self._spilled == self._writer.position:
                self._spilled = None
                self._pending = self._memory_count

    def _flush_regularly(self) -> None:
        while True:
            self._dirty.wait()
            if self._stopping.is_set():
                return
            self._dirty.clear()
            try:
                with self._lock:
                    self._writer.leave_deleted()
                self._writer.flush_again()
                self._flush_error = None
            except OSError as error:
                self._flush_error = _reason(error)
                self._dirty.set()
            self._stopping.wait(FSYNC_INTERVAL_S)


def _reason(error: OSError) -> str:
    return f"journal: {error.strerror}"
