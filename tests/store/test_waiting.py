"""Migrations that wait, or take long: what they say meanwhile, and how they are given up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic import command

from service.store import database
from service.store.database import create_engine, parse_url
from service.store.migrate import alembic_config, migrate
from service.store.schema import HEAD
from tests.conftest import PostgresServer
from tests.service.harness import MODEL
from tests.store.harness import PATIENCE_S, create, eventually, revision
from tests.store.older_server import make_older_server


def test_a_migration_that_takes_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that finds SQLite locked for longer than a write takes says so once, waits, and finds all done."""
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.05)
    url = f"sqlite:///{tmp_path / 'large.db'}"
    migrating, waiting = create(url), create(url)
    with migrating.begin() as connection:
        thread = threading.Thread(target=migrate, args=(waiting,))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
        command.upgrade(alembic_config(connection), "head")
    thread.join(30)
    assert not thread.is_alive()
    assert revision(waiting) == HEAD
    assert caplog.text.count("keeps the database locked") == 1
    migrating.dispose()
    waiting.dispose()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_migration_amid_a_statement(
    postgres_server: PostgresServer, postgres_url: str, tmp_path: Path, number: str
) -> None:
    """One that waits for a lock, or reads a large table, is given up at once and leaves nothing behind.

    The code is an exit's: left to the system, a signal would not reach process 1 of a container.
    """
    engine = create_engine(parse_url(postgres_url))
    make_older_server(engine, ["happy"])
    waiting = (
        f"SELECT 1 FROM pg_stat_activity WHERE datname = '{engine.url.database}' AND wait_event_type = 'Lock'"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE predictions_log")
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "--migrate-only"],
            env=os.environ
            | {"DATABASE_URL": postgres_url, "JOURNAL_DIR": str(tmp_path), "MODEL_PATH": str(MODEL)},
        )
        eventually(lambda: bool(postgres_server.execute(waiting)))
        process.send_signal(signal.Signals[number])
        # The lock would be waited for twice as long.
        assert process.wait(PATIENCE_S) == 128 + signal.Signals[number]
        postgres_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            f" WHERE datname = '{engine.url.database}' AND wait_event_type = 'Lock'"
        )
    assert revision(engine) is None
    engine.dispose()
