"""What is not kept: old rows, and in private mode addresses and boxes."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from service.store import retention
from service.store.retention import CHUNK_ROWS, delete_before
from service.store.schema import predictions_log
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually


def ages(engine: sa.Engine) -> list[int]:
    """The ages of the stored rows in days."""
    with engine.connect() as connection:
        moments = connection.execute(sa.select(predictions_log.c.timestamp)).scalars()
        return sorted(round((datetime.now(UTC) - moment) / timedelta(days=1)) for moment in moments if moment)


def test_old_rows_are_deleted_at_start(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A store that keeps rows for some days deletes the older ones by itself, and no others."""
    store = open_store()
    now = datetime.now(UTC)
    store.record(
        [make_record(timestamp=now - timedelta(days=age)) for age in (0, 1, 9, 10, 40) for _ in range(3)]
    )
    assert store.close(timeout=10) == 0
    assert len(ages(engine)) == 15

    open_store(retention_days=9.5)
    deadline = time.monotonic() + 20
    while len(ages(engine)) > 9 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert ages(engine) == [0, 0, 0, 1, 1, 1, 9, 9, 9]


def test_the_oldest_go_first(open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord) -> None:
    """One transaction deletes no more than its limit, and begins with the oldest rows."""
    store = open_store()
    now = datetime.now(UTC)
    store.record([make_record(timestamp=now - timedelta(days=age)) for age in (20, 50, 30, 40, 5)])
    assert store.close(timeout=10) == 0
    with engine.begin() as connection:
        assert delete_before(connection, now - timedelta(days=10), limit=2) == 2
    assert ages(engine) == [5, 20, 30]
    with engine.begin() as connection:
        assert delete_before(connection, now - timedelta(days=10), limit=5) == 2
    assert ages(engine) == [5]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_row_that_somebody_holds_is_passed_over(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A deletion does not wait for it, and the next one deletes it."""
    store = open_store()
    now = datetime.now(UTC)
    store.record([make_record(timestamp=now - timedelta(days=age)) for age in (50, 40, 30)])
    assert store.close(timeout=10) == 0
    with engine.begin() as other, engine.begin() as connection:
        other.exec_driver_sql("SELECT FROM predictions_log ORDER BY timestamp LIMIT 1 FOR UPDATE")
        connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
        assert delete_before(connection, now) == 2
    assert ages(engine) == [50]
    with engine.begin() as connection:
        assert delete_before(connection, now) == 1


def test_all_that_is_old_is_deleted_however_many_transactions_that_takes(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other, without an hour between them; the log tells how many rows there were in all."""
    caplog.set_level("INFO")
    store = open_store()
    now = datetime.now(UTC)
    old = [make_record(timestamp=now - timedelta(days=40)) for _ in range(2 * CHUNK_ROWS + 1)]
    store.record([*old, make_record(timestamp=now)])
    assert store.close(timeout=30) == 0
    open_store(retention_days=30)
    eventually(lambda: f"deleted {len(old)} predictions older than 30 days" in caplog.text)
    assert ages(engine) == [0]


def test_a_large_deletion_pauses_and_ends_when_the_store_is_closed(
    open_store: OpenStore,
    engine: sa.Engine,
    make_record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Between two transactions the writer has its turn, and a shutdown does not wait for the rest of them."""
    caplog.set_level("INFO")
    monkeypatch.setattr(retention, "_PAUSE_S", 3600.0)
    store = open_store()
    now = datetime.now(UTC)
    store.record([make_record(timestamp=now - timedelta(days=40)) for _ in range(2 * CHUNK_ROWS + 1)])
    assert store.close(timeout=30) == 0
    deleting = retention.Retention(engine, 30)
    try:
        eventually(lambda: len(ages(engine)) == CHUNK_ROWS + 1)
    finally:
        deleting.close(PATIENCE_S)
    assert not deleting._thread.is_alive()
    assert f"deleted {CHUNK_ROWS} predictions older than 30 days" in caplog.text


def test_a_deletion_that_fails_is_told_and_tried_again(
    open_store: OpenStore,
    engine: sa.Engine,
    make_record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that refuses, or is away, at one hour is asked again at the next."""
    monkeypatch.setattr(retention, "_PERIOD_S", 0.05)
    store = open_store()
    store.record([make_record(timestamp=datetime.now(UTC) - timedelta(days=40))])
    assert store.close(timeout=10) == 0
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE predictions_log RENAME TO elsewhere")
    deleting = retention.Retention(engine, 30)
    try:
        eventually(lambda: "deleting old predictions failed, and is tried again later" in caplog.text)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO predictions_log")
        eventually(lambda: not ages(engine))
    finally:
        deleting.close(10)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_old_rows_are_looked_for_every_hour(
    open_store: OpenStore, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not all the time: each look takes the lock that the writer needs."""
    waits: list[float | None] = []

    class Told(threading.Event):
        """Tells how long it was to be waited for."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(timeout)

    monkeypatch.setattr(retention, "threading", SimpleNamespace(Event=Told, Thread=threading.Thread))
    open_store()
    deleting = retention.Retention(engine, 30)
    eventually(lambda: bool(waits))
    deleting.close(PATIENCE_S)
    assert waits == [3600.0]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_connection_is_kept_between_deletions(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, database_url: str
) -> None:
    """In an hour it may have broken, and the deletion after it would fail; and workers have no more than two each."""
    store = open_store()
    store.record([make_record(timestamp=datetime.now(UTC) - timedelta(days=40))])
    assert store.close(timeout=10) == 0
    open_store(url=f"{database_url}&application_name=deleting", retention_days=30)
    eventually(lambda: not ages(engine))
    sessions = sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'deleting'")

    def is_alone() -> bool:
        with engine.connect() as connection:
            return connection.execute(sessions).all() == [(0,)]

    eventually(is_alone)


def test_a_row_without_a_time_is_not_taken_for_an_old_one(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says how old it is, nor in SQLite what a number means: such rows are kept; the log says what to do."""
    store = open_store()
    store.record([make_record(timestamp=datetime.now(UTC) - timedelta(days=age)) for age in (40, 0, 0, 0, 0)])
    assert store.close(timeout=10) == 0
    values = ["NULL", "unixepoch()", "''"] if engine.dialect.name == "sqlite" else ["NULL"]
    with engine.begin() as connection:
        for number, value in enumerate(values, start=3):
            connection.exec_driver_sql(
                f"UPDATE predictions_log SET timestamp = {value} WHERE predic_id = {number}"
            )
    open_store(retention_days=30)
    eventually(lambda: f"{len(values)} predictions are kept whatever their age" in caplog.text)
    with engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT predic_id FROM predictions_log ORDER BY 1").scalars().all()
    assert kept == [2, 3, 4, 5]


def test_private_rows(open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord) -> None:
    """In private mode neither the address nor the box of a face reaches the database; the rest does."""
    store = open_store(private=True)
    store.record([make_record(face_box=(1, 2, 3, 4), detection_score=0.5, source_ip="192.0.2.7", user="ana")])
    assert store.close(timeout=10) == 0
    columns = predictions_log.c
    with engine.connect() as connection:
        query = sa.select(columns.source_ip, columns.face_box, columns.detection_score, columns.user_id)
        assert tuple(connection.execute(query).one()) == (None, None, 0.5, "ana")
