"""What `history` and `stats` answer, of rows that are known, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from service.commands.lookups import reader
from service.protocol.requests import History, Lookup, Stats
from service.store import Store
from service.store.prediction_ids import PredictionIds
from tests.store.conftest import LABELS, MakeRecord, OpenStore
from tests.store.harness import NOW, ask, written
from tests.store.older_server import make_older_server


def answer(store: Store, lookup: Lookup, user: str | None, ids: PredictionIds) -> dict[str, Any]:
    """The reply, with five predictions on their way to the database."""
    reply: dict[str, Any] = orjson.loads(ask(store, reader(lookup, user, ids, LABELS, NOW, 5)))
    return reply


def test_a_page_tells_each_field_of_its_rows(open_store: OpenStore, make_record: MakeRecord) -> None:
    """What a row does not have is null; times are in UTC, without an offset."""
    store, ids = open_store(), PredictionIds()
    full, bare = ids.next(), ids.next()
    boxed = {"request_id": "x", "face_index": 1, "face_box": (1, 2, 3, 4), "processing_ms": 2.5}
    store.record(
        [
            make_record(prediction_id=full, emotion="sad", confidence=0.75, timestamp=NOW, **boxed),
            make_record(prediction_id=bare, emotion="happy", timestamp=NOW.replace(microsecond=0)),
        ]
    )
    written(store, 2)
    reply = answer(store, History("mine"), None, ids)
    assert [reply.pop(name) for name in ("type", "status", "id", "next", "pending")] == [
        *("history", "success", "mine", None, 5)
    ]
    (newest, oldest) = reply.pop("predictions")
    assert reply == {}
    assert oldest == {
        "prediction_id": str(full),
        "face_index": 1,
        "timestamp": "2026-11-22T10:30:45.123456",
        "emotion_name": "sad",
        "confidence": 0.75,
        "model_version_tag": "v1.0.0",
        "processing_time_ms": 2.5,
        "request_id": "x",
        "box": [1, 2, 3, 4],
    }
    assert newest["timestamp"] == "2026-11-22T10:30:45.000000"
    assert (newest["request_id"], newest["box"], newest["face_index"]) == (None, None, 0)


@pytest.mark.parametrize("user", [None, "ana"])
def test_pages_follow_each_other_by_what_they_name(
    open_store: OpenStore, make_record: MakeRecord, user: str | None
) -> None:
    """Of a connection, and of a user whose rows share a moment: each row comes once, and the last page names none."""
    store, ids = open_store(), PredictionIds()
    made = [ids.next() for _ in range(6)]
    rows = [
        make_record(prediction_id=made[number // 2], face_index=number % 2, user=user, timestamp=NOW)
        for number in range(12)
    ]
    store.record(rows)
    written(store, 12)
    pages: list[list[tuple[str, int]]] = []
    cursor = None
    while not pages or cursor is not None:
        page = answer(store, History(None, 4, cursor), user, ids)
        assert "id" not in page
        pages.append([(row["prediction_id"], row["face_index"]) for row in page["predictions"]])
        cursor = page["next"]
    assert [len(page) for page in pages] == [4, 4, 4]
    found = [row for page in pages for row in page]
    assert found == [(str(row["prediction_id"]), row["face_index"]) for row in reversed(rows)]


@pytest.mark.parametrize("user", [None, "ana"])
def test_rows_without_a_time_are_left_out(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, user: str | None
) -> None:
    """One that another program emptied, or in SQLite wrote a number into, does not cost its user the whole history.

    Nor does a time of PostgreSQL's that lies outside of Python's years.
    """
    store, ids = open_store(), PredictionIds()
    made = [make_record(prediction_id=ids.next(), user=user, timestamp=NOW) for _ in range(5)]
    store.record(made)
    written(store, 5)
    outside = ["'infinity'", "'10000-01-01'", "'0044-03-15 BC'"]
    values = ["NULL", *(["0", "''"] if engine.dialect.name == "sqlite" else outside)]
    with engine.begin() as connection:
        for number, value in enumerate(values, start=1):
            connection.exec_driver_sql(
                f"UPDATE predictions_log SET timestamp = {value} WHERE predic_id = {number}"
            )
    found = [row["prediction_id"] for row in answer(store, History(None), user, ids)["predictions"]]
    assert found == [str(record["prediction_id"]) for record in reversed(made[len(values) :])]


@pytest.mark.parametrize("window_s", [600.0, 7200.0], ids=["rows", "minutes"])
def test_a_confidence_that_is_no_number_leaves_the_others_their_mean(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, window_s: float
) -> None:
    """NaN and infinities, as another program may write them, count as 0."""
    store = open_store()
    store.record([make_record(emotion="happy", confidence=0.5, timestamp=NOW) for _ in range(4)])
    written(store, 4)
    # SQLite has no NaN, and takes a text.
    values = ["9e999", "'n/a'"] if engine.dialect.name == "sqlite" else ["'NaN'", "'-Infinity'"]
    with engine.begin() as connection:
        for number, value in enumerate(values, start=1):
            connection.exec_driver_sql(
                f"UPDATE predictions_log SET confidence = {value} WHERE predic_id = {number}"
            )
    reply = ask(
        store, reader(Stats(1, window_s), None, PredictionIds(), LABELS, NOW + timedelta(minutes=1), 0)
    )
    assert orjson.loads(reply)["emotions"] == {"happy": {"count": 4, "mean_confidence": 0.25}}


@pytest.mark.parametrize("window_s", [600.0, 7200.0], ids=["rows", "minutes"])
def test_emotions_are_told_in_the_letters_of_replies(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, window_s: float
) -> None:
    """Whatever letters the older server's table has them in, and twice: as `predict` and `emotions` name them, once.

    One that is no label of the model stays as it is there.
    """
    make_older_server(engine, ["HAPPY", "Happy", "Angry", "Bored"])
    store, ids = open_store(), PredictionIds()
    store.record([make_record(prediction_id=ids.next(), emotion="happy")])
    written(store, 1)

    def told(lookup: Lookup) -> dict[str, Any]:
        reply: dict[str, Any] = orjson.loads(
            ask(store, reader(lookup, None, ids, LABELS, datetime.now(UTC), 0))
        )
        return reply

    assert [row["emotion_name"] for row in told(History(None))["predictions"]] == ["happy"]
    stats = told(Stats(None, window_s, buckets=1))
    counts = {"Bored": 5, "angry": 5, "happy": 11}
    assert {name: each["count"] for name, each in stats["emotions"].items()} == counts
    assert stats["buckets"] == [counts]
    assert list(told(Stats(None, window_s, scope="connection"))["emotions"]) == ["happy"]


@pytest.mark.parametrize(
    ("window", "since"),
    [
        (timedelta(minutes=10), NOW - timedelta(minutes=10)),
        (timedelta(hours=2), datetime(2026, 11, 22, 8, 31, tzinfo=UTC)),
    ],
    ids=["rows", "minutes"],
)
def test_figures_tell_whose_they_are(
    open_store: OpenStore, make_record: MakeRecord, window: timedelta, since: datetime
) -> None:
    """A user's, everybody's without a user, or a connection's, from the moment that the reply names, in its buckets."""
    store, ids = open_store(), PredictionIds()
    middle, late = since + window / 2 + timedelta(seconds=1), NOW - timedelta(seconds=1)
    store.record(
        [
            make_record(user="ana", emotion="sad", confidence=0.5, processing_ms=40.0, timestamp=since),
            make_record(
                prediction_id=ids.next(),
                user="ana",
                emotion="sad",
                confidence=0.75,
                processing_ms=40.0,
                timestamp=late,
            ),
            make_record(user="ana", emotion="happy", confidence=1.0, processing_ms=40.0, timestamp=late),
            make_record(user="ana", emotion="happy", timestamp=since - timedelta(microseconds=1)),
            make_record(prediction_id=ids.next(), emotion="fear", confidence=0.5, timestamp=middle),
            make_record(emotion="happy", confidence=1.0, timestamp=late),
        ]
    )
    written(store, 6)
    seconds = window.total_seconds()

    def told(user: str | None, **fields: Any) -> dict[str, Any]:
        return answer(store, Stats("q", seconds, **fields), user, ids)

    reply = told("ana", buckets=4)
    assert reply.pop("latency_ms") == {f"p{each}": pytest.approx(40, rel=0.03) for each in (50, 90, 99)}
    assert reply == {
        "type": "stats",
        "status": "success",
        "id": "q",
        "scope": "user",
        "since": since.replace(tzinfo=None).isoformat(timespec="microseconds"),
        "window_s": seconds,
        "count": 3,
        "mean_confidence": 0.75,
        "emotions": {
            "happy": {"count": 1, "mean_confidence": 1.0},
            "sad": {"count": 2, "mean_confidence": 0.625},
        },
        "pending": 5,
        "bucket_s": seconds / 4,
        "buckets": [{"sad": 1}, {}, {}, {"happy": 1, "sad": 1}],
    }
    everybody = told(None)
    assert (everybody["scope"], everybody["count"]) == ("anonymous", 2)
    assert list(everybody["emotions"]) == ["fear", "happy"]
    assert "buckets" not in everybody
    for user, emotion, confidence in ((None, "fear", 0.5), ("ana", "sad", 0.75)):
        own = told(user, scope="connection", buckets=2)
        assert (own["scope"], own["count"], own["mean_confidence"]) == ("connection", 1, confidence)
        assert own["buckets"] == [{}, {emotion: 1}]
