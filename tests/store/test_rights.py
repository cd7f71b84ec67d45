"""What PostgreSQL lets a user do, and for how long: what is needed of it, and what is said where it is refused."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.errors import StartupError
from service.store.database import create_engine, parse_url
from service.store.migrate import migrate
from service.store.provenance import current_revision
from service.store.schema import HEAD
from tests.conftest import PostgresServer
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import eventually, execute, ids
from tests.store.older_server import make_older_server

SECURITY = Path(__file__).parents[2] / "SECURITY.md"


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Only PostgreSQL has users."""
    return postgres_url


@pytest.fixture
def user_url(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """The URL of the same database for a user who owns nothing in it."""
    postgres_server.execute("CREATE ROLE visionai LOGIN")
    yield postgres_url.replace("postgres:@", "visionai@")
    engine = create_engine(parse_url(postgres_url))
    execute(engine, "DROP OWNED BY visionai")
    engine.dispose()
    postgres_server.execute("DROP ROLE visionai")


def test_the_rights_that_the_documentation_lists_are_enough(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, user_url: str
) -> None:
    """Migrated by the owner, a user with what SECURITY.md grants starts, stores, and numbers behind imported rows."""
    assert open_store().close(timeout=10) == 0
    (grants,) = re.findall(r"```sql\n(.*?)```", SECURITY.read_text(), re.DOTALL)
    execute(engine, grants.strip().rstrip(";"), "INSERT INTO predictions_log (predic_id) VALUES (500)")
    store = open_store(url=user_url, version_tag="v2.0.0", labels=("happy", "bored"))
    records = [make_record(emotion="bored"), make_record(emotion="happy")]
    assert store.record(records)
    eventually(lambda: store.status().written == 2)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT prediction_uuid FROM predictions_log WHERE predic_id > 500")
        assert {row[0] for row in rows} == ids(records)


@pytest.mark.parametrize("tables", ["none", "another's"])
def test_rights_that_are_missing(
    open_store: OpenStore, engine: sa.Engine, user_url: str, tables: str
) -> None:
    """A user who may not make or change the tables is told what it takes, and not to look whether the server runs."""
    if tables == "another's":
        make_older_server(engine, ["happy"])
        execute(
            engine,
            "GRANT ALL ON SCHEMA public TO visionai; GRANT ALL ON ALL TABLES IN SCHEMA public TO visionai;"
            "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO visionai",
        )
    with pytest.raises(StartupError, match=r"(denied|owner).*; give this user the rights.*--migrate-only\)$"):
        open_store(url=user_url)


def test_tables_that_another_session_holds(
    open_store: OpenStore, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older server amid a transaction holds up the migration for a time; then it is told what to do about it."""
    monkeypatch.setattr(sys.modules["service.store.migrate"], "_LOCK_TIMEOUT", "100ms")
    make_older_server(engine, ["happy"])
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM predictions_log")
        with pytest.raises(
            StartupError, match="lock timeout; another session holds a lock: stop the older server"
        ):
            open_store()


def test_a_server_that_is_read_only(open_store: OpenStore, engine: sa.Engine) -> None:
    """A standby is told from a server that does not answer."""
    execute(engine, f"ALTER DATABASE {engine.url.database} SET default_transaction_read_only = on")
    with pytest.raises(
        StartupError,
        match=r"read-only transaction; .* name one that takes writes in DATABASE_URL \(of several",
    ):
        open_store()


@pytest.mark.parametrize(("limit", "seconds"), [("statement_timeout", 1.2), ("transaction_timeout", 0.4)])
def test_a_migration_may_take_longer_than_a_query(
    open_store: OpenStore, engine: sa.Engine, limit: str, seconds: float
) -> None:
    """A time limit that the operator set for statements or transactions keeps no large database from being migrated."""
    make_older_server(engine, ["happy"])
    with engine.begin() as connection:
        if connection.scalar(sa.func.current_setting(limit, True)) is None:
            pytest.skip("this PostgreSQL knows no such limit")
        connection.exec_driver_sql(
            "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" PERFORM pg_sleep({seconds}); END $$;"
            "CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE TRIGGER') EXECUTE FUNCTION slow();"
            f"ALTER DATABASE {engine.url.database} SET {limit} = '1s'"
        )
    assert open_store().status().healthy


def test_a_migration_waits_for_models_that_load_slowly(engine: sa.Engine, postgres_url: str) -> None:
    """It is idle meanwhile, for longer than a transaction may be: a GPU's plans take minutes."""
    make_older_server(engine, ["happy"])
    execute(engine, f"ALTER DATABASE {engine.url.database} SET idle_in_transaction_session_timeout = '1s'")
    migrating = create_engine(parse_url(postgres_url))
    migrate(migrating, before=lambda: time.sleep(1.5))
    with migrating.connect() as connection:
        assert current_revision(connection) == HEAD
    migrating.dispose()


def test_the_reason_of_the_server_that_answers(open_store: OpenStore, postgres_url: str) -> None:
    """Of two addresses, one down and one that lets nobody in, the latter's reason is told."""
    folder = parse_url(postgres_url).query["host"]
    with pytest.raises(StartupError, match=r'FATAL: +database "absent" does not exist; check DATABASE_URL'):
        open_store(url=f"postgresql://postgres@/absent?host=127.0.0.1,{folder}&port=1,5432")
