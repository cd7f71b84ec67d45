"""The thread that moves records from the backlog into the database."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import StartupError
from service.processes.niceness import give_way
from service.store import records
from service.store.backlog import Backlog, Batch
from service.store.database import FileReplaced, first_line, identity, is_of_the_values, lacks_tables
from service.store.insert import insert
from service.store.reference import Model, References
from service.telemetry.logs import Reasons

logger = logging.getLogger(__name__)

#: Rows per transaction. More do not make a row cheaper, they only make a transaction longer.
BATCH_ROWS: Final = 1000

#: How long the first record waits for others before a transaction is begun for them. Most of the cost of a row is the
#: transaction's while there are few: on SQLite 48 µs a row by fifties, 11 by two hundreds, 10 by thousands. The journal
#: has the records meanwhile.
GATHER_S: Final = 0.2

#: An idle writer looks at the backlog this often: another process may have died and left its journal.
LOOK_S: Final = 10.0

#: How much nicer than the rest of the process the writer's thread is: predictions are waited for, rows are not. Of a
#: core that both want all the time it is left a sixth, and needs less than a tenth. ``docs/performance.md`` has what it
#: gains.
NICENESS: Final = 7

_FIRST_RETRY_S: Final = 0.1
_LONGEST_RETRY_S: Final = 5.0
_RETRY_WHILE_CLOSING_S: Final = 0.25
#: After a fault of ours: long enough for the log to stay readable.
_RETRY_AFTER_FAULT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WriterState:
    """What the writer has done. ``written`` counts rows, but for those that were there already, ``failed_attempts`` all
    attempts that failed; ``failing`` says whether the last one did.
    """

    written: int = 0
    rejected: int = 0
    failed_attempts: int = 0
    last_error: str | None = None
    failing: bool = False


class Writer:
    """Owns the thread. Records leave the backlog only after the commit that stores them.

    An attempt that fails is repeated, on a new connection, until it succeeds: when the connection broke after a commit
    was sent but before its answer came, the repetition finds the rows stored and changes nothing. Only a record with a
    value that the database refuses by itself (``DataError``) is given up; it is counted and logged, and does not hold
    up the others. Whatever else is raised, a journal that cannot be read say, the thread goes on: it tells that it
    fails, and tries again.

    ``prepare`` makes the tables. It is called as part of a write where that was not done when the store was opened
    (``references`` is empty then), and where the tables are found to be gone; ``ensure`` makes the rows that a model's
    predictions point to, where their keys are not among the ``references`` or they may be gone.
    """

    def __init__(
        self,
        engine: sa.Engine,
        backlog: Backlog,
        references: Mapping[Model, References],
        ensure: Callable[[sa.Connection, Model], References],
        prepare: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._references = dict(references)
        self._ensure = ensure
        self._prepare = prepare
        self._prepared = bool(references)
        self._file = identity(engine.url)
        self._arrived = threading.Event()
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        # Why storing fails, as the log has it already: what began as a lost connection may go on as a refused password.
        self._told = Reasons()
        # Rows that the batch under way has added, in all attempts.
        self._added = 0
        # Replaced as a whole by the writer's thread alone, so that any thread can read it without a lock.
        self.state = WriterState()
        self._attempt_began: float | None = None
        # A daemon, because a database that accepts a query and never answers would keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Begin to write, also what is in the backlog already."""
        self._arrived.set()
        self._thread.start()

    def notify(self) -> None:
        """Say that the backlog has grown. Cheap when the writer is awake anyway."""
        if not self._arrived.is_set():
            self._arrived.set()
        if self._backlog.pending >= BATCH_ROWS and not self._hurry.is_set():
            self._hurry.set()

    @property
    def attempt_seconds(self) -> float:
        """For how long the attempt under way has been waiting for the database; 0 when none is."""
        began = self._attempt_began
        return 0.0 if began is None else time.monotonic() - began

    def close(self, timeout: float) -> None:
        """Write what the backlog holds, for at most ``timeout`` seconds, and end the thread.

        A thread that waits for a database that does not answer is left behind; it ends with the process.
        """
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._hurry.set()
        self._arrived.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        give_way(NICENESS)
        while True:
            try:
                if not self._round():
                    return
            except OSError as error:
                # The journal's disk; or somebody took the right to read it.
                reason = f"journal: {error.strerror or error}"
                if self._told.is_news(reason):
                    logger.error("the journal cannot be read, and is tried again: %s", error)
            except Exception as error:
                # A thread that ended here would leave predictions to pile up unseen.
                reason = f"{type(error).__name__}: {error}"
                if self._told.is_news(reason):
                    logger.exception("the writer of predictions failed, and tries again")
            else:
                if self.state.failing:
                    self._told.clear()
                    self.state = replace(self.state, failing=False)
                continue
            self._failed(reason)
            if not self._pause(_RETRY_AFTER_FAULT_S):
                return
            self._arrived.set()

    def _round(self) -> bool:
        """Wait for records and write what there is. False to end: the store closes, and nothing more can be done."""
        self._arrived.wait(LOOK_S)
        if not self._closing.is_set():
            self._hurry.wait(GATHER_S)
        # Cleared before looking: what is appended from here on sets them again.
        self._hurry.clear()
        self._arrived.clear()
        # Where it is told to end amid this round there is one more: what was appended meanwhile is not left out.
        closing = self._closing.is_set()
        while (batch := self._backlog.take(BATCH_ROWS)) is not None:
            if not self._write_until_done(batch):
                return False
            self._backlog.acknowledge(batch)
            if batch.count < BATCH_ROWS and not closing:
                self._arrived.set()  # there may be more: look again, after gathering
                return True
        return not closing

    def _write_until_done(self, batch: Batch) -> bool:
        """True when the batch is committed, False when the time to close ran out."""
        delay = _FIRST_RETRY_S
        self._added = 0
        while True:
            self._attempt_began = time.monotonic()
            try:
                rejected = self._write(batch)
            except (exc.DBAPIError, FileReplaced, StartupError) as error:
                reason = first_line(error) if isinstance(error, exc.DBAPIError) else str(error)
                if isinstance(error, exc.DBAPIError) and lacks_tables(error):
                    self._prepared = False
                    self._references.clear()
                if isinstance(error, exc.IntegrityError):
                    # Somebody deleted a row that predictions point to, or numbered rows by hand: found or made anew.
                    self._references.clear()
                if self._told.is_news(reason):
                    logger.warning("storing predictions fails and is retried: %s", reason)
            except Exception as error:
                # A mistake of ours must not end the thread silently: predictions would pile up unseen.
                reason = f"{type(error).__name__}: {error}"
                if self._told.is_news(reason):
                    logger.exception("storing predictions fails and is retried")
            else:
                if self.state.failing:
                    waiting = self._backlog.pending - batch.count
                    logger.info("storing predictions works again; %d are waiting", waiting)
                self._told.clear()
                self.state = replace(
                    self.state,
                    written=self.state.written + self._added,
                    rejected=self.state.rejected + rejected,
                    failing=False,
                )
                return True
            finally:
                self._attempt_began = None
            self._failed(reason)
            # What is wrong may be this connection: a server that was demoted, or was read-only for a while, keeps its
            # sessions so.
            self._engine.dispose()
            if not self._pause(delay * random.uniform(0.75, 1.25)):
                return False
            delay = min(2 * delay, _LONGEST_RETRY_S)

    def _pause(self, seconds: float) -> bool:
        """Wait before the next attempt, less long while the store closes. False when the time to close ran out."""
        self._closing.wait(seconds)
        if self._closing.is_set():
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                return False
            time.sleep(min(_RETRY_WHILE_CLOSING_S, remaining))
        return True

    def _failed(self, reason: str) -> None:
        self.state = replace(
            self.state, failed_attempts=self.state.failed_attempts + 1, last_error=reason, failing=True
        )

    def _write(self, batch: Batch) -> int:
        """Commit the batch; the number of its records that the database refuses."""
        file = identity(self._engine.url)
        if self._file is None and file is not None:
            # It was away when it was looked for. What is there now may be another, with other numbers or no tables.
            self._prepared = False
            self._references.clear()
        if not self._prepared:
            self._prepare()
            self._prepared = True
            self._file = identity(self._engine.url)
        elif file != self._file:
            raise FileReplaced(
                f"{self._engine.url.database} was deleted or replaced while it was open: restart"
            )
        references = self._references_of(batch.model)
        try:
            with self._engine.begin() as connection:
                # The one that is committed without an answer is repeated, and finds its own rows.
                self._added = max(self._added, insert(connection, references, batch.payloads))
        except exc.DataError as error:
            if not is_of_the_values(error):
                raise
            return self._write_singly(batch, references)
        return 0

    def _write_singly(self, batch: Batch, references: References) -> int:
        rejected = 0
        for row in records.decode(records.join(batch.payloads)):
            try:
                with self._engine.begin() as connection:
                    added = insert(connection, references, [records.encode_rows([row])])
            except exc.DataError as error:
                if not is_of_the_values(error):
                    raise
                rejected += 1
                logger.error("prediction %s cannot be stored: %s", row["prediction_id"], first_line(error))
            else:
                self._added += added  # once it is committed: another attempt finds it stored
        return rejected

    def _references_of(self, model: Model) -> References:
        found = self._references.get(model)
        if found is None:
            with self._engine.begin() as connection:
                found = self._ensure(connection, model)
            self._references[model] = found
        return found
