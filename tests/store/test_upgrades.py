"""Databases of the release before: they end up as a new one does, with sums that are numbers, and whose they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic import command

from service.errors import StartupError
from service.store import prepare
from service.store.database import create_engine, parse_url
from service.store.migrate import alembic_config, migrate
from service.store.migrations.versions.v0003_minutes import finite
from service.store.schema import emotion_minutes, predictions_log
from tests.conftest import PostgresServer
from tests.store.harness import execute
from tests.store.older_server import make_older_server

TABLES = ("emotion_class", "model_version", "predictions_log")


def as_released(engine: sa.Engine) -> None:
    """A database as the release with 0004 made it, which added up whatever the confidence was."""
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0004")
        if engine.dialect.name == "postgresql":
            statements = [
                connection.scalar(sa.text("SELECT pg_get_functiondef('count_predictions'::regproc)"))
            ]
        else:
            triggers = connection.exec_driver_sql(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            )
            statements = [text for name, sql in triggers.all() for text in (f"DROP TRIGGER {name}", sql)]
        for statement in statements:
            for row in ("", "new.", "old."):
                counted = finite(f"{row}confidence", engine.dialect.name)
                statement = statement.replace(counted, f"coalesce({row}confidence, 0)")
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def objects(engine: sa.Engine) -> list[str]:
    """What there is, and how it is defined."""
    query = {
        "sqlite": "SELECT coalesce(sql, name) FROM sqlite_master ORDER BY 1",
        "postgresql": "SELECT pg_get_functiondef('count_predictions'::regproc) UNION ALL"
        " SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal UNION ALL"
        " SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid > 16383 UNION ALL"
        " SELECT attrelid::regclass || attname || atttypid::regtype FROM pg_attribute WHERE attrelid IN ("
        "   SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r') ORDER BY 1",
    }
    with engine.connect() as connection:
        return list(connection.execute(sa.text(query[engine.dialect.name])).scalars())


def insert(engine: sa.Engine, minute: int, confidence: str) -> None:
    """A row as the older server stores one."""
    zone = "" if engine.dialect.name == "sqlite" else "+00:00"
    execute(
        engine,
        "INSERT INTO predictions_log (emotion_id, confidence, timestamp)"
        f" VALUES (1, {confidence}, '2026-11-22 10:{minute}:45{zone}')",
    )


def sums(engine: sa.Engine) -> list[tuple[int, float]]:
    """Faces and the sum of their confidences, minute by minute."""
    columns = emotion_minutes.c
    with engine.connect() as connection:
        query = sa.select(columns.faces, columns.confidence).order_by(columns.minute)
        return [tuple(row) for row in connection.execute(query)]


def test_it_ends_up_as_a_new_one(engine: sa.Engine) -> None:
    """Table for table, trigger for trigger."""
    migrate(engine)
    new = objects(engine)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0002")
    as_released(engine)
    assert objects(engine) != new
    migrate(engine)
    assert objects(engine) == new


def infinities(engine: sa.Engine) -> tuple[str, ...]:
    return (
        ("9e999", "-9e999", "'n/a'")
        if engine.dialect.name == "sqlite"
        else ("'NaN'", "'Infinity'", "'-Infinity'")
    )


def test_minutes_whose_sum_is_no_number_are_added_up_again(engine: sa.Engine) -> None:
    """What an older server stored of the kind counts as 0, as null does; other minutes keep the sums that they have."""
    as_released(engine)
    for minute, wrong in enumerate(infinities(engine), start=10):
        for confidence in ("0.25", wrong, "0.5", "NULL"):
            insert(engine, minute, confidence)
    insert(engine, 59, "0.75")
    execute(engine, "UPDATE emotion_minutes SET confidence = 0.7 WHERE faces = 1")
    migrate(engine)
    assert sums(engine) == [(4, 0.75)] * len(infinities(engine)) + [(1, 0.7)]


def test_a_confidence_that_is_no_number_comes_and_goes(engine: sa.Engine) -> None:
    """It counts as 0 from now on, in each statement, and the sum of its minute stays a number when it is deleted."""
    migrate(engine)
    for wrong in infinities(engine):
        insert(engine, 10, wrong)
        insert(engine, 10, "0.5")
    count = 2 * len(infinities(engine))
    assert sums(engine) == [(count, count / 4)]
    execute(engine, "UPDATE predictions_log SET face_index = 1 WHERE confidence <> 0.5")
    assert sums(engine) == [(count, count / 4)]
    with engine.begin() as connection:
        connection.execute(sa.delete(predictions_log).where(predictions_log.c.confidence != 0.5))
    assert sums(engine) == [(count / 2, count / 4)]


@pytest.fixture
def older(postgres_server: PostgresServer, postgres_url: str) -> Iterator[sa.Engine]:
    """An older server's database on PostgreSQL, whose tables are a user's who is no superuser."""
    postgres_server.execute("CREATE ROLE older LOGIN")
    engine = create_engine(parse_url(postgres_url))
    make_older_server(engine, ["happy"])
    execute(engine, *(f"ALTER TABLE {table} OWNER TO older" for table in TABLES))
    execute(engine, "GRANT CREATE ON SCHEMA public TO older")
    yield engine
    execute(engine, "DROP OWNED BY older CASCADE")
    engine.dispose()
    postgres_server.execute("DROP ROLE older")


def as_older(engine: sa.Engine) -> sa.Engine:
    """The same database for that user."""
    return create_engine(engine.url.set(username="older"))


@pytest.mark.parametrize("start", ["older server", "0004"])
def test_what_a_superuser_migrates_stays_the_owners(older: sa.Engine, start: str) -> None:
    """Its server goes on storing, is counted, and may migrate and start itself from then on."""
    if start == "0004":
        as_released(older)
    migrate(older)
    owner = as_older(older)
    insert(owner, 10, "0.5")
    with owner.begin() as connection:
        command.downgrade(alembic_config(connection), "0003")
    migrate(owner)
    insert(owner, 10, "0.5")
    owner.dispose()
    assert sums(older)[0] == (2, 1.0)


def test_who_has_to_migrate_what_a_superuser_did(older: sa.Engine) -> None:
    """Under the release before, what a superuser made stayed theirs: the owner is told that it takes one again."""
    as_released(older)
    url = as_older(older).url.render_as_string(hide_password=False)
    with pytest.raises(
        StartupError, match=r"denied for table alembic_version; .* or as a superuser where one did"
    ):
        prepare(url, labels=("happy",), version_tag="v1", model_filename="emotion.onnx")


def test_who_may_not_give_tables_away_migrates_all_the_same(older: sa.Engine) -> None:
    """Somebody with all rights on the tables, but not their owner's: they keep what they made."""
    migrate(older)
    with older.begin() as connection:
        command.downgrade(alembic_config(connection), "0004")
        connection.exec_driver_sql(
            "CREATE ROLE other LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO other;"
            "GRANT CREATE ON SCHEMA public TO other; ALTER TABLE emotion_minutes OWNER TO other;"
            "ALTER FUNCTION count_predictions OWNER TO other"
        )
    other = create_engine(older.url.set(username="other"))
    migrate(other)
    other.dispose()
    with older.begin() as connection:
        query = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'emotion_minutes'"
        assert connection.exec_driver_sql(query).scalar() == "other"
        connection.exec_driver_sql("DROP OWNED BY other CASCADE; DROP ROLE other")
