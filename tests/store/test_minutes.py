"""Counts by minute say what the rows say, whoever wrote or deleted them."""

from __future__ import annotations

import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command

from service.store import Store, minutes
from service.store.history import Anonymous, ByUser, Figures, figures
from service.store.migrate import alembic_config, migrate
from service.store.retention import delete_before
from service.store.schema import emotion_minutes, latency_minutes, predictions_log
from tests.store.conftest import LABELS, MakeRecord, OpenStore
from tests.store.harness import NOW, ask, written

HISTORY = Path(__file__).parents[2] / "docs" / "history.md"
HOUR = timedelta(hours=1)
START = NOW.replace(second=0, microsecond=0)
SINCE = START - HOUR
WINDOW = 2 * HOUR


def fill(store: Store, make_record: MakeRecord, count: int = 500) -> Store:
    """Records over two hours, of two kinds of clients, some of images with two faces."""
    chance = random.Random(7)
    records = [
        make_record(
            emotion=chance.choice(LABELS),
            confidence=chance.random(),
            processing_ms=chance.lognormvariate(1, 2),
            timestamp=SINCE + chance.random() * WINDOW,
            user=chance.choice((None, "ana")),
            face_index=chance.choice((0, 0, 1)),
        )
        for _ in range(count)
    ]
    store.record(records)
    return written(store, count)


def both(engine: sa.Engine, scope: Any, buckets: int = 0) -> tuple[Figures, Figures]:
    """Figures from the counts and from the rows."""
    with engine.connect() as connection:
        return (
            minutes.figures(connection, scope, SINCE, WINDOW, buckets),
            figures(connection, scope, SINCE, WINDOW, buckets),
        )


def assert_counted(engine: sa.Engine) -> Figures:
    """The counts tell the same as the rows, for both kinds of clients; those of the anonymous ones."""
    for scope in (ByUser("ana"), Anonymous()):
        counted, seen = both(engine, scope, buckets=8)
        assert {name: tally.count for name, tally in counted.emotions.items()} == {
            name: tally.count for name, tally in seen.emotions.items()
        }
        for name, tally in counted.emotions.items():
            assert tally.confidence == pytest.approx(seen.emotions[name].confidence, abs=1e-9)
        assert counted.buckets == seen.buckets
        assert counted.latency_ms == {
            percentile: pytest.approx(value, rel=0.03, abs=0.002)
            for percentile, value in seen.latency_ms.items()
        }
    return counted


def test_counts_are_what_the_rows_say(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine
) -> None:
    """Emotions, confidences, buckets and latencies, of a user and of everybody without one."""
    store = fill(open_store(), make_record)
    store.record([make_record(timestamp=SINCE + WINDOW)])  # the window ends before it
    written(store, 501)
    assert sum(tally.count for tally in assert_counted(engine).emotions.values()) > 100


def test_a_row_that_is_stored_twice_is_counted_once(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine
) -> None:
    """A repeated write, as after a connection that broke, changes no count."""
    store = open_store()
    record = make_record(timestamp=NOW)
    store.record([record, make_record(timestamp=NOW)])
    store.record([record])
    assert store.close(timeout=10) == 0
    counted = assert_counted(engine)
    assert sum(tally.count for tally in counted.emotions.values()) == 2


def test_what_is_deleted_is_counted_no_more(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine
) -> None:
    """Retention takes its rows out of the counts, chunk by chunk, and leaves no empty minutes behind."""
    fill(open_store(), make_record)
    with engine.begin() as connection:
        assert delete_before(connection, START + timedelta(seconds=30), limit=100) == 100
    assert_counted(engine)
    with engine.begin() as connection:
        delete_before(connection, START + 2 * HOUR, limit=10_000)
        for table in (emotion_minutes, latency_minutes):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_a_row_that_is_changed_is_counted_as_it_is_now(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine
) -> None:
    """An operator who takes the user off old rows moves them to those without one."""
    fill(open_store(), make_record)
    with engine.begin() as connection:
        connection.execute(
            sa.update(predictions_log).where(predictions_log.c.timestamp < START).values(user_id=None)
        )
    assert_counted(engine)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("path", ["''", "another"])
def test_what_is_written_on_another_search_path_is_counted(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, path: str
) -> None:
    """Rows that pg_restore copies, on an empty path, and an administrator takes away, beside another's counts, are."""
    fill(open_store(), make_record)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE SCHEMA another; CREATE TABLE another.emotion_minutes (LIKE emotion_minutes INCLUDING ALL);"
            "CREATE TABLE another.latency_minutes (LIKE latency_minutes INCLUDING ALL);"
            "CREATE TEMP TABLE copies ON COMMIT DROP AS SELECT * FROM predictions_log WHERE predic_id <= 20;"
            f"SET LOCAL search_path = {path};"
            "DELETE FROM public.predictions_log WHERE predic_id <= 30;"
            "INSERT INTO public.predictions_log SELECT * FROM pg_temp.copies;"
            "UPDATE public.predictions_log SET user_id = NULL WHERE predic_id <= 10"
        )
        assert connection.exec_driver_sql("SHOW search_path").scalar() == path.replace("''", '""')
    assert_counted(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL search_path = {path}; TRUNCATE public.predictions_log")
    assert not assert_counted(engine).emotions
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM another.emotion_minutes").scalar() == 0


@pytest.mark.parametrize("earlier", ["0003", "0004"])
def test_one_revision_back_and_forth(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, earlier: str
) -> None:
    """The release before counts on, and the next start has this one's counting again."""
    store = fill(open_store(), make_record)
    for change, target in ((command.downgrade, earlier), (command.upgrade, "head")):
        with engine.begin() as connection:
            change(alembic_config(connection), target)
        before = store.status().written
        store.record([make_record(timestamp=NOW)])
        written(store, before + 1)
        assert_counted(engine)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "statement", ["INSERT OR IGNORE", "PRAGMA recursive_triggers = ON; INSERT OR REPLACE"]
)
def test_rows_that_are_written_again_by_hand(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, statement: str
) -> None:
    """The statements that the documentation has for it change no count, as SQLite's plain OR REPLACE would."""
    assert fill(open_store(), make_record).close(timeout=10) == 0
    *settings, insert = statement.split("; ")
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for sql in (*settings, f"{insert} INTO predictions_log SELECT * FROM predictions_log"):
            connection.exec_driver_sql(sql)
    assert_counted(engine)
    for part in statement.split("; "):
        assert f"`{part}" in HISTORY.read_text()


def write_before_and_beside(engine: sa.Engine, insert: str) -> None:
    """Rows of the older server: some that the migration finds, and the same again after it."""
    migrate(engine)
    with engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0002")
        connection.exec_driver_sql(insert)
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(insert)


def test_rows_of_the_older_server_are_counted(engine: sa.Engine) -> None:
    """Those from before the migration, and those that it still writes beside us, without anything it does not know."""
    insert = (
        "INSERT INTO predictions_log (emotion_id, confidence, processing_time_ms, timestamp)"
        f" VALUES (1, 0.5, 12, '{NOW:%Y-%m-%d %H:%M:%S}+00:00'), (NULL, 0.5, 1, NULL),"
        f" (1, 0.5, NULL, '{NOW:%Y-%m-%d %H:%M:%S}+00:00')"
    )
    if engine.dialect.name == "sqlite":
        insert = insert.replace("+00:00", "")
    write_before_and_beside(engine, insert)
    counted = assert_counted(engine)
    assert {name: tally.count for name, tally in counted.emotions.items()} == {"angry": 4}
    assert counted.latency_ms[50] == pytest.approx(12, rel=0.025)


@pytest.mark.parametrize(
    ("milliseconds", "by_minute", "by_row"), [(3_600_000, 1e6, 3.6e6), (-3_600_000, 0, 0)]
)
def test_a_row_of_the_older_server_that_took_an_hour(
    milliseconds: int, by_minute: float, by_row: float, engine: sa.Engine
) -> None:
    """Its machine slept meanwhile, or its clock was put back, from summer time say: that row stops neither the
    migration nor the questions, and is counted: in the longest class, or as taking no time."""
    insert = (
        "INSERT INTO predictions_log (emotion_id, confidence, processing_time_ms, timestamp) VALUES"
        f" (1, 0.5, {milliseconds}, '{NOW:%Y-%m-%d %H:%M:%S}{'' if engine.dialect.name == 'sqlite' else '+00:00'}')"
    )
    write_before_and_beside(engine, insert)
    counted, seen = both(engine, Anonymous())
    assert counted.emotions["angry"].count == seen.emotions["angry"].count == 2
    assert counted.latency_ms[50] == by_minute
    assert seen.latency_ms[50] == pytest.approx(by_row, rel=0.005)


def test_writers_at_once_count_everything(
    postgres_url: str, make_record: MakeRecord, open_store: OpenStore
) -> None:
    """Four processes' worth of writers, all of the same minutes: none waits for ever, none is lost."""
    stores = [open_store(url=postgres_url) for _ in range(4)]

    def write(store: Store) -> None:
        for part in range(20):
            store.record(
                [
                    make_record(timestamp=START + timedelta(seconds=second + part), user="ana")
                    for second in range(-600, 600, 20)
                ]
            )

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        written(store, 1200)
    found = ask(stores[0], lambda connection: minutes.figures(connection, ByUser("ana"), SINCE, WINDOW))
    assert sum(tally.count for tally in found.emotions.values()) == 4 * 1200
    assert all(store.status().failed_attempts == 0 for store in stores)


@pytest.mark.parametrize(
    ("seconds", "buckets", "expected"),
    [
        (3600, 0, True),
        (3600, 60, True),
        (3600, 48, False),
        (3599, 0, False),
        (3630, 0, False),
        (1800, 30, False),
        (86400, 48, True),
        (86400, 500, False),
        (604800, 56, True),
    ],
)
def test_whole_minutes_are_counted(seconds: int, buckets: int, expected: bool) -> None:
    """Windows of an hour and more, where they and their buckets are whole minutes; of others the rows are read."""
    assert minutes.apply(timedelta(seconds=seconds), buckets) is expected


def test_a_window_holds_the_moment_at_which_it_ends() -> None:
    """It ends with the minute that has begun."""
    assert minutes.end_of(NOW) == START + minutes.MINUTE
    assert minutes.end_of(START) == START + minutes.MINUTE
