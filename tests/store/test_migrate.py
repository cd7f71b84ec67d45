"""Migrations: new databases, those of the older server, those of others, and several processes at once."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.emotions import DESCRIPTIONS
from service.errors import StartupError
from service.store import prepare
from service.store.database import create_engine, parse_url
from service.store.migrate import alembic_config, migrate
from service.store.schema import HEAD, emotion_class, metadata, model_version, predictions_log
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import create, execute, revision
from tests.store.older_server import OLDER_COLUMNS, OLDER_SERVER, make_older_server, older_columns


def emotions(engine: sa.Engine) -> dict[str, tuple[int, str]]:
    with engine.connect() as connection:
        return {
            row.emotion_name: (row.emotion_id, row.emotion_desc)
            for row in connection.execute(emotion_class.select())
        }


def test_an_empty_database(engine: sa.Engine) -> None:
    """Everything is made, with the seven emotions under the ids of the wire contract and in Spanish."""
    migrate(engine)
    names = sorted(DESCRIPTIONS["es"])
    assert emotions(engine) == {
        name: (number, DESCRIPTIONS["es"][name]) for number, name in enumerate(names, start=1)
    }
    assert revision(engine) == HEAD


@pytest.mark.parametrize("start", ["nothing", "older server"])
def test_the_schema_is_what_the_migrations_make(engine: sa.Engine, start: str) -> None:
    """Alembic finds no difference between the metadata and a migrated database, new or upgraded."""
    if start == "older server":
        make_older_server(engine, ["angry"])
    migrate(engine)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_index_of_users_holds_no_predictions_without_one(engine: sa.Engine) -> None:
    """What the metadata leave for the migration to say: the index over user and time is partial."""
    migrate(engine)
    table = "pg_indexes" if engine.dialect.name == "postgresql" else "sqlite_master"
    column = "indexdef" if engine.dialect.name == "postgresql" else "sql"
    with engine.connect() as connection:
        statements = connection.execute(sa.text(f"SELECT {column} FROM {table}")).scalars().all()
    (statement,) = (text for text in statements if text and "predictions_log_user_id_timestamp_idx" in text)
    assert "user_id is not null" in statement.lower()


def test_the_head_in_the_code_is_the_last_migration(engine: sa.Engine) -> None:
    """The revision that start-up compares with, without importing Alembic, is the one Alembic would go to."""
    with engine.connect() as connection:
        assert ScriptDirectory.from_config(alembic_config(connection)).get_current_head() == HEAD


def test_an_older_servers_rows_are_kept(engine: sa.Engine) -> None:
    """A database of the older server is upgraded in place, with every row and every description as it was."""
    make_older_server(engine, sorted(DESCRIPTIONS["es"]))
    before = older_columns(engine)
    assert len(before) == 20
    migrate(engine)
    assert older_columns(engine) == before
    assert {description for _, description in emotions(engine).values()} == {"mine"}
    with engine.connect() as connection:
        assert connection.execute(sa.select(predictions_log.c.face_index).distinct()).scalars().all() == [0]
        assert connection.execute(sa.select(model_version.c.model_version_tag)).scalars().all() == ["v0.9"]


def test_an_older_servers_ids_are_followed(
    engine: sa.Engine, open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Where the older server numbered the emotions otherwise, missing ones are added and predictions use its ids."""
    make_older_server(engine, ["Surprise", "happy"])
    store = open_store()
    found = emotions(engine)
    assert found["Surprise"] == (1, "mine")
    assert found["happy"] == (2, "mine")
    assert found["fear"] == (3, "Miedo o temor")
    assert len(found) == 7
    assert len({number for number, _ in found.values()}) == 7

    store.record([make_record(emotion="surprise"), make_record(emotion="happy")])
    assert store.close(timeout=10) == 0
    assert [row[1] for row in older_columns(engine)[-2:]] == [1, 2]


def test_names_that_an_older_server_has_twice(
    engine: sa.Engine, open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Its tables without their unique keys, as a copy lacks them: predictions point to the first row of a name."""
    execute(engine, re.sub(r"(,\s+CONSTRAINT \w+)? UNIQUE( \(\w+\))?", "", OLDER_SERVER[engine.dialect.name]))
    execute(
        engine,
        "INSERT INTO emotion_class (emotion_name) VALUES ('Happy'), ('happy'), ('happy')",
        "INSERT INTO model_version (model_version_tag, model_status) VALUES ('v1.0.0', '01'), ('v1.0.0', '01')",
    )
    store = open_store()
    store.record([make_record(emotion="happy")])
    assert store.close(timeout=10) == 0
    with engine.connect() as connection:
        row = connection.execute(sa.select(predictions_log.c.emotion_id, predictions_log.c.model_id)).one()
        active = sa.select(model_version.c.model_id).where(model_version.c.model_status == "01")
        assert connection.execute(active).scalars().all() == [1]
    assert tuple(row) == (1, 1)


def test_an_older_server_can_still_write(engine: sa.Engine) -> None:
    """After the upgrade the older server's own statements work, also for a new emotion."""
    make_older_server(engine, ["happy"])
    migrate(engine)
    execute(
        engine,
        "INSERT INTO emotion_class (emotion_name) VALUES ('calm')",
        "INSERT INTO predictions_log (emotion_id, confidence, model_id, processing_time_ms, source_ip)"
        " VALUES (1, 0.5, 1, 3, '192.0.2.1')",
    )
    assert len(older_columns(engine)) == 21


def test_tables_of_another_application_are_refused(engine: sa.Engine) -> None:
    """Tables of our names with other columns are left alone; one line says which and what to do."""
    other = "CREATE TABLE emotion_class (id INTEGER PRIMARY KEY, label TEXT)"
    execute(engine, other)
    with pytest.raises(
        StartupError, match=r"emotion_class but not model_version; give VisionAI a database"
    ) as caught:
        migrate(engine)
    assert "\n" not in str(caught.value)
    assert sa.inspect(engine).get_table_names() == ["emotion_class"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            "ALTER TABLE predictions_log RENAME COLUMN confidence TO score",
            "predictions_log has no column confidence",
        ),
        (
            "ALTER TABLE emotion_class DROP COLUMN emotion_desc; ALTER TABLE emotion_class ADD emotion_desc INTEGER",
            "emotion_class.emotion_desc has the type INTEGER",
        ),
        (
            "ALTER TABLE predictions_log ADD user_id INTEGER",
            "predictions_log has a column user_id of unknown origin",
        ),
    ],
)
def test_tables_that_differ_in_one_column_are_refused(engine: sa.Engine, change: str, reason: str) -> None:
    """A missing column, another type or a name that is needed is named, and nothing is changed."""
    make_older_server(engine, ["happy"])
    execute(engine, change)
    with pytest.raises(StartupError, match=reason):
        migrate(engine)
    assert revision(engine) is None
    assert "probabilities" not in {
        column["name"] for column in sa.inspect(engine).get_columns("predictions_log")
    }


@pytest.mark.parametrize("change", ["source_ip TYPE VARCHAR(45)", "timestamp TYPE TIMESTAMP"])
def test_types_that_lose_what_is_stored_are_refused(postgres_url: str, change: str) -> None:
    """On PostgreSQL an address is no text, where it would get a netmask, and a time has a zone."""
    engine = create_engine(parse_url(postgres_url))
    make_older_server(engine, ["happy"])
    execute(engine, f"ALTER TABLE predictions_log ALTER {change}")
    with pytest.raises(StartupError, match=r"predictions_log\.\w+ has the type"):
        migrate(engine)
    engine.dispose()


@pytest.mark.parametrize("key", ["model_version.model_id", "predictions_log.predic_id"])
def test_tables_that_the_database_does_not_number_are_refused(postgres_url: str, key: str) -> None:
    """On PostgreSQL a copied table has no sequence: told at the start, and not when the first prediction is stored."""
    engine = create_engine(parse_url(postgres_url))
    make_older_server(engine, ["happy"])
    table, column = key.split(".")
    execute(engine, f"ALTER TABLE {table} ALTER {column} DROP DEFAULT")
    with pytest.raises(StartupError, match=f"{key} is not numbered by the database"):
        migrate(engine)
    execute(engine, f"ALTER TABLE {table} ALTER {column} ADD GENERATED BY DEFAULT AS IDENTITY")
    migrate(engine)
    engine.dispose()


@pytest.mark.parametrize(("column", "key"), [("model_id", "model_version"), ("predic_id", "predictions_log")])
def test_keys_that_sqlite_leaves_empty_are_refused(tmp_path: Path, column: str, key: str) -> None:
    """SQLite numbers an INTEGER PRIMARY KEY; one of INT would be null in each row, which then nothing finds."""
    engine = create(f"sqlite:///{tmp_path / 'older.db'}")
    execute(
        engine, OLDER_SERVER["sqlite"].replace(f"{column} INTEGER NOT NULL PRIMARY", f"{column} INT PRIMARY")
    )
    with pytest.raises(StartupError, match=f"{key}.{column} is not numbered by the database"):
        migrate(engine)
    engine.dispose()


@pytest.mark.parametrize("kind", ["VARCHAR(20)", "INTEGER DEFAULT 7 NOT NULL"])
def test_a_column_of_the_operators_own_is_kept(engine: sa.Engine, kind: str) -> None:
    """An additional column that may be null, or has a default, does not stand in the way of the upgrade."""
    make_older_server(engine, ["happy"])
    execute(engine, f"ALTER TABLE predictions_log ADD shop {kind}")
    migrate(engine)
    assert revision(engine) == HEAD


def test_a_newer_database_is_refused(engine: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A revision that this release does not know stops the start instead of being worked on, or said to be."""
    migrate(engine)
    caplog.set_level("INFO")
    execute(engine, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match=r"at revision 9999, which this .*: install that release"):
        migrate(engine)
    assert "migrating" not in caplog.text


def test_downgrade_to_the_older_servers_form(engine: sa.Engine) -> None:
    """Going back keeps every row in the older server's form, and without the version forward again works."""
    make_older_server(engine, ["happy"])
    before = older_columns(engine)
    migrate(engine)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0001")
    names = {column["name"] for column in sa.inspect(engine).get_columns("predictions_log")}
    assert names == set(OLDER_COLUMNS)
    assert older_columns(engine) == before
    execute(engine, "DROP TABLE alembic_version")
    migrate(engine)
    assert older_columns(engine) == before


def test_no_downgrade_drops_the_tables(engine: sa.Engine) -> None:
    """Going back to nothing is refused, and leaves the database as it was."""
    make_older_server(engine, ["happy"])
    migrate(engine)
    with pytest.raises(StartupError, match="hold every stored prediction"), engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert revision(engine) == HEAD
    assert len(older_columns(engine)) == 20


MIGRATOR = """
import sys
import threading
from service.store import Store
sys.stdin.read(1)
store = Store.open(sys.argv[1], labels=("happy", "sad"), version_tag="v1", model_filename="emotion.onnx")
assert store.close(5) == 0
print("alembic" in sys.modules)
"""


def start_migrator(url: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", MIGRATOR, url], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


@pytest.mark.parametrize("start", ["nothing", "older server"])
def test_processes_that_start_at_once_do_not_race(database_url: str, engine: sa.Engine, start: str) -> None:
    """Four processes that open the same database at the same moment all succeed, and one of them migrates."""
    if start == "older server":
        make_older_server(engine, ["happy"])
    processes = [start_migrator(database_url) for _ in range(4)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert [
        (process.returncode, stderr) for process, (_, stderr) in zip(processes, results, strict=True)
    ] == [(0, "")] * 4
    assert revision(engine) == HEAD
    assert len(emotions(engine)) == 7


def test_alembic_is_not_imported_when_there_is_nothing_to_do(database_url: str, engine: sa.Engine) -> None:
    """A process that finds the database migrated does not spend the time and memory of importing Alembic."""
    migrate(engine)
    stdout, stderr = start_migrator(database_url).communicate("go", timeout=60)
    assert (stdout.strip(), stderr) == ("False", "")


def test_a_failed_migration_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a later revision fails, the earlier ones of the same run are undone with it."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr("alembic.op.create_index", fail)
    engine = create(database_url)
    with pytest.raises(RuntimeError, match="no space"):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()


def test_a_model_that_the_database_refuses_leaves_it_as_it_was(database_url: str, engine: sa.Engine) -> None:
    """Where the row of the model violates a rule of the operator's own, nothing is migrated either."""
    other_states = "model_status VARCHAR(2) CHECK (model_status IN ('01', '02'))"
    tables = OLDER_SERVER[engine.dialect.name].replace("model_status VARCHAR(2)", other_states)
    execute(engine, tables)
    with pytest.raises(StartupError, match=r"(?i)check constraint [^;]*$"):
        prepare(database_url, labels=("happy",), version_tag="v1", model_filename="emotion.onnx")
    assert revision(engine) is None
    assert set(sa.inspect(engine).get_table_names()) == {"emotion_class", "model_version", "predictions_log"}


def test_an_index_by_time_that_is_there_is_used(engine: sa.Engine) -> None:
    """It may have the name of ours, which PostgreSQL itself gives to one that is given none."""
    make_older_server(engine, ["happy"])
    execute(engine, "CREATE INDEX predictions_log_timestamp_idx ON predictions_log (timestamp)")
    migrate(engine)
    indexes = sa.inspect(engine).get_indexes("predictions_log")
    assert [index["name"] for index in indexes if index["column_names"] == ["timestamp"]] == [
        "predictions_log_timestamp_idx"
    ]


@pytest.mark.parametrize(
    ("index", "owner"),
    [
        ("predictions_log_timestamp_idx ON predictions_log (emotion_id)", "predictions_log"),
        (
            "predictions_log_timestamp_idx ON predictions_log (timestamp) WHERE emotion_id = 1",
            "predictions_log",
        ),
        ("predictions_log_user_id_timestamp_idx ON model_version (creation_date)", "model_version"),
    ],
)
def test_an_index_that_has_the_name_of_ours(
    database_url: str, engine: sa.Engine, index: str, owner: str
) -> None:
    """It is named, with what to do about it and nothing else, and nothing is changed."""
    make_older_server(engine, ["happy"])
    execute(engine, f"CREATE INDEX {index}")
    with pytest.raises(
        StartupError, match=rf"{index.split()[0]}, on {owner}: rename it, or drop it, and start again$"
    ):
        prepare(database_url, labels=("happy",), version_tag="v1", model_filename="emotion.onnx")
    assert revision(engine) is None


def test_times_that_the_older_server_stored(engine: sa.Engine) -> None:
    """The older server's times are read as aware UTC times."""
    make_older_server(engine, ["happy"])
    migrate(engine)
    with engine.connect() as connection:
        moment = connection.execute(sa.select(predictions_log.c.timestamp)).scalars().first()
    assert moment is not None
    assert moment.utcoffset() is not None
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
