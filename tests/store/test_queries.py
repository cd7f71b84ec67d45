"""The threads that read the database."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from service.errors import DeadlineExceeded, Internal, Overloaded, ShuttingDown
from service.store.database import parse_url
from service.store.history import ByUser, latest
from service.store.queries import CAPACITY, THREADS, Queries
from tests.store.conftest import OpenStore
from tests.store.harness import PATIENCE_S, ask, eventually


def test_a_thread_that_does_not_start_takes_no_place(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the system has none to give: as soon as it has, what is asked then is answered. Who asked meanwhile
    is to try again; a fault would cost the client its connection.
    """

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    store = open_store()
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        for _ in range(CAPACITY):
            with pytest.raises(Overloaded, match="no thread"):
                store.queries.submit(lambda connection: connection.scalar(sa.select(sa.literal(1))))
    assert ask(store, lambda connection: connection.scalar(sa.select(sa.literal(1)))) == 1


def test_a_query_for_which_no_second_thread_can_be_had_waits_for_the_first(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered, one query after the other."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    begun, go_on = threading.Event(), threading.Event()

    def hold(connection: sa.Connection) -> bool:
        begun.set()
        return go_on.wait(PATIENCE_S)

    store = open_store()
    held = store.queries.submit(hold)
    assert begun.wait(PATIENCE_S)
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        waits = store.queries.submit(lambda connection: connection.scalar(sa.select(sa.literal(1))))
    go_on.set()
    assert held.result(PATIENCE_S)
    assert waits.result(PATIENCE_S) == 1


def test_a_query_that_takes_too_long_is_cut(open_store: OpenStore, database_url: str) -> None:
    """The database is told to stop, and the next query is answered."""
    open_store()
    queries = Queries(parse_url(database_url), timeout=0.2)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    try:
        with pytest.raises(DeadlineExceeded, match=r"longer than 0\.2 s"):
            queries.submit(lambda connection: connection.exec_driver_sql(endless).scalar()).result(30)

        def is_answered() -> bool:
            with suppress(DeadlineExceeded):  # on a busy machine, any may take too long
                one = queries.submit(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
                return one.result(30) == 1
            return False

        eventually(is_answered)
    finally:
        queries.close()


def test_queries_cannot_write(open_store: OpenStore) -> None:
    """Whatever is in a query, the database refuses to change."""
    store = open_store()
    with pytest.raises(Exception, match="cannot be read now"):
        ask(store, lambda connection: connection.exec_driver_sql("DELETE FROM predictions_log").rowcount)


def test_the_log_has_each_reason_why_reading_fails_once(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Every question fails while the database is away; what fails after one that did not is told again."""
    caplog.set_level("INFO")
    store = open_store()
    for _ in range(2):
        for table in ("nowhere", "elsewhere", "nowhere", "elsewhere"):
            query = partial(sa.Connection.exec_driver_sql, statement=f"SELECT * FROM {table}")
            with pytest.raises(Internal, match="cannot be read now"):
                ask(store, query)
        assert ask(store, lambda _: True)
    told = [record.message for record in caplog.records if "reading stored" in record.message]
    assert ["nowhere" in message for message in told] == [True, False, True, False]


def test_an_outage_of_many_reasons_does_not_fill_the_log(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    """There may be a number in each: ten are told."""
    store = open_store()
    for number in range(12):
        with pytest.raises(Internal):
            ask(store, partial(sa.Connection.exec_driver_sql, statement=f"SELECT * FROM nowhere{number}"))
    assert len([record for record in caplog.records if "reading stored" in record.message]) == 10


def test_a_query_that_fails_by_a_fault_of_ours_costs_no_thread(
    open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked is told, the log has where it was and which request, and what comes next is answered."""
    store = open_store()
    for number in range(THREADS + 1):
        with pytest.raises(Internal, match="the fault is ours"):
            store.queries.submit(lambda _: 1 // 0, number).result(30)
    told = [(record.exc_info is not None, vars(record)["request_ids"]) for record in caplog.records]
    assert told == [(True, [number]) for number in range(THREADS + 1)]
    assert ask(store, lambda _: True)


def test_no_query_is_taken_after_close(open_store: OpenStore) -> None:
    """Whoever asks is told that the service shuts down, and does not wait."""
    store = open_store()
    assert ask(store, lambda _: True)
    store.close(timeout=10)
    with pytest.raises(ShuttingDown):
        ask(store, lambda _: True)


def test_more_queries_than_fit_are_refused(open_store: OpenStore) -> None:
    """They say when to come again, and once there is room they are taken."""
    store, go = open_store(), threading.Event()
    waiting = [store.queries.submit(lambda _: go.wait(30)) for _ in range(CAPACITY)]
    with pytest.raises(Overloaded) as refused:
        store.queries.submit(lambda _: True)
    assert refused.value.retry_after_ms
    go.set()
    assert all(future.result(30) for future in waiting)
    assert ask(store, lambda _: True)


def test_a_query_that_is_cancelled_leaves_its_place(open_store: OpenStore) -> None:
    """Once its turn comes: others have room then."""
    store, go = open_store(), threading.Event()
    waiting = [store.queries.submit(lambda _: go.wait(30)) for _ in range(CAPACITY)]
    cancelled = [future for future in waiting if future.cancel()]
    assert len(cancelled) >= CAPACITY - THREADS
    go.set()
    for future in set(waiting) - set(cancelled):
        assert future.result(30)
    assert ask(store, lambda _: True)  # which waited for its turn behind them
    later = [store.queries.submit(lambda _: True) for _ in range(CAPACITY - THREADS)]
    assert all(future.result(30) for future in later)


SILENCE = """
import sys, time
from service.store.database import parse_url
from service.store.queries import THREADS, Queries
queries = Queries(parse_url(sys.argv[1]))
asked = [queries.submit(lambda connection: None) for _ in range(THREADS + 1)]
while not all(future.running() for future in asked[:THREADS]):
    time.sleep(0.01)
queries.close()
print(asked[THREADS].cancelled())
"""


def test_a_database_that_never_answers_keeps_no_process_from_ending() -> None:
    """Queries that wait for it are left behind, and those behind them cancelled."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://ana@127.0.0.1:{silent.getsockname()[1]}/vision?connect_timeout=0"
        done = subprocess.run(
            [sys.executable, "-c", SILENCE, url], check=True, capture_output=True, text=True, timeout=60
        )
    assert done.stdout.strip() == "True"


def test_a_query_does_not_wait_for_a_writer_on_sqlite(open_store: OpenStore, tmp_path: Any) -> None:
    """With a transaction open that has the write lock, stored predictions are read at once."""
    store = open_store(url=f"sqlite:///{tmp_path / 'locked.db'}")
    writer = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        assert ask(store, lambda connection: latest(connection, ByUser("ana"), 1)) == []
    finally:
        writer.execute("ROLLBACK")
        writer.close()
