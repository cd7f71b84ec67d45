"""What is between ``record`` and the database: a bounded queue of encoded records."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from service.store.reference import Model


@dataclass(frozen=True, slots=True)
class Batch:
    """The oldest records of a backlog: what the writer puts into one transaction. All of one model."""

    payloads: list[bytes]
    count: int
    model: Model


def oldest(appended: Iterable[tuple[bytes, int]], limit: int, model: Model) -> Batch | None:
    """The first of these payloads, with how many records each has, until they have `limit` or more; None of none."""
    payloads: list[bytes] = []
    total = 0
    for payload, count in appended:
        payloads.append(payload)
        total += count
        if total >= limit:
            break
    return Batch(payloads, total, model) if payloads else None


class Backlog(Protocol):
    """Many threads append; one, the writer, takes and acknowledges."""

    def append(self, payload: bytes, count: int) -> bool:
        """Keep ``count`` encoded records; False when there is no room. Never waits for the database."""

    def take(self, limit: int) -> Batch | None:
        """About ``limit`` of the oldest records (at least one append), None when there are none.

        The next call gives the same records again unless :meth:`acknowledge` came in between.
        """

    def acknowledge(self, batch: Batch) -> None:
        """Forget the batch that was taken last: it is committed."""

    @property
    def pending(self) -> int:
        """How many records are kept."""

    @property
    def error(self) -> str | None:
        """Why the last append answered False; None when it answered True, or would by now."""

    def seal(self) -> None:
        """Take nothing more: every later append answers False."""

    def close(self) -> None:
        """Let go of what the backlog holds open. Only ``pending`` may be asked for afterwards."""


class MemoryBacklog:
    """A backlog in memory: bounded by ``limit`` records, gone with the process."""

    def __init__(self, model: Model, limit: int) -> None:
        self._model = model
        self._limit = limit
        self.error: str | None = None
        self._queue: deque[tuple[bytes, int]] = deque()
        self._pending = 0
        self._sealed = False
        self._lock = threading.Lock()

    def append(self, payload: bytes, count: int) -> bool:
        """See :class:`Backlog`."""
        with self._lock:
            if self._sealed:
                return False
            if self._pending + count > self._limit:
                self.error = f"{self._pending} records wait in memory, and {self._limit} may"
                return False
            self.error = None
            self._pending += count
            self._queue.append((payload, count))
            return True

    def take(self, limit: int) -> Batch | None:
        """See :class:`Backlog`."""
        with self._lock:
            return oldest(self._queue, limit, self._model)

    def acknowledge(self, batch: Batch) -> None:
        """See :class:`Backlog`."""
        with self._lock:
            for _ in batch.payloads:
                self._queue.popleft()
            self._pending -= batch.count
            self.error = None  # there is room again

    @property
    def pending(self) -> int:
        """See :class:`Backlog`."""
        return self._pending

    def seal(self) -> None:
        """See :class:`Backlog`."""
        with self._lock:
            self._sealed = True

    def close(self) -> None:
        """See :class:`Backlog`."""
