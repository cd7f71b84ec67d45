"""A journal that cannot be opened yet: its disk is full, say, while a worker is replaced."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from service.store.backlog import Backlog, Batch

logger = logging.getLogger(__name__)

_RETRY_S: Final = 1.0


class LateJournal:
    """See :class:`service.store.backlog.Backlog`. Refuses records, and says why, until ``open_journal`` succeeds; from
    then on it is that journal.

    ``open_journal`` raises OSError where it does not succeed. It is called at once, and again about every second when
    records come.
    """

    def __init__(self, open_journal: Callable[[], Backlog]) -> None:
        self._open = open_journal
        self._lock = threading.Lock()
        self._journal: Backlog | None = None
        self._next_attempt = 0.0
        self._sealed = False
        self._error: str | None = None
        self._opened()

    def append(self, payload: bytes, count: int) -> bool:
        """See :class:`Backlog`."""
        journal = self._journal or self._opened()
        return journal is not None and journal.append(payload, count)

    def take(self, limit: int) -> Batch | None:
        """See :class:`Backlog`."""
        return None if self._journal is None else self._journal.take(limit)

    def acknowledge(self, batch: Batch) -> None:
        """See :class:`Backlog`."""
        assert self._journal is not None
        self._journal.acknowledge(batch)

    @property
    def pending(self) -> int:
        """See :class:`Backlog`."""
        return 0 if self._journal is None else self._journal.pending

    @property
    def error(self) -> str | None:
        """See :class:`Backlog`."""
        return self._error if self._journal is None else self._journal.error

    def seal(self) -> None:
        """See :class:`Backlog`."""
        with self._lock:
            self._sealed = True
        if self._journal is not None:
            self._journal.seal()

    def close(self) -> None:
        """See :class:`Backlog`."""
        self.seal()
        if self._journal is not None:
            self._journal.close()

    def _opened(self) -> Backlog | None:
        with self._lock:
            if self._journal is not None:
                return self._journal
            if self._sealed or time.monotonic() < self._next_attempt:
                return None
            try:
                self._journal = self._open()
            except OSError as error:
                if self._error is None:
                    logger.error(
                        "no journal can be opened, and nothing is stored until it can: %s", error.strerror
                    )
                self._error = f"journal: {error.strerror}"
                self._next_attempt = time.monotonic() + _RETRY_S
            return self._journal
