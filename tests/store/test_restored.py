"""Databases whose tables were dropped, or replaced by those of a copy from before the upgrade."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from service.errors import StartupError
from service.store.migrate import migrate
from service.store.schema import HEAD
from tests.store.harness import execute, revision
from tests.store.older_server import make_older_server, older_columns

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


def test_older_tables_beside_the_newer_version_are_not_taken_for_migrated(engine: sa.Engine) -> None:
    """The start says what to drop; after that the copy is upgraded, and no row is lost."""
    migrate(engine)
    drop(engine, *OLDER)
    make_older_server(engine, ["happy"])
    before = older_columns(engine)
    with pytest.raises(StartupError, match=r"has no column prediction_uuid: .* drop the tables"):
        migrate(engine)
    drop(engine, *OURS)
    migrate(engine)
    assert older_columns(engine) == before
    assert revision(engine) == HEAD
