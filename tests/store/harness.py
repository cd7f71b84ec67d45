"""What tests of the store wait for and ask, and how they name what they recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

import sqlalchemy as sa

from service.store import PredictionRecord, Store

PATIENCE_S = 30.0
NOW = datetime(2026, 11, 22, 10, 30, 45, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)

T = TypeVar("T")


def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless the condition comes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ids(records: list[PredictionRecord]) -> set[UUID | None]:
    return {UUID(str(record["prediction_id"])) for record in records}


def written(store: Store, count: int) -> Store:
    """The store, once it has written so many records."""
    deadline = time.monotonic() + 30
    while store.status().written < count:
        assert time.monotonic() < deadline, store.status()
        time.sleep(0.005)
    return store


def ask(store: Store, query: Callable[[sa.Connection], T]) -> T:
    """The answer of a query."""
    return store.queries.submit(query).result(30)
