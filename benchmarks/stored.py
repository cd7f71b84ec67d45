"""A database as it is after millions of predictions, made in SQL: `SPACING_S` apart, the last of them now.

One in ten is of the user `USER`, the others are of clients without one; each connection made ten thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from service.store.database import parse_url

SPACING_S: Final = 0.1
USER: Final = "ana"
_COUNTING: Final = "predictions_log_added"
_CHUNK: Final = 200_000

_COLUMNS: Final = (
    "prediction_uuid, emotion_id, confidence, probabilities, processing_time_ms, processing_us, timestamp, source_ip,"
    " request_id, user_id, face_box, detection_score, model_id"
)
# What a row of a real face holds, most of all its probabilities: a table of narrower rows would be read faster.
_VALUES: Final = (
    " 1 + i % 7, 0.3 + (i % 70) / 100.0,"
    " '[0.0123456789, 0.0023456789, 0.0323456789, 0.8523456789, 0.0623456789, 0.0223456789, 0.0161913574]',"
    " (600 + {latency}) / 1000, 600 + {latency}, {moment}, '192.0.2.7', {text}, {user}, '[178, 80, 94, 94]', 0.93,"
    " (SELECT max(model_id) FROM model_version)"
)
# Between 0.6 and 4.6 ms, most of them short.
_LATENCY: Final = "(i * 7919 % 1000) * (i * 7919 % 1000) / 250"

_POSTGRESQL: Final = (
    f"INSERT INTO predictions_log ({_COLUMNS}) SELECT CAST({{key}} AS uuid),"
    + _VALUES.format(
        latency=_LATENCY,
        moment="CAST(:newest AS timestamptz) - (:total - i) * :spacing * interval '1 second'",
        text="CAST(i AS text)",
        user="{user}",
    ).replace(" 1 + i % 7", " CAST(1 + i % 7 AS integer)")
    + " FROM generate_series(CAST(:first AS bigint), :last) AS rows(i)"
)
_SQLITE: Final = (
    "WITH RECURSIVE rows(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM rows WHERE i < :last)"
    f" INSERT INTO predictions_log ({_COLUMNS}) SELECT {{key}},"
    + _VALUES.format(
        latency=_LATENCY,
        moment="strftime('%Y-%m-%d %H:%M:%f', :newest_s - (:total - i) * :spacing, 'unixepoch') || '000'",
        text="CAST(i AS TEXT)",
        user="{user}",
    )
    + " FROM rows"
)
_STATEMENTS: Final = {"postgresql": _POSTGRESQL, "sqlite": _SQLITE}

# As the service makes them: a random beginning for each connection (version 8), and a counter.
_MANY_CONNECTIONS: Final = {
    "postgresql": "overlay(overlay(left(md5((i / 10000)::text), 22) placing '8' from 13) placing '8' from 17)"
    " || lpad(to_hex(i % 10000), 10, '0')",
    "sqlite": "printf('%012x8%03x8%05x%010x', i / 10000 * 257698037761 & 281474976710655, i / 10000 & 4095,"
    " i / 10000 & 1048575, i % 10000)",
}
_ONE_CONNECTION: Final = {
    "postgresql": ":prefix || lpad(to_hex(i), 10, '0')",
    "sqlite": "printf('%s%010x', :prefix, i)",
}


def fill(url: str, rows: int, tell: Callable[[int], object]) -> None:
    """Put so many rows into a database that a service has begun to use; `tell` hears how many there are by now.

    Afterwards the database is as its own upkeep leaves it: PostgreSQL's is vacuumed and analysed.
    """
    engine = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
    newest = datetime.now(UTC)
    with engine.connect() as connection:
        _hurry(connection)
        for first in range(1, rows + 1, _CHUNK):
            last = min(first + _CHUNK - 1, rows)
            user = f"CASE WHEN i % 10 = 0 THEN '{USER}' END"
            _insert(connection, _MANY_CONNECTIONS, user, newest, first, last, rows)
            tell(last)
        _settle(connection)
    engine.dispose()


def add_connection(url: str, prediction_id: UUID, rows: int) -> None:
    """Give the connection that made this prediction so many more, of the latest time, without a user."""
    engine = sa.create_engine(parse_url(url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        newest = datetime.now(UTC) - timedelta(seconds=1)
        prefix = prediction_id.hex[:-10]
        # Its own counter has begun at 0.
        first = 1_000_000
        last = first + rows - 1
        _insert(connection, _ONE_CONNECTION, "NULL", newest, first, last, last, prefix=prefix)
        _settle(connection)
    engine.dispose()


def _insert(
    connection: sa.Connection,
    keys: dict[str, str],
    user: str,
    newest: datetime,
    first: int,
    last: int,
    total: int,
    **more: Any,
) -> None:
    dialect = connection.dialect.name
    statement = _STATEMENTS[dialect].replace("{key}", keys[dialect]).replace("{user}", user)
    # What looks like a parameter in `::text` is a cast.
    statement = statement.replace("::", r"\:\:")
    values = {
        "first": first,
        "last": last,
        "total": total,
        "spacing": SPACING_S,
        **({"newest": newest} if dialect == "postgresql" else {"newest_s": newest.timestamp()}),
        **more,
    }
    connection.execute(sa.text(statement), values)


def _hurry(connection: sa.Connection) -> None:
    """Give up, for this connection, what a crash would need, and PostgreSQL's look at foreign keys for each row."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET synchronous_commit = off")
        connection.exec_driver_sql("SET session_replication_role = replica")
        # What counts by minute goes on.
        connection.exec_driver_sql(f"ALTER TABLE predictions_log ENABLE ALWAYS TRIGGER {_COUNTING}")
    else:
        connection.exec_driver_sql("PRAGMA synchronous = OFF")
        connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
        connection.exec_driver_sql("PRAGMA cache_size = -262144")


def _settle(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("VACUUM (ANALYZE) predictions_log")
        connection.exec_driver_sql("CHECKPOINT")
    else:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
