"""Databases whose tables were dropped, or replaced."""

from __future__ import annotations

import sqlalchemy as sa

from service.store.migrate import migrate
from service.store.schema import HEAD
from tests.store.test_migrate import execute, revision

OURS = ("alembic_version", "emotion_minutes", "latency_minutes")
OLDER = ("predictions_log", "emotion_class", "model_version")


def drop(engine: sa.Engine, *tables: str) -> None:
    execute(engine, *(f"DROP TABLE {table}" for table in tables))


def test_tables_that_were_dropped_one_by_one_are_made_again(engine: sa.Engine) -> None:
    """Though the function that counted their rows is still there."""
    migrate(engine)
    drop(engine, *OURS, *OLDER)
    migrate(engine)
    assert revision(engine) == HEAD
