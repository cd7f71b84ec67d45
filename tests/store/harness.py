"""What tests of the store wait for and ask, and what they look up in the database beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

import sqlalchemy as sa

from service.store import PredictionRecord, Store
from service.store.database import create_engine, create_file, parse_url
from service.store.provenance import current_revision
from service.store.schema import predictions_log

T = TypeVar("T")

PATIENCE_S = 30.0

# What they take for now, with a fraction that is not lost on the way.
NOW = datetime(2026, 11, 22, 10, 30, 45, 123456, tzinfo=UTC)


def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless the condition comes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ids(records: list[PredictionRecord]) -> set[UUID | None]:
    """The prediction ids of records."""
    return {UUID(str(record["prediction_id"])) for record in records}


def written(store: Store, count: int) -> Store:
    """The store, once it has written so many records."""
    deadline = time.monotonic() + PATIENCE_S
    while store.status().written < count:
        assert time.monotonic() < deadline, store.status()
        time.sleep(0.005)
    return store


def ask(store: Store, query: Callable[[sa.Connection], T]) -> T:
    """The answer of a query."""
    return store.queries.submit(query).result(PATIENCE_S)


def create(url: str) -> sa.Engine:
    """An engine on a database, whose file is made where there is none."""
    create_file(parse_url(url))
    return create_engine(parse_url(url))


def stored(url: str) -> list[UUID | None]:
    """The prediction ids of the rows in a database."""
    engine = create_engine(parse_url(url))
    with engine.connect() as connection:
        found = list(connection.execute(sa.select(predictions_log.c.prediction_uuid)).scalars())
    engine.dispose()
    return found


def execute(engine: sa.Engine, *statements: str) -> None:
    """Statements, also several in one text, in one transaction."""
    with engine.begin() as connection:
        for text in statements:
            for statement in text.split(";"):
                connection.exec_driver_sql(statement)


def revision(engine: sa.Engine) -> str | None:
    """Which migration a database is at."""
    with engine.connect() as connection:
        return current_revision(connection)


def waiting(engine: sa.Engine) -> int:
    """How many sessions wait for a lock in a database of PostgreSQL."""
    with engine.connect() as connection:
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        found: int = connection.execute(query).scalar_one()
        return found


def stored_by_id(engine: sa.Engine) -> set[UUID | None]:
    """The prediction ids in a database, where there may be rows without one."""
    with engine.connect() as connection:
        chosen = sa.select(predictions_log.c.prediction_uuid).where(
            predictions_log.c.prediction_uuid.is_not(None)
        )
        return set(connection.execute(chosen).scalars())
