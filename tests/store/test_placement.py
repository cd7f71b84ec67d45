"""PostgreSQL's schemas: an older server's tables may lie in any of the search path, and the counts lie beside them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from alembic import command

from service.store.database import create_engine, parse_url
from service.store.migrate import alembic_config, migrate
from service.store.schema import HEAD, emotion_minutes
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually, execute, revision, waiting, written
from tests.store.older_server import make_older_server, older_columns

COUNTS = ("emotion_minutes", "latency_minutes")
INSERT = "INSERT INTO predictions_log (emotion_id, confidence, processing_time_ms) VALUES (1, 0.5, 3)"


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Only PostgreSQL has schemas."""
    return postgres_url


@pytest.fixture(params=['"5% app", public', '"$user", public'])
def engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[sa.Engine]:
    """An older server's tables in `public`, and before it on the path a schema that somebody made since."""
    engine = create_engine(parse_url(database_url))
    make_older_server(engine, ["happy"])
    execute(
        engine,
        "CREATE SCHEMA postgres",
        'CREATE SCHEMA "5%% app"',
        f"ALTER DATABASE {engine.url.database} SET search_path = {request.param.replace('%', '%%')}",
    )
    engine.dispose()
    yield engine
    engine.dispose()


def schemas(engine: sa.Engine, *tables: str) -> set[str]:
    """Where these tables lie."""
    with engine.connect() as connection:
        query = (
            "SELECT tablename, schemaname FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'another')"
        )
        found = [tuple(row) for row in connection.exec_driver_sql(query)]
    assert {name for name, _ in found} >= set(tables)
    return {schema for name, schema in found if name in tables}


def faces(engine: sa.Engine) -> int:
    """How many faces are counted."""
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.sum(emotion_minutes.c.faces))) or 0


def upgrade_without_looking(engine: sa.Engine, target: str) -> None:
    """What the releases before did: the tables are made where the path begins."""
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), target)


def test_an_older_servers_tables_behind_another_schema(
    engine: sa.Engine, open_store: OpenStore, make_record: MakeRecord
) -> None:
    """What is made for them is made beside them: both servers store after the upgrade, and both are counted."""
    store = open_store()
    assert schemas(engine, "predictions_log", "alembic_version", *COUNTS) == {"public"}
    store.record([make_record()])
    written(store, 1)
    execute(engine, INSERT)
    assert (len(older_columns(engine)), faces(engine)) == (22, 22)


@pytest.mark.parametrize("before", ["0002", "0003", HEAD])
def test_counts_that_an_earlier_release_made_elsewhere(
    engine: sa.Engine, open_store: OpenStore, make_record: MakeRecord, before: str
) -> None:
    """The next start moves them beside the rows, also where nobody could store any more, and loses no count."""
    upgrade_without_looking(engine, before)
    store = open_store()
    assert schemas(engine, "predictions_log", *COUNTS) == {"public"}
    assert revision(engine) == HEAD
    store.record([make_record()])
    written(store, 1)
    execute(engine, INSERT)
    assert (len(older_columns(engine)), faces(engine)) == (22, 22)


def test_counts_elsewhere_of_rows_that_are_written_meanwhile(engine: sa.Engine) -> None:
    """Who writes while they are moved, and while turns are made, waits for that, and not in a ring: nobody fails."""
    upgrade_without_looking(engine, "0003")
    with ThreadPoolExecutor(2) as threads:
        with engine.begin() as connection:
            connection.exec_driver_sql(INSERT)
            work = [threads.submit(migrate, engine)]
            eventually(lambda: waiting(engine) == 1)
            work.append(threads.submit(execute, engine, INSERT))
            eventually(lambda: waiting(engine) == 2)
        for each in work:
            each.result(PATIENCE_S)
    assert (len(older_columns(engine)), faces(engine)) == (22, 22)


def test_a_service_that_could_not_store_mends_it_itself(
    engine: sa.Engine, open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Where somebody takes the rows to another schema while it runs, the counts follow with the next attempt."""
    store = open_store()
    execute(engine, "CREATE SCHEMA kept", "ALTER TABLE predictions_log SET SCHEMA kept")
    execute(engine, f"ALTER DATABASE {engine.url.database} SET search_path = public, kept")
    store.record([make_record()])
    written(store, 1)
    engine.dispose()
    assert schemas(engine, "predictions_log", *COUNTS) == {"kept"}
    assert faces(engine) == 21


def test_another_visionais_counts_are_left_alone(engine: sa.Engine) -> None:
    """Of two in one database, each in its schema, one that is behind takes nothing of the other that is on its path."""
    execute(
        engine,
        "CREATE SCHEMA another",
        f"ALTER DATABASE {engine.url.database} SET search_path = another",
    )
    engine.dispose()
    migrate(engine)
    execute(engine, f"ALTER DATABASE {engine.url.database} SET search_path = public")
    engine.dispose()
    upgrade_without_looking(engine, "0002")
    execute(engine, f"ALTER DATABASE {engine.url.database} SET search_path = public, another")
    engine.dispose()
    migrate(engine)
    assert schemas(engine, "predictions_log", *COUNTS) == {"public"}
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM another.emotion_minutes").scalar() == 0
