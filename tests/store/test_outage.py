"""Databases that stop, vanish mid-commit, hang, or refuse: nothing is lost and nothing is stored twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import AF_UNIX, create_server, socket
from typing import TYPE_CHECKING

import psutil
import pytest

from service.errors import StartupError
from service.store.backlog import MemoryBacklog
from service.store.database import create_engine, parse_url
from service.store.history import ByUser, latest
from service.store.reference import Model
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually, ids, stored

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


@pytest.fixture
def database_url(restartable_postgres: PostgresServer) -> Iterator[str]:
    """A database on the server that these tests may stop."""
    name = restartable_postgres.create_database()
    yield restartable_postgres.url(name)
    restartable_postgres.drop_database(name)


def test_a_server_that_stops_and_starts(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer, database_url: str
) -> None:
    """While PostgreSQL is down records are taken and kept; when it is back they are stored without being asked."""
    store = open_store()
    records = [make_record() for _ in range(300)]
    assert store.record(records[:100])
    eventually(lambda: store.status().written == 100)

    restartable_postgres.stop()
    for record in records[100:]:
        assert store.record([record])
    eventually(lambda: not store.status().healthy)
    status = store.status()
    assert status.pending == 200
    assert status.failed_attempts > 0
    assert status.last_error

    restartable_postgres.start()
    eventually(lambda: store.status().written == 300)
    assert store.status().healthy
    found = stored(database_url)
    assert len(found) == 300
    assert set(found) == ids(records)


def test_the_first_question_after_a_restart(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer
) -> None:
    """A connection that broke while nobody asked costs nobody an answer."""
    store = open_store()
    assert store.record([make_record(user="ana")])
    eventually(lambda: store.status().written == 1)

    def rows() -> int:
        return len(store.queries.submit(lambda connection: latest(connection, ByUser("ana"), 5)).result(30))

    assert rows() == 1
    restartable_postgres.stop()
    restartable_postgres.start()
    assert rows() == 1


def test_the_number_left_out_is_told_at_close(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer
) -> None:
    """Closing while the database is down tries for as long as it may, then says how many records it left out."""
    store = open_store()
    restartable_postgres.stop()
    try:
        assert store.record([make_record() for _ in range(5)])
        began = time.monotonic()
        assert store.close(timeout=1) == 5
        assert 0.9 < time.monotonic() - began < PATIENCE_S
    finally:
        restartable_postgres.start()


def test_closing_waits_for_a_server_that_comes_back(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer, database_url: str
) -> None:
    """A database that returns while the store closes gets everything."""
    store = open_store()
    restartable_postgres.stop()
    records = [make_record() for _ in range(5)]
    assert store.record(records)
    eventually(lambda: store.status().failed_attempts > 0)
    thread = threading.Timer(0.5, restartable_postgres.start)
    thread.start()
    assert store.close(timeout=PATIENCE_S) == 0
    thread.join()
    assert set(stored(database_url)) == ids(records)


def test_a_server_that_hangs(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer
) -> None:
    """A database that is frozen in mid-connection delays neither recording nor, beyond its time, closing."""
    store = open_store()
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)
    backends = psutil.Process(restartable_postgres.pid).children()
    for backend in backends:
        backend.suspend()
    try:
        began = time.monotonic()
        for _ in range(100):
            assert store.record([make_record()])
        assert time.monotonic() - began < PATIENCE_S / 2
        assert store.close(timeout=0.5) == 100
        assert time.monotonic() - began < PATIENCE_S
    finally:
        for backend in backends:
            backend.resume()


def test_a_table_that_somebody_keeps_locked(
    open_store: OpenStore,
    make_record: MakeRecord,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing fails then, and nothing is stored: the log says so once, and when it is over."""
    monkeypatch.setattr("service.store.STALLED_S", 0.2)
    caplog.set_level("INFO", "service.store")
    store = open_store()
    engine = create_engine(parse_url(database_url))
    with engine.begin() as other:
        other.exec_driver_sql("LOCK TABLE predictions_log")
        caplog.clear()
        assert store.record([make_record()])
        eventually(lambda: not store.status().writing)
        assert "has not answered" in str(store.status().last_error)
    engine.dispose()
    eventually(lambda: store.status().written == 1 and store.status().writing)
    waits, works = [record.message for record in caplog.records]
    assert waits.startswith("storing predictions waits: the database has not answered for")
    assert works == "the database answers again: predictions are stored"


def test_memory_that_has_room_again_says_so() -> None:
    """As soon as records have left it, whether or not others come, or fewer come than were refused."""
    backlog = MemoryBacklog(Model("v1", "emotion.onnx", ("happy", "sad")), limit=3)
    assert backlog.append(b"[1,2]", 2)
    assert not backlog.append(b"[3,4]", 2)
    assert backlog.error == "2 records wait in memory, and 3 may"
    assert backlog.append(b"[3]", 1)
    assert backlog.error is None
    assert not backlog.append(b"[4]", 1)
    assert backlog.error == "3 records wait in memory, and 3 may"
    batch = backlog.take(10)
    assert batch is not None
    backlog.acknowledge(batch)
    assert backlog.error is None


def test_the_bound_of_the_memory(
    open_store: OpenStore,
    make_record: MakeRecord,
    restartable_postgres: PostgresServer,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full backlog turns records away, whole batches of them, and takes new ones once it has room."""
    monkeypatch.setattr("service.store.MEMORY_LIMIT", 10)
    store = open_store()
    restartable_postgres.stop()
    kept = [make_record() for _ in range(9)]
    assert store.record(kept)
    assert not store.record([make_record(), make_record()])
    status = store.status()
    assert (status.pending, status.healthy) == (9, False)

    restartable_postgres.start()
    eventually(lambda: store.status().written == 9)
    later = make_record()
    assert store.record([later])
    assert store.close(timeout=PATIENCE_S) == 0
    assert set(stored(database_url)) == ids([*kept, later])


class CommitSwallower:
    """A relay before PostgreSQL that lets commits through and their acknowledgements vanish, ``lose`` times."""

    def __init__(self, server_socket: str, lose: int) -> None:
        self._server_socket = server_socket
        self.lose = lose
        self._listener = create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket(AF_UNIX)
            server.connect(self._server_socket)
            swallow = threading.Event()
            self._spawn(self._forward, client, server, swallow)
            self._spawn(self._back, client, server, swallow)

    def _forward(self, client: socket, server: socket, swallow: threading.Event) -> None:
        with client:
            while data := self._receive(client):
                if b"COMMIT" in data and self.lose > 0:
                    self.lose -= 1
                    swallow.set()
                server.sendall(data)
            self._shutdown(server)

    def _back(self, client: socket, server: socket, swallow: threading.Event) -> None:
        with server:
            while data := self._receive(server):
                if swallow.is_set():
                    break
                client.sendall(data)
            self._shutdown(client)

    @staticmethod
    def _receive(end: socket) -> bytes:
        try:
            return end.recv(65536)
        except OSError:
            return b""

    @staticmethod
    def _shutdown(end: socket) -> None:
        try:
            end.shutdown(2)
        except OSError:
            return  # the other side was first

    def close(self) -> None:
        """Break every connection and end the threads."""
        self._shutdown(self._listener)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def swallowing_commits(url: str, lose: int) -> Iterator[tuple[str, CommitSwallower]]:
    """The URL of the same database through a relay that begins to swallow when ``lose`` is set."""
    parsed = parse_url(url)
    relay = CommitSwallower(f"{parsed.query['host']}/.s.PGSQL.5432", lose)
    try:
        yield f"postgresql://postgres@127.0.0.1:{relay.port}/{parsed.database}", relay
    finally:
        relay.close()


def test_an_acknowledgement_that_is_lost(
    open_store: OpenStore, make_record: MakeRecord, database_url: str
) -> None:
    """When the connection breaks between a commit and its answer, the batch is sent again and stored once."""
    with swallowing_commits(database_url, lose=0) as (url, relay):
        store = open_store(url=url)
        relay.lose = 3
        records = [make_record() for _ in range(50)]
        assert store.record(records)
        eventually(lambda: store.status().written == 50)
        assert relay.lose == 0
        assert store.status().failed_attempts == 3
        assert store.close(timeout=PATIENCE_S) == 0
    found = stored(database_url)
    assert len(found) == 50
    assert set(found) == ids(records)


def test_rows_that_predictions_point_to_are_made_again(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer, database_url: str
) -> None:
    """When somebody empties the tables under a running service, the emotions and the model come back."""
    store = open_store()
    database = parse_url(database_url).database or ""
    restartable_postgres.execute("TRUNCATE emotion_class, model_version, predictions_log", database)
    records = [make_record() for _ in range(10)]
    assert store.record(records)
    assert store.close(timeout=PATIENCE_S) == 0
    assert set(stored(database_url)) == ids(records)


def test_a_locked_sqlite_file_is_waited_for(
    open_store: OpenStore, make_record: MakeRecord, tmp_path: Path
) -> None:
    """While another process holds the write lock of a SQLite file, records wait, and are written after it."""
    url = f"sqlite:///{tmp_path / 'predictions.db'}"
    store = open_store(url=url)
    other = sqlite3.connect(tmp_path / "predictions.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    records = [make_record() for _ in range(5)]
    assert store.record(records)
    time.sleep(0.2)
    assert store.status().pending == 5
    other.execute("COMMIT")
    other.close()
    assert store.close(timeout=PATIENCE_S) == 0
    assert set(stored(url)) == ids(records)


def test_one_refused_record_does_not_hold_up_the_others(
    open_store: OpenStore, make_record: MakeRecord, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A value that does not fit its column costs that record alone, which is counted, and named in the log."""
    good = [make_record() for _ in range(5)]
    wrong = make_record(face_index=1_000_000)
    before = open_store()
    assert before.record(good[:1])
    assert before.close(timeout=PATIENCE_S) == 0
    store = open_store()
    assert store.record([*good[:3], wrong, *good[3:]])
    assert store.close(timeout=PATIENCE_S) == 0
    assert set(stored(database_url)) == ids(good)
    assert store.status().rejected == 1
    assert (before.status().written, store.status().written) == (1, 4)
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert told.message.startswith(f"prediction {wrong['prediction_id']} cannot be stored: ")


def test_an_outage_outlives_the_process(
    open_store: OpenStore,
    make_record: MakeRecord,
    restartable_postgres: PostgresServer,
    tmp_path: Path,
    database_url: str,
) -> None:
    """What was recorded while the database was down, in a process that has ended since, is stored by the next."""
    journal = tmp_path / "journal"
    first = open_store(journal_dir=journal)
    restartable_postgres.stop()
    records = [make_record() for _ in range(50)]
    assert all(first.record([record]) for record in records)
    assert first.close(timeout=0.5) == 50
    restartable_postgres.start()

    second = open_store(journal_dir=journal, version_tag="v2")
    assert second.close(timeout=30) == 0
    assert set(stored(database_url)) == ids(records)
    tags = restartable_postgres.execute(
        "SELECT DISTINCT model_version_tag, model_status FROM predictions_log NATURAL JOIN model_version",
        parse_url(database_url).database or "",
    )
    assert tags == [("v1.0.0", "00")]


def test_opened_while_the_database_is_down(
    open_store: OpenStore, make_record: MakeRecord, restartable_postgres: PostgresServer, database_url: str
) -> None:
    """Where it is told to, a store opens without its database, takes records, and prepares and fills it later."""
    records = [make_record() for _ in range(3)]
    restartable_postgres.stop()
    try:
        with pytest.raises(StartupError):
            open_store()
        store = open_store(during_outage=True)
        assert store.record(records)
        eventually(lambda: not store.status().writing)
        assert store.status().taking
    finally:
        restartable_postgres.start()
    eventually(lambda: store.status().written == 3)
    assert set(stored(database_url)) == ids(records)
