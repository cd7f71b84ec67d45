"""Reading stored predictions, on both databases."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from service.commands.lookups import reader
from service.protocol.requests import Stats
from service.store.history import Anonymous, ByConnection, ByUser, StoredFace, figures, latest
from service.store.prediction_ids import PredictionIds
from tests.store.conftest import LABELS, MakeRecord, OpenStore
from tests.store.harness import NOW, ask, written

HOUR = timedelta(hours=1)


def test_a_connection_reads_its_own_rows_newest_first(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Every face of what it made, page by page, and nothing of another connection."""
    store, ids, others = open_store(), PredictionIds(), PredictionIds()
    records = [
        make_record(
            prediction_id=identifier, face_index=face, face_box=(1, 2, 3, 4), request_id="7", timestamp=NOW
        )
        for identifier in [ids.next() for _ in range(5)]
        for face in range(2)
    ]
    store.record([*records, make_record(prediction_id=others.next())])
    written(store, 11)
    scope = ByConnection(ids.first, ids.last)
    first = ask(store, lambda connection: latest(connection, scope, 7))
    second = ask(store, lambda connection: latest(connection, scope, 7, first[-1].position))
    found = [(str(row.prediction_id), row.face_index) for row in [*first, *second]]
    assert found == [(record["prediction_id"], record["face_index"]) for record in reversed(records)]
    row, record = first[0], records[-1]
    assert (row.emotion, row.confidence, row.version_tag) == (record["emotion"], 0.4, "v1.0.0")
    assert (row.timestamp, row.request_id) == (NOW, "7")
    assert row.processing_ms == pytest.approx(1.234, abs=0.001)
    assert list(row.box or ()) == [1, 2, 3, 4]


def test_a_user_reads_what_is_theirs_over_all_connections(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Newest first by time, also where many rows share one moment, and nothing of others."""
    store = open_store()
    mine = [make_record(user="ana", timestamp=NOW + timedelta(seconds=number // 4)) for number in range(20)]
    store.record([*mine, make_record(user="eva", timestamp=NOW), make_record(timestamp=NOW)])
    written(store, 22)
    found: list[StoredFace] = []
    while page := ask(
        store, partial(latest, scope=ByUser("ana"), limit=3, after=found[-1].position if found else None)
    ):
        found += page
    assert [row.timestamp for row in found] == [record["timestamp"] for record in reversed(mine)]
    assert {row.prediction_id for row in found} == {record["prediction_id"] for record in mine}


def test_figures_count_faces_and_tell_latencies_of_requests(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Counts, mean confidence and the timeline count faces; a request with two faces has one latency."""
    store = open_store()
    records = [
        make_record(
            emotion="happy",
            confidence=0.9,
            processing_ms=float(number),
            timestamp=NOW + number * timedelta(minutes=1),
        )
        for number in range(1, 51)
    ]
    second_faces = [
        make_record(
            emotion="sad",
            confidence=0.5,
            face_index=1,
            processing_ms=9000.0,
            timestamp=NOW + 50 * timedelta(minutes=1),
        )
        for _ in range(4)
    ]
    outside = [
        make_record(timestamp=NOW - timedelta(microseconds=1)),
        make_record(timestamp=NOW + HOUR),
        make_record(user="ana", timestamp=NOW),
    ]
    store.record([*records, *second_faces, *outside])
    written(store, 57)
    found = ask(store, lambda connection: figures(connection, Anonymous(), NOW, HOUR, buckets=6))
    assert {name: tally.count for name, tally in found.emotions.items()} == {"happy": 50, "sad": 4}
    assert found.emotions["happy"].confidence == pytest.approx(45)
    assert found.latency_ms == {
        50: pytest.approx(25, rel=0.005),
        90: pytest.approx(45, rel=0.005),
        99: pytest.approx(50, rel=0.005),
    }
    assert found.buckets == [{"happy": 9}, *[{"happy": 10}] * 4, {"happy": 1, "sad": 4}]


def test_figures_of_nothing_are_empty(open_store: OpenStore) -> None:
    """An empty table has no emotions and no percentiles, and as many buckets as were asked for."""
    found = ask(open_store(), lambda connection: figures(connection, ByUser("ana"), NOW, HOUR, buckets=2))
    assert (found.emotions, found.latency_ms, found.buckets) == ({}, {}, [{}, {}])


def test_the_last_moment_of_a_window_is_in_its_last_bucket(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    """Sevenths of an hour are rounded to microseconds, and end before the hour does."""
    store = open_store()
    store.record([make_record(emotion="sad", timestamp=NOW + HOUR - timedelta(microseconds=1))])
    written(store, 1)
    found = ask(store, lambda connection: figures(connection, Anonymous(), NOW, HOUR, buckets=7))
    assert found.buckets == [*[{}] * 6, {"sad": 1}]


@pytest.mark.parametrize("bucket", [timedelta(milliseconds=1), timedelta(seconds=1), timedelta(seconds=59)])
def test_short_buckets_are_counted_to_the_microsecond(
    open_store: OpenStore, make_record: MakeRecord, bucket: timedelta
) -> None:
    """The first and the last microsecond of each is in it, in whatever fraction of a second it begins."""
    store, microsecond = open_store(), timedelta(microseconds=1)
    starts = [NOW + number * bucket for number in range(50)]
    edges = [moment for start in starts for moment in (start, start + bucket - microsecond)]
    store.record([make_record(emotion="happy", timestamp=moment) for moment in edges])
    written(store, 100)
    found = ask(store, lambda connection: figures(connection, Anonymous(), NOW, 50 * bucket, buckets=50))
    assert found.buckets == [{"happy": 2}] * 50


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "text",
    [
        "10:30:47",
        "10:30:47.0",
        "10:30:47.000",
        "10:30:47Z",
        "10:30:47+02:00",
        "10:30:47.000+02:00",
        "10:30:47 junk",
    ],
)
def test_a_time_in_another_form_is_in_the_bucket_of_its_text(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, text: str
) -> None:
    """SQLite keeps what it is given: an older server gives no fraction, other programs fewer digits, or an offset."""
    store = open_store()
    store.record([make_record(emotion="happy", timestamp=NOW)])
    written(store, 1)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE predictions_log SET timestamp = ?", (f"2026-11-22 {text}",))
    found = ask(
        store,
        lambda connection: figures(connection, Anonymous(), NOW.replace(microsecond=900_000), HOUR / 240, 15),
    )
    assert found.buckets == [{}, {"happy": 1}, *[{}] * 13]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("text", ["2026-11-22 10:30:45", "2026-11-22 10:30:45.5", "2026-11-22T10:30:45"])
def test_a_history_goes_on_behind_a_time_in_another_form(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, text: str
) -> None:
    """Each row is told once, also where rows of a user's have the older server's times, or another program's."""
    store = open_store()
    store.record([make_record(user="ana", timestamp=NOW) for _ in range(3)])
    written(store, 3)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE predictions_log SET timestamp = ? WHERE predic_id > 1", (text,))
    found: list[int] = []
    after = None
    while (page := ask(store, partial(latest, scope=ByUser("ana"), limit=1, after=after))) and len(found) < 4:
        after = page[0].position
        found.append(after.number)
    assert sorted(found) == [1, 2, 3]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("window", [HOUR / 60, HOUR / 2 + HOUR / 3600])
@pytest.mark.parametrize("zone", [" UTC", "+02:00"])
def test_what_sqlite_takes_for_no_time_or_an_earlier_one_is_counted_where_the_window_begins(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, window: timedelta, zone: str
) -> None:
    """In short buckets and in long ones: it must not cost the whole answer."""
    store = open_store()
    store.record([make_record(emotion="happy", timestamp=NOW)])
    written(store, 1)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE predictions_log SET timestamp = '2026-11-22 10:30:45{zone}'")
    found = ask(store, lambda connection: figures(connection, Anonymous(), NOW - window / 2, window, 2))
    assert found.buckets == [{"happy": 1}, {}]


@pytest.mark.parametrize("window_s", [600.0, 86400.0])
def test_an_emotion_without_a_name_is_left_out(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, window_s: float
) -> None:
    """The older server's table allows it. The statistics of the others are told, from rows as from counts by minute."""
    store = open_store()
    store.record([make_record(emotion=emotion, timestamp=NOW) for emotion in ("happy", "sad", "sad")])
    written(store, 3)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE emotion_class SET emotion_name = NULL WHERE emotion_name = 'happy'"
        )
    reply = orjson.loads(
        ask(store, reader(Stats(1, window_s), None, PredictionIds(), LABELS, NOW + HOUR / 60, 0))
    )
    assert (reply["count"], list(reply["emotions"])) == (2, ["sad"])


@pytest.mark.parametrize(
    ("scope", "index"),
    [
        (ByConnection(PredictionIds().first, PredictionIds().last), "prediction_uuid_face_index_idx"),
        (ByUser("ana"), "user_id_timestamp_idx"),
    ],
)
def test_a_history_is_read_from_an_index(
    open_store: OpenStore, engine: sa.Engine, scope: Any, index: str
) -> None:
    """SQLite and PostgreSQL go through the index that holds the scope, and read no more of many rows than are told."""
    store = open_store()
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO predictions_log (user_id, timestamp) SELECT CASE WHEN n % 3 = 0 THEN 'ana' END,"
                " now() + n * interval '1 s' FROM generate_series(1, 15000) AS n; ANALYZE predictions_log",
                execution_options={"no_parameters": True},
            )

    def plan(connection: sa.Connection) -> str:
        postgresql = connection.dialect.name == "postgresql"
        if postgresql:
            connection.exec_driver_sql("SET enable_seqscan = off")
        texts: list[str] = []

        def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
            cursor.execute(f"EXPLAIN {'' if postgresql else 'QUERY PLAN '}{statement}", parameters)
            texts.extend(str(row) for row in cursor.fetchall())

        sa.event.listen(connection, "before_cursor_execute", explain)
        latest(connection, scope, 1001)
        return "\n".join(texts)

    found = ask(store, plan)
    assert index in found
    assert "Bitmap" not in found
