"""A journal that cannot be opened yet: its disk is full, say, while a worker is replaced."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Final

from service.settings import Fsync
from service.store.backlog import Batch
from service.store.journal import JournalBacklog
from service.store.orphans import Orphans
from service.store.reference import Model

logger = logging.getLogger(__name__)

_RETRY_S: Final = 1.0


class LateJournal:
    """See :class:`service.store.backlog.Backlog`. Refuses records, and says why, until a journal can be opened in
    ``root``; from then on it is that :class:`JournalBacklog`.

    That is tried at once, and again about every second when records come or the writer looks. Meanwhile what processes
    that died left there is given out: it may be what fills the disk.
    """

    def __init__(self, root: Path, model: Model, *, fsync: Fsync) -> None:
        self._root = root
        self._model = model
        self._fsync: Fsync = fsync
        self._orphans = Orphans(root, model)  # the journal's own, too, once there is one
        self._lock = threading.Lock()
        self._journal: JournalBacklog | None = None
        # Where the batch came from that was taken last: a journal may be opened before it is acknowledged.
        self._taken_from: JournalBacklog | Orphans = self._orphans
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
        self._taken_from = self._journal or self._opened() or self._orphans
        return self._taken_from.take(limit)

    def acknowledge(self, batch: Batch) -> None:
        """See :class:`Backlog`."""
        self._taken_from.acknowledge(batch)

    @property
    def pending(self) -> int:
        """See :class:`Backlog`."""
        return self._orphans.pending if self._journal is None else self._journal.pending

    @property
    def error(self) -> str | None:
        """See :class:`Backlog`."""
        return self._error if self._journal is None else self._journal.error

    def seal(self) -> None:
        """See :class:`Backlog`."""
        with self._lock:
            self._sealed = True
        if self._journal is None:
            self._orphans.look_next()
        else:
            self._journal.seal()

    def close(self) -> None:
        """See :class:`Backlog`."""
        self.seal()
        if self._journal is None:
            self._orphans.close()
        else:
            self._journal.close()

    def _opened(self) -> JournalBacklog | None:
        with self._lock:
            if self._journal is not None:
                return self._journal
            if self._sealed or time.monotonic() < self._next_attempt:
                return None
            try:
                self._journal = JournalBacklog(
                    self._root, self._model, fsync=self._fsync, orphans=self._orphans
                )
            except OSError as error:
                if self._error is None:
                    logger.error(
                        "no journal can be opened, and predictions are not stored until it can: %s",
                        error.strerror,
                    )
                self._error = f"journal: {error.strerror}"
                self._next_attempt = time.monotonic() + _RETRY_S
            else:
                if self._error is not None:
                    logger.info("a journal is open: predictions are stored")
            return self._journal
