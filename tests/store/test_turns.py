"""Transactions at once on PostgreSQL: those that write several rows wait for each other, and never in a ring."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2  # type: ignore[import-untyped]
import pytest
import sqlalchemy as sa

from service.store.database import create_engine, parse_url
from service.store.insert import insert
from service.store.records import encode
from service.store.reference import Model, ensure
from service.store.retention import delete_before
from service.store.schema import emotion_minutes, latency_minutes, predictions_log
from tests.store.conftest import LABELS, MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually, execute, waiting, written
from tests.store.older_server import make_older_server

# The older server's own statement; the time is of the test's, so that all rows are of a few minutes.
INSERT = (
    "INSERT INTO predictions_log (emotion_id, confidence, model_id, processing_time_ms, source_ip, timestamp)"
    " VALUES (%s, 0.5, 1, %s, '192.0.2.1', %s)"
)
START = datetime(2026, 11, 22, 10, 30, tzinfo=UTC)


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """SQLite has one writer at a time by itself."""
    return postgres_url


@pytest.fixture
def tables(open_store: OpenStore, engine: sa.Engine) -> sa.Engine:
    """An older server's database, extended."""
    make_older_server(engine, LABELS)
    open_store().close(timeout=10)
    execute(engine, "TRUNCATE predictions_log")
    return engine


@pytest.fixture
def connect(database_url: str, tables: sa.Engine) -> Iterator[Callable[[], Any]]:
    """Makes sessions as an older server has them."""
    opened = []

    def one() -> Any:
        opened.append(psycopg2.connect(database_url))
        return opened[-1]

    yield one
    for connection in opened:
        connection.close()


def counted(engine: sa.Engine) -> tuple[int, int, int]:
    """How many rows there are, how many are counted by their emotions, and how many by their latencies."""
    with engine.connect() as connection:
        numbers = [
            connection.scalar(sa.select(column))
            for column in (
                sa.func.count(predictions_log.c.predic_id),
                sa.func.sum(emotion_minutes.c.faces),
                sa.func.sum(latency_minutes.c.requests),
            )
        ]
    return numbers[0] or 0, numbers[1] or 0, numbers[2] or 0


def at_once(*work: Callable[[], object]) -> list[Exception]:
    """Do these in threads of their own, all begun together; what they raised."""
    raised: list[Exception] = []
    together = threading.Barrier(len(work))

    def run(one: Callable[[], object]) -> None:
        together.wait(PATIENCE_S)
        try:
            one()
        except (psycopg2.Error, sa.exc.DBAPIError) as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("rows", [2, 5])
def test_transactions_of_several_rows(
    connect: Callable[[], Any],
    tables: sa.Engine,
    open_store: OpenStore,
    make_record: MakeRecord,
    rows: int,
) -> None:
    """Six older servers that store some rows at a time, emotions in any order, beside two of us: nobody fails."""
    stores = [open_store(), open_store()]

    def older(number: int, session: Any) -> None:
        for part in range(20):
            with session, session.cursor() as cursor:
                for row in range(rows):
                    emotion = 1 + (number + part + (row if number % 2 else -row)) % len(LABELS)
                    cursor.execute(INSERT, (emotion, 20 + emotion, START + timedelta(minutes=emotion)))

    def ours() -> None:
        for part in range(20):
            for store in stores:
                times = [START + timedelta(minutes=(part + row) % 7) for row in range(5)]
                store.record([make_record(timestamp=time) for time in times])

    sessions = [connect() for _ in range(6)]
    olders = [lambda number=number: older(number, sessions[number]) for number in range(6)]
    assert at_once(*olders, ours) == []
    for store in stores:
        assert written(store, 100).status().failed_attempts == 0
    total = 6 * 20 * rows + 200
    assert counted(tables) == (total, total, total)


def test_two_whose_rows_cross(connect: Callable[[], Any], tables: sa.Engine) -> None:
    """The one that comes second waits before it has anything that the first one may want."""
    first, second = connect(), connect()
    with first, first.cursor() as cursor:
        cursor.execute(INSERT, (1, 5, START))
        other = threading.Thread(target=write, args=(second, [2, 1]))
        other.start()
        eventually(lambda: waiting(tables) == 1)
        cursor.execute(INSERT, (2, 5, START))
    other.join(PATIENCE_S)
    assert counted(tables) == (4, 4, 4)


def write(session: Any, emotions: list[int]) -> None:
    """Rows of these emotions, in one transaction."""
    with session, session.cursor() as cursor:
        for emotion in emotions:
            cursor.execute(INSERT, (emotion, 5, START))


def test_two_that_store_the_same_predictions(tables: sa.Engine, make_record: MakeRecord) -> None:
    """A journal that is stored again while its first writer's transaction is open still: each prediction is there once,
    though the two have them in other orders, in one statement or in several."""
    records = [make_record(timestamp=START + timedelta(minutes=number % 7)) for number in range(50)]
    with tables.begin() as connection:
        references = ensure(connection, Model("v1.0.0", "emotion.onnx", LABELS), {})

    def store(step: int, size: int) -> None:
        ordered = records[::step]
        for _ in range(5):
            with tables.begin() as connection:
                for begin in range(0, len(ordered), size):
                    insert(connection, references, [encode(ordered[begin : begin + size])])
            with tables.begin() as connection:
                connection.execute(sa.delete(predictions_log).where(predictions_log.c.face_index == 0))

    assert (
        at_once(*(lambda step=step, size=size: store(step, size) for step in (1, -1) for size in (10, 50)))
        == []
    )
    assert counted(tables) == (0, 0, 0)


def test_retention_beside_a_transaction_that_deletes(connect: Callable[[], Any], tables: sa.Engine) -> None:
    """An operator's script that stores, and then deletes the rows that retention is about to: both do their work."""
    session = connect()
    write(session, [1, 2, 3])

    def delete() -> int:
        with tables.begin() as connection:
            return delete_before(connection, START + timedelta(hours=1))

    with session, session.cursor() as cursor:
        cursor.execute(INSERT, (4, 5, START))
        retention = threading.Thread(target=delete)
        retention.start()
        eventually(lambda: waiting(tables) == 1)
        cursor.execute("DELETE FROM predictions_log WHERE emotion_id < 4")
    retention.join(PATIENCE_S)
    assert counted(tables) == (1, 1, 1)
    assert delete() == 1


def test_another_visionais_turns_are_its_own(
    connect: Callable[[], Any], tables: sa.Engine, open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Who writes in one schema does not wait for who writes in another."""
    execute(tables, "CREATE SCHEMA another")
    url = tables.url.render_as_string(hide_password=False)
    store = open_store(url=f"{url}&options=-csearch_path%3Danother")
    session = connect()
    with session, session.cursor() as cursor:
        cursor.execute(INSERT, (1, 5, START))
        store.record([make_record(timestamp=START)])
        written(store, 1)
    assert counted(tables) == (1, 1, 1)


def test_a_server_notices_that_we_are_gone_or_frozen(postgres_url: str) -> None:
    """Until then a vanished machine, or a paused container, keeps its turn. What the operator chose stays."""
    engine = create_engine(parse_url(postgres_url))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {engine.url.database} SET tcp_keepalives_idle = 60")
    engine.dispose()
    with engine.connect() as connection:
        # On a Unix socket they are told as 0, whatever they are.
        settings = connection.exec_driver_sql(
            "SELECT name, source FROM pg_settings WHERE name LIKE 'tcp_%%' OR name LIKE 'idle_in_tr%%'"
        ).all()
    engine.dispose()
    assert {str(name): source for name, source in settings} == {
        "idle_in_transaction_session_timeout": "session",
        "tcp_keepalives_count": "session",
        "tcp_keepalives_idle": "database",
        "tcp_keepalives_interval": "session",
        "tcp_user_timeout": "session",
    }
