"""Database URLs, and what is said when a database cannot be used."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa

from service.errors import StartupError
from service.store.database import create_engine, create_reading_engine, parse_url
from service.store.history import ByUser, latest
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually


@pytest.fixture
def database_url() -> str:
    """These tests bring their own."""
    return ""


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "postgresql+asyncpg"])
def test_every_spelling_of_postgresql(scheme: str) -> None:
    """The schemes that deployments use all mean the driver that is installed."""
    url = parse_url(f"{scheme}://ana:secret@db.example:5433/vision")
    assert (
        url.render_as_string(hide_password=False) == "postgresql+psycopg2://ana:secret@db.example:5433/vision"
    )


@pytest.mark.parametrize(
    "text", ["", "predictions.db", "sqlite://", "sqlite:///:memory:", "mysql://u:hunter2@h/d", "://hunter2@"]
)
def test_what_is_not_a_database_of_ours(text: str) -> None:
    """Anything else is refused in one line that shows the accepted forms and not the text itself."""
    with pytest.raises(StartupError, match=r"sqlite:///path/to/file.db or postgresql://") as caught:
        parse_url(text)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["user", "s3cret", "host", "name", "option"])
def test_bytes_that_are_no_utf_8_are_told(part: str) -> None:
    """PostgreSQL's driver would not take them, wherever in the URL. SQLite's file may have any name."""
    text = "postgresql://user:s3cret@host/name?application_name=option".replace(part, "\udcff")
    with pytest.raises(StartupError, match="DATABASE_URL is not UTF-8") as failed:
        parse_url(text)
    assert "\udcff" not in str(failed.value)
    assert parse_url("sqlite:///\udcff.db").database == "\udcff.db"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ana:s3@cr:et@db/vision",
        "postgresql://ana:s3@cret@db/vision",
        "postgresql://corp/ana:s3cret@db/vision",
        "postgresql://corp/ana:s3cret?@db/vision",
        "postgresql://corp/ana?:s3cret=@db/vision",
    ],
)
def test_a_password_that_must_be_quoted_is_told_how(text: str) -> None:
    """And no part of it is shown, or taken for a host's, a database's or an option's name."""
    with pytest.raises(StartupError, match="write @ as %40") as failed:
        parse_url(text)
    assert "cr" not in str(failed.value)
    assert parse_url("postgresql://ana@home:s3%40cr%3Aet@db/vision").password == "s3@cr:et"


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("sqlite:///{folder}/x.db?timeout=soon", "timeout"),
        ("postgresql://ana:hunter2@db/vision?port=many&sslmode=require", "port, sslmode"),
    ],
)
def test_an_option_with_an_impossible_value(
    open_store: OpenStore, tmp_path: Path, url: str, names: str
) -> None:
    """It is one line that says where to look, and no traceback."""
    with pytest.raises(
        StartupError, match=rf"value that it cannot have \(of {names}\): correct it"
    ) as caught:
        open_store(url=url.format(folder=tmp_path))
    assert "hunter2" not in str(caught.value)


def test_several_servers_that_are_not_there(open_store: OpenStore) -> None:
    """Each is told, as it was given; in libpq's form, which is not taken, how to give them."""
    with pytest.raises(
        StartupError, match=r"'vision' at 127\.0\.0\.1:1, 127\.0\.0\.1:2: connection to server"
    ):
        open_store(url="postgresql://ana@/vision?host=127.0.0.1:1&host=127.0.0.1:2")
    with pytest.raises(
        StartupError, match=r"several hosts are written .*/name\?host=first:5432&host=second:5432$"
    ):
        open_store(url="postgresql://ana:hunter2@127.0.0.1:1,127.0.0.1:2/vision")


def test_a_postgresql_that_is_not_there(open_store: OpenStore) -> None:
    """A refused connection is one line with host, port and what to check, and without the password."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connecting to it is refused
        port = taken.getsockname()[1]
        with pytest.raises(
            StartupError, match=rf"at 127\.0\.0\.1:{port}: .*refused.*check DATABASE_URL"
        ) as caught:
            open_store(url=f"postgresql://ana:hunter2@127.0.0.1:{port}/vision")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_refuses_in_another_encoding_than_utf_8(open_store: OpenStore) -> None:
    """It is told as any refusal is, and waited for where one is, whatever the server's language."""
    said = b"SFATAL\0C57P03\0M" + "el sistema de base de datos se está iniciando".encode("latin-1") + b"\0\0"

    def refuse(server: socket.socket) -> None:
        with suppress(OSError):  # it was shut down: the test is over
            while True:
                client, _ = server.accept()
                with client:
                    (length,) = struct.unpack("!i", client.recv(4, socket.MSG_WAITALL))
                    client.recv(length - 4, socket.MSG_WAITALL)
                    client.sendall(b"E" + struct.pack("!i", len(said) + 4) + said)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=refuse, args=(server,))
        thread.start()
        try:
            url = f"postgresql://ana@127.0.0.1:{server.getsockname()[1]}/vision?sslmode=disable"
            with pytest.raises(StartupError, match=r"FATAL: .* se est� iniciando; check DATABASE_URL"):
                open_store(url=url)
            with pytest.raises(sa.exc.OperationalError, match="se est� iniciando"):
                create_reading_engine(parse_url(url), 1.0).connect()
            assert open_store(url=url, during_outage=True).close(timeout=0) == 0
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_database_that_does_not_exist(open_store: OpenStore, postgres_url: str) -> None:
    """A server without the database says so in the same line."""
    url = postgres_url.replace("/test_", "/other_")
    with pytest.raises(StartupError, match=r"PostgreSQL database 'other_\d+' at .*does not exist"):
        open_store(url=url)


@pytest.mark.parametrize("place", ["the URL", "PGOPTIONS"])
def test_a_schema_that_the_operator_names(
    open_store: OpenStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """It holds for those who read, too, whose own options do not hide it."""
    options = "-c search_path=emotions"
    engine = create_engine(parse_url(postgres_url))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA emotions")
    engine.dispose()
    if place == "PGOPTIONS":
        monkeypatch.setenv("PGOPTIONS", options)
    else:
        postgres_url = f"{postgres_url}&options={quote(options)}"
    store = open_store(url=postgres_url)
    schemas = sa.text("SELECT schemaname FROM pg_tables WHERE tablename = 'predictions_log'")
    assert store.queries.submit(lambda connection: connection.scalar(schemas)).result(30) == "emotions"
    assert store.queries.submit(lambda connection: latest(connection, ByUser("ana"), 1)).result(30) == []


def test_what_the_url_says_of_a_connection(postgres_url: str) -> None:
    """A server that takes long to wake up, or a name for the administrator's list: ours are only defaults."""
    name = sa.text("SELECT current_setting('application_name')")
    for url, expected in ((postgres_url, "visionai"), (f"{postgres_url}&application_name=kiosk", "kiosk")):
        for engine in (create_engine(parse_url(url)), create_reading_engine(parse_url(url), timeout=5)):
            with engine.connect() as connection:
                assert connection.scalar(name) == expected
            engine.dispose()


def test_a_reader_asks_for_no_options(postgres_url: str) -> None:
    """PgBouncer refuses a connection that does; its limits are set once it is there."""
    engine = create_reading_engine(parse_url(postgres_url), timeout=5)
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.info.options == ""
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "5s"
        assert connection.exec_driver_sql("SHOW max_parallel_workers_per_gather").scalar() == "0"
        with pytest.raises(sa.exc.InternalError, match="read-only"):
            connection.exec_driver_sql("CREATE TABLE made (value INTEGER)")
    engine.dispose()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_what_the_server_isolates_by_default(postgres_url: str, level: str) -> None:
    """A transaction that had to wait sees what was committed meanwhile, as migrations and counts need it."""
    engine = create_engine(parse_url(postgres_url))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"ALTER DATABASE {engine.url.database} SET default_transaction_isolation = '{level}'"
        )
        connection.exec_driver_sql("CREATE TABLE counted (value INTEGER)")
    engine.dispose()
    with engine.begin() as waiting:
        assert waiting.exec_driver_sql("SELECT count(*) FROM counted").scalar() == 0
        with engine.begin() as other:
            other.exec_driver_sql("INSERT INTO counted VALUES (1)")
        assert waiting.exec_driver_sql("SELECT count(*) FROM counted").scalar() == 1
    engine.dispose()


def test_the_one_of_several_servers_that_takes_writes(
    open_store: OpenStore, make_record: MakeRecord, postgres_url: str
) -> None:
    """Asked for in the URL, it is found by those who only read, too."""
    store = open_store(url=f"{postgres_url}&target_session_attrs=read-write")
    assert store.record([make_record(user="ana")])
    eventually(lambda: store.status().written == 1)
    query = store.queries.submit(lambda connection: latest(connection, ByUser("ana"), 1))
    assert len(query.result(PATIENCE_S)) == 1
