"""Databases whose tables were dropped, or replaced by those of a copy from before the upgrade; and those with another
application's version."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic import command

from service.errors import StartupError
from service.store.database import create_engine, parse_url
from service.store.migrate import alembic_config, migrate
from service.store.schema import HEAD
from tests.store.harness import execute, revision
from tests.store.older_server import make_older_server, older_columns

REVISIONS = [f"{number:04}" for number in range(1, int(HEAD) + 1)]

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


def with_version(engine: sa.Engine, *revisions: str) -> None:
    """Alembic's table as another application has it."""
    execute(engine, "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    for number in revisions:
        execute(engine, f"INSERT INTO alembic_version VALUES ('{number}')")


@pytest.mark.parametrize("tables", ["the older server's", "none"])
@pytest.mark.parametrize("revisions", [*((each,) for each in REVISIONS), ("0001", "ae1027a6acf")])
def test_another_applications_version_is_not_taken_for_ours(
    engine: sa.Engine, tables: str, revisions: tuple[str, ...]
) -> None:
    """Whatever its number: nothing is changed, its version neither, and nobody is told to drop that."""
    if tables != "none":
        make_older_server(engine, ["happy"])
    with_version(engine, *revisions)
    before = sa.inspect(engine).get_table_names()
    with pytest.raises(
        StartupError, match="alembic_version is another application's: give VisionAI a database"
    ) as told:
        migrate(engine)
    assert "drop" not in str(told.value)
    assert "\n" not in str(told.value)
    assert sa.inspect(engine).get_table_names() == before
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT version_num FROM alembic_version ORDER BY 1").scalars()
        assert tuple(found) == revisions


@pytest.mark.parametrize("before", REVISIONS[1:])
def test_older_tables_beside_an_earlier_version_of_ours(engine: sa.Engine, before: str) -> None:
    """They are not worked on as if they were newer; what there is to drop is told only where it is ours."""
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), before)
    drop(engine, *OLDER)
    make_older_server(engine, ["happy"])
    advice = "another application's" if before == "0002" else "drop the tables alembic_version"
    with pytest.raises(
        StartupError, match=f"at revision {before}, but .* has no column prediction_uuid: .*{advice}"
    ):
        migrate(engine)
    assert revision(engine) == before


@pytest.mark.parametrize("table", ["predictions_log", "emotion_minutes"])
def test_a_table_that_was_renamed(engine: sa.Engine, table: str) -> None:
    """It is told which, and nothing is made in its place."""
    migrate(engine)
    execute(engine, f"ALTER TABLE {table} RENAME TO elsewhere")
    with pytest.raises(StartupError, match=f"there is no table {table}: it was dropped or renamed"):
        migrate(engine)
    execute(engine, f"ALTER TABLE elsewhere RENAME TO {table}")
    migrate(engine)


def test_a_schema_of_its_own_beside_another_application(postgres_url: str) -> None:
    """Alone on the search path it is enough, as the refusal says; else it is the other's version that is found."""
    engine = create_engine(parse_url(postgres_url))
    with_version(engine, "0001")
    for path, migrates in (("visionai, public", False), ("visionai", True)):
        execute(engine, "CREATE SCHEMA IF NOT EXISTS visionai")
        execute(engine, f"ALTER DATABASE {engine.url.database} SET search_path = {path}")
        engine.dispose()
        if migrates:
            migrate(engine)
        else:
            with pytest.raises(StartupError, match="a schema is enough, alone on the search path"):
                migrate(engine)
    assert revision(engine) == HEAD
    engine.dispose()
