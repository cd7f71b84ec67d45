"""Deleting predictions that are older than they may be kept."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc

from service.store.database import first_line
from service.store.schema import predictions_log

logger = logging.getLogger(__name__)

#: Rows per transaction: few enough for the writer never to wait long.
CHUNK_ROWS: Final = 2000

_PAUSE_S: Final = 0.1
_PERIOD_S: Final = 3600.0

# Numbers are before it, all other texts behind it.
_LEAST_TEXT: Final[sa.ColumnClause[datetime]] = sa.literal_column("''", predictions_log.c.timestamp.type)


def delete_before(connection: sa.Connection, moment: datetime, limit: int = CHUNK_ROWS) -> int:
    """Delete up to ``limit`` of the oldest rows from before ``moment``; how many. The older server's rows count too.

    Rows without a time are left, see :func:`without_a_time`.

    Several processes may do this at once: on PostgreSQL they take turns, and pass over the rows that somebody holds.
    """
    columns = predictions_log.c
    chosen = (
        sa.select(columns.predic_id)
        .where(columns.timestamp < moment)
        .order_by(columns.timestamp)
        .limit(limit)
    )
    if connection.dialect.name == "sqlite":
        chosen = chosen.where(columns.timestamp > _LEAST_TEXT)
    # Ignored by SQLite, where only one can delete at a time.
    chosen = chosen.with_for_update(skip_locked=True)
    result = connection.execute(
        sa.delete(predictions_log).where(columns.predic_id.in_(chosen.scalar_subquery()))
    )
    return result.rowcount


def without_a_time(connection: sa.Connection) -> int:
    """How many rows have no time; or, in SQLite, which sorts both before any time, a number or an empty text for it.

    Seconds, milliseconds or days: nothing says which, so nothing says how old they are.
    """
    moment = predictions_log.c.timestamp
    unknown: sa.ColumnElement[bool] = moment.is_(None)
    if connection.dialect.name == "sqlite":
        unknown = sa.or_(unknown, moment <= _LEAST_TEXT)
    return connection.execute(sa.select(sa.func.count()).where(unknown)).scalar_one()


class Retention:
    """A thread that deletes what is older than ``days``, at start and then every hour, in small transactions."""

    def __init__(self, engine: sa.Engine, days: float) -> None:
        self._engine = engine
        self._age = timedelta(days=days)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-retention", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Stop; a deletion under way is finished or, with the process, undone."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                deleted = self._delete()
                with self._engine.connect() as connection:
                    unknown = without_a_time(connection)
            except exc.DBAPIError as error:
                logger.warning(
                    "deleting old predictions failed, and is tried again later: %s", first_line(error)
                )
            else:
                if deleted:
                    logger.info("deleted %d predictions older than %s", deleted, self._age)
                if unknown:
                    logger.warning(
                        "%d predictions are kept whatever their age: predictions_log.timestamp is null, or in SQLite a "
                        "number or empty; write a time there (of Unix seconds datetime(timestamp, 'unixepoch') makes "
                        "one), or delete them",
                        unknown,
                    )
            if self._engine.dialect.name == "postgresql":
                self._engine.dispose()  # no idle connection to a server, which might have broken by the next time
            self._stopping.wait(_PERIOD_S)

    def _delete(self) -> int:
        moment = datetime.now(UTC) - self._age
        total = 0
        while True:
            with self._engine.begin() as connection:
                deleted = delete_before(connection, moment)
            total += deleted
            if deleted < CHUNK_ROWS or self._stopping.wait(_PAUSE_S):
                return total
