"""Databases that others change under a running service: what is acknowledged is stored, or waits and is told of."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.emotions import DESCRIPTIONS
from service.errors import StartupError
from service.store import database, writer
from service.store.database import parse_url
from service.store.framing import parse
from service.store.schema import emotion_class, metadata, predictions_log
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually, execute, ids, stored_by_id

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


def test_a_prediction_that_took_an_hour(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A process that was paused stores what it was working on, with a time that the column can hold."""
    store = open_store()
    assert store.record([make_record(processing_ms=3.6e6)])
    assert store.close(timeout=PATIENCE_S) == 0
    with engine.connect() as connection:
        times = sa.select(predictions_log.c.processing_time_ms, predictions_log.c.processing_us)
        milliseconds, microseconds = connection.execute(times).one()
    assert milliseconds == 3_600_000
    assert microseconds in (2**31 - 1, 3_600_000_000)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_session_that_is_read_only(
    open_store: OpenStore, make_record: MakeRecord, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """A connection that was made while the database could only be read is not kept once it can be written."""
    name = parse_url(postgres_url).database or ""
    store = open_store(url=postgres_url)
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    postgres_server.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )
    assert store.record([make_record()])
    eventually(lambda: "read-only" in (store.status().last_error or ""))
    postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    eventually(lambda: store.status().written == 1)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_is_closed_while_it_is_idle(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """As a proxy or the server closes it after a lull: the next prediction finds another, and nothing has failed."""
    store = open_store()
    for _ in range(3):
        assert store.record([make_record()])
        eventually(lambda: store.status().pending == 0)
        execute(
            engine,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    assert (store.status().written, store.status().failed_attempts) == (3, 0)
    assert caplog.text == ""


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_log_has_each_reason_of_an_outage_once(
    open_store: OpenStore,
    make_record: MakeRecord,
    postgres_server: PostgresServer,
    postgres_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What begins with a server that lets nobody in may go on for another reason: that is what has to be mended.

    Its end is told, and the next outage as the first one.
    """
    caplog.set_level("INFO")
    name = parse_url(postgres_url).database or ""
    store = open_store(url=postgres_url)
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)

    def said_of_an_outage() -> list[str]:
        caplog.clear()
        before = store.status()
        postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
        )
        assert store.record([make_record()])
        eventually(lambda: store.status().failed_attempts >= before.failed_attempts + 2)
        postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        postgres_server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        eventually(lambda: "read-only" in (store.status().last_error or ""))
        failed = store.status().failed_attempts
        eventually(lambda: store.status().failed_attempts >= failed + 2)
        assert store.record([make_record()])
        postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        eventually(lambda: store.status().written == before.written + 2)
        return [record.message for record in caplog.records if "storing" in record.message]

    for _ in range(2):
        first, *others = said_of_an_outage()
        assert "not currently accepting connections" in first
        assert others == [
            "storing predictions fails and is retried: cannot execute INSERT in a read-only transaction",
            "storing predictions works again; 1 are waiting",
        ]


def test_tables_that_are_gone_are_made_again(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A database that somebody emptied is prepared anew, and takes what comes."""
    store = open_store()
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)
    if engine.dialect.name == "postgresql":
        execute(engine, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
    else:
        tables = (*reversed(metadata.sorted_tables), "alembic_version")
        execute(engine, *(f"DROP TABLE {table}" for table in tables))
    records = [make_record() for _ in range(5)]
    assert store.record(records)
    eventually(lambda: store.status().written == 6)
    assert stored_by_id(engine) == ids(records)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_sqlite_file_that_is_deleted(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """Nothing is written to a file that is gone: records wait in the journal, it is told, and a restart stores them."""
    url, journal = f"sqlite:///{tmp_path / 'predictions.db'}", tmp_path / "journal"
    first = open_store(url=url, journal_dir=journal)
    assert first.record([make_record()])
    eventually(lambda: first.status().written == 1)
    for path in tmp_path.glob("predictions.db*"):
        path.unlink()
    records = [make_record() for _ in range(5)]
    assert first.record(records)
    eventually(lambda: "deleted or replaced" in (first.status().last_error or ""))
    assert first.close(timeout=0.1) == 5

    second = open_store(url=url, journal_dir=journal)
    assert second.close(timeout=PATIENCE_S) == 0
    engine = database.create_engine(parse_url(url))
    assert stored_by_id(engine) >= ids(records)
    engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_opened_while_a_sqlite_file_is_away(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """A worker that succeeds another makes no database in its place: it waits for the file, and writes there."""
    url, file = f"sqlite:///{tmp_path / 'predictions.db'}", tmp_path / "predictions.db"
    open_store(url=url).close(timeout=PATIENCE_S)
    file.rename(tmp_path / "elsewhere.db")
    record = make_record()
    store = open_store(url=url, during_outage=True, retention_days=1)
    assert store.record([record])
    eventually(lambda: not store.status().writing)
    assert not file.exists()
    (tmp_path / "elsewhere.db").rename(file)
    eventually(lambda: store.status().written == 1)
    engine = database.create_engine(parse_url(url))
    assert stored_by_id(engine) == ids([record])
    engine.dispose()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_opened_while_a_sqlite_file_is_locked(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts while somebody keeps the database locked takes records, and writes them afterwards."""
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.1)
    url = f"sqlite:///{tmp_path / 'predictions.db'}"
    open_store(url=url).close(timeout=PATIENCE_S)
    other = sqlite3.connect(tmp_path / "predictions.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store = open_store(url=url, during_outage=True)
    assert store.record([make_record()])
    eventually(lambda: not store.status().writing)
    other.execute("COMMIT")
    other.close()
    eventually(lambda: store.status().written == 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_after_a_long_outage_what_waits_is_not_stored_late(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it failed, an attempt is made every few seconds: here, every few hundredths of one."""
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.001)
    monkeypatch.setattr(writer, "_FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(writer, "_LONGEST_RETRY_S", 0.02)
    url = f"sqlite:///{tmp_path / 'predictions.db'}"
    store = open_store(url=url)
    other = sqlite3.connect(tmp_path / "predictions.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.record([make_record()])
    eventually(lambda: store.status().failed_attempts >= 25)  # of doubling it would be nine hours later
    other.execute("COMMIT")
    other.close()
    eventually(lambda: store.status().written == 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_newer_releases_database_that_answers_late_is_told_once(
    open_store: OpenStore,
    make_record: MakeRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that started without it says in one line why nothing can be written, and tries again."""
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.1)
    other = sqlite3.connect(tmp_path / "predictions.db", isolation_level=None)
    other.execute("PRAGMA journal_mode = WAL")
    other.execute("CREATE TABLE alembic_version AS SELECT '9999' AS version_num")
    other.execute("BEGIN IMMEDIATE")
    store = open_store(url=f"sqlite:///{tmp_path / 'predictions.db'}", during_outage=True)
    other.execute("COMMIT")
    other.close()
    assert store.record([make_record()])
    eventually(lambda: store.status().failed_attempts >= 4)
    told = [record for record in caplog.records if "at revision 9999" in record.getMessage()]
    assert [(record.levelname, record.exc_info) for record in told] == [("WARNING", None)]
    assert "install that release" in str(store.status().last_error)
    assert store.close(timeout=0) == 1


def test_a_damaged_head_of_a_model_with_other_labels(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, tmp_path: Path
) -> None:
    """Records whose model cannot be read any more are stored under their emotions, and hold up nobody."""
    journal = tmp_path / "journal"
    records = [make_record(emotion="happy") for _ in range(3)]
    blocked = open_store(url=f"sqlite:///{tmp_path / 'other.db'}", journal_dir=journal)
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert blocked.record(records)
    assert blocked.close(timeout=0.1) == 3
    other.close()
    [segment] = journal.glob("*/*.segment")
    data = bytearray(segment.read_bytes())
    frames, _ = parse(bytes(data))
    data[frames[0].end - 1] ^= 0xFF
    segment.write_bytes(data)

    store = open_store(labels=("anger", "joy"), journal_dir=journal)
    more = [make_record(emotion="joy")]
    assert store.record(more)
    assert store.close(timeout=PATIENCE_S) == 0
    assert stored_by_id(engine) == ids(records + more)
    with engine.connect() as connection:
        named = sa.select(emotion_class.c.emotion_name).join(predictions_log)
        assert sorted(connection.execute(named).scalars()) == ["happy", "happy", "happy", "joy"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # not used
@pytest.mark.parametrize(("encoding", "rejected"), [("SQL_ASCII", 0), ("LATIN1", 1)])
def test_a_database_that_is_not_in_utf_8(
    open_store: OpenStore,
    make_record: MakeRecord,
    postgres_server: PostgresServer,
    encoding: str,
    rejected: int,
) -> None:
    """It is migrated, and an id of a client's with letters that it does not have holds up no other record."""
    name = f"test_{encoding.lower()}"
    postgres_server.execute(
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    store = open_store(url=postgres_server.url(name), descriptions=DESCRIPTIONS["es"])
    assert store.record([make_record(request_id="señal"), make_record(request_id="山"), make_record()])
    assert store.close(timeout=PATIENCE_S) == 0
    assert (store.status().written, store.status().rejected) == (3 - rejected, rejected)
    postgres_server.drop_database(name)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("tag", "why"), [("v" * 101, "value too long for type character varying"), ("v2", "check constraint")]
)
def test_a_reload_to_a_version_that_the_table_does_not_take(
    open_store: OpenStore, database_url: str, tag: str, why: str
) -> None:
    """It is refused, as at a start, and not taken for an outage that ends: nothing would ever be stored."""
    open_store()
    engine = sa.create_engine(parse_url(database_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE model_version ADD CHECK (model_version_tag <> 'v2')")
    engine.dispose()
    with pytest.raises(StartupError, match=why):
        open_store(version_tag=tag, during_outage=True)
