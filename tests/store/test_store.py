"""The store as the service uses it, on both databases."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.protocol.replies import whole_milliseconds
from service.store import Store
from service.store.schema import emotion_class, model_version, predictions_log
from service.store.writer import NICENESS
from tests.store.conftest import MakeRecord, OpenStore


def rows(engine: sa.Engine) -> list[sa.RowMapping]:
    with engine.connect() as connection:
        query = sa.select(predictions_log, emotion_class.c.emotion_name, model_version.c.model_version_tag)
        query = query.join(emotion_class).join(model_version).order_by(predictions_log.c.predic_id)
        return list(connection.execute(query).mappings())


def count(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(predictions_log)).scalar_one()


def wait_for_one(store: Store) -> None:
    """Returns when the first record is written; fails after ten seconds."""
    waiting = threading.Event()
    for _ in range(500):
        if store.status().written == 1:
            return
        waiting.wait(0.02)
    pytest.fail("nothing was written")


def test_every_field_is_stored(open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord) -> None:
    """A record comes back from the database with every field as it was given."""
    moment = datetime(2026, 11, 22, 10, 30, 45, 123456, tzinfo=UTC)
    record = make_record(
        emotion="happy",
        confidence=0.75,
        probabilities=(0.05, 0.05, 0.05, 0.75, 0.05, 0.025, 0.025),
        processing_ms=3.4567,
        timestamp=moment,
        source_ip="2001:db8::1",
        request_id="camera-7",
        user="ana",
        face_index=2,
        face_box=(10, 20, 30, 40),
        detection_score=0.875,
    )
    store = open_store()
    assert store.record([record])
    assert store.close(timeout=10) == 0

    [row] = rows(engine)
    assert row["prediction_uuid"] == record["prediction_id"]
    assert row["emotion_name"] == "happy"
    assert row["model_version_tag"] == "v1.0.0"
    assert row["confidence"] == 0.75
    assert row["probabilities"] == list(record["probabilities"])
    assert row["processing_time_ms"] == 3
    assert row["processing_us"] == 3457
    assert row["timestamp"] == moment
    assert str(row["source_ip"]) == "2001:db8::1"
    assert row["request_id"] == "camera-7"
    assert row["user_id"] == "ana"
    assert row["face_index"] == 2
    assert row["face_box"] == [10, 20, 30, 40]
    assert row["detection_score"] == 0.875


def test_what_took_less_than_a_millisecond_counts_as_one(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """As in its reply: the older server never stored a nought, and reports made for it may divide by this."""
    store = open_store()
    store.record([make_record(processing_ms=milliseconds) for milliseconds in (0.3, 0.5, 1.6)])
    store.close(timeout=10)
    assert [(row["processing_time_ms"], row["processing_us"]) for row in rows(engine)] == [
        (whole_milliseconds(us / 1000), us) for us in (300, 500, 1600)
    ]


def test_absent_fields_are_null(open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord) -> None:
    """What a prediction does not have is null in its row, not a JSON null or an empty text."""
    store = open_store()
    store.record([make_record(source_ip=None)])
    store.close(timeout=10)
    with engine.connect() as connection:
        columns = ("source_ip", "request_id", "user_id", "face_box", "detection_score")
        condition = sa.and_(*(predictions_log.c[name].is_(sa.null()) for name in columns))
        query = sa.select(sa.func.count()).select_from(predictions_log).where(condition)
        assert connection.execute(query).scalar_one() == 1


def test_a_whole_second_and_other_time_zones(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """Times keep their instant when they have no microseconds or another offset than UTC."""
    whole = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    lima = datetime(2026, 1, 2, 3, 4, 5, 600000, tzinfo=timezone(timedelta(hours=-5)))
    store = open_store()
    store.record([make_record(timestamp=whole), make_record(timestamp=lima)])
    store.close(timeout=10)
    assert [row["timestamp"] for row in rows(engine)] == [whole, lima]


def test_all_that_many_threads_recorded_is_stored_at_close(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """Closing writes everything that any thread recorded, each record once."""
    store = open_store()
    batches = [[make_record() for _ in range(3)] for _ in range(400)]
    refused: list[int] = []

    def work(part: int) -> None:
        refused.extend(number for number in range(part, len(batches), 4) if not store.record(batches[number]))

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.close(timeout=30) == 0
    assert refused == []
    expected = {record["prediction_id"] for batch in batches for record in batch}
    stored = [row["prediction_uuid"] for row in rows(engine)]
    assert len(stored) == len(expected)
    assert set(stored) == expected
    assert store.status().written == len(expected)
    assert store.status().pending == 0


def test_written_without_being_closed(open_store: OpenStore, make_record: MakeRecord) -> None:
    """A single record is written by itself, soon after it came."""
    store = open_store()
    store.record([make_record()])
    wait_for_one(store)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_writer_gives_way_to_predictions(open_store: OpenStore, make_record: MakeRecord) -> None:
    """The thread that writes is nicer than the rest of the process, and nothing else is made so."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    store = open_store()
    store.record([make_record()])
    wait_for_one(store)
    [writer] = [thread for thread in threading.enumerate() if thread.name == "store-writer"]
    assert writer.native_id is not None
    assert os.getpriority(os.PRIO_PROCESS, writer.native_id) == min(before + NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_recording_twice_stores_once(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """The same prediction and face, recorded again, changes and counts nothing; another face of it is another row."""
    record = make_record()
    second_face = make_record(prediction_id=record["prediction_id"], face_index=1)
    store = open_store()
    store.record([record])
    store.record([record, second_face])
    store.close(timeout=10)
    assert sorted(row["face_index"] for row in rows(engine)) == [0, 1]
    assert store.status().written == 2


def test_many_rows_of_which_some_are_stored_already(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A transaction of some hundred rows stores each that is new and counts only those, whatever its statements are."""
    records = [make_record(request_id=str(number)) for number in range(150)]
    first = open_store()
    first.record(records[::3])
    first.close(timeout=10)
    assert first.status().written == 50
    second = open_store()
    second.record(records)
    second.close(timeout=10)
    assert sorted(int(row["request_id"]) for row in rows(engine)) == list(range(150))
    assert second.status().written == 100


def test_nothing_is_taken_after_close(open_store: OpenStore, make_record: MakeRecord) -> None:
    """A record that comes after closing is turned away, and closing twice is harmless."""
    store = open_store()
    assert store.close(timeout=10) == 0
    assert not store.record([make_record()])
    assert store.close(timeout=10) == 0


def test_recording_nothing(open_store: OpenStore) -> None:
    """An empty batch is stored as it is: there is nothing to do."""
    assert open_store().record([])


def test_an_unknown_emotion_is_a_mistake_of_the_caller(
    open_store: OpenStore, make_record: MakeRecord
) -> None:
    """A label that the model does not have is refused by name before anything is taken."""
    store = open_store()
    with pytest.raises(ValueError, match="'joy' is not one of the labels"):
        store.record([make_record(), make_record(emotion="joy")])
    assert store.status().pending == 0


def test_what_a_client_made_up_cannot_stop_the_others(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """An address that is none, a NUL character and endless texts are cut to what a row can hold."""
    store = open_store()
    store.record([make_record(source_ip="unix:/run/socket"), make_record(source_ip="fe80::1%eth0")])
    store.record(
        [make_record(request_id="a\0b", user="\0"), make_record(request_id="x" * 5000, user="é" * 5000)]
    )
    store.record([make_record(request_id=r"C:\u0000", user="'; DROP TABLE predictions_log; --")])
    assert store.close(timeout=10) == 0
    stored = rows(engine)
    assert [row["source_ip"] and str(row["source_ip"]) for row in stored[:2]] == [None, "fe80::1"]
    assert [row["request_id"] for row in stored[2:]] == ["ab", "x" * 128, r"C:\u0000"]
    assert [row["user_id"] for row in stored[2:]] == ["", "é" * 255, "'; DROP TABLE predictions_log; --"]
    assert store.status().rejected == 0


def test_only_the_active_model_is_marked(open_store: OpenStore, engine: sa.Engine) -> None:
    """Serving a version makes it the active one and keeps the others' rows."""
    query = sa.select(model_version.c.model_version_tag, model_version.c.model_status)
    query = query.order_by(model_version.c.model_id)
    states = []
    for tag in ("v1", "v2", "v1"):
        open_store(version_tag=tag).close(timeout=5)
        with engine.connect() as connection:
            states.append({row[0]: row[1] for row in connection.execute(query)})
    assert states == [{"v1": "01"}, {"v1": "00", "v2": "01"}, {"v1": "01", "v2": "00"}]


def test_labels_of_another_model_get_rows(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A model with a label that the table lacks adds it, with its description or its name."""
    store = open_store(
        labels=("happy", "contempt", "bored"), descriptions={"contempt": "Desprecio", "happy": "no matter"}
    )
    store.record([make_record(emotion="contempt"), make_record(emotion="happy")])
    store.close(timeout=10)
    with engine.connect() as connection:
        found = {row.emotion_name: row for row in connection.execute(sa.select(emotion_class))}
    assert found["contempt"].emotion_desc == "Desprecio"
    assert found["bored"].emotion_desc == "bored"
    assert found["happy"].emotion_desc == "Felicidad o alegría"
    assert found["happy"].emotion_id == 4
    assert found["contempt"].emotion_id > 7
    assert [row["emotion_name"] for row in rows(engine)] == ["contempt", "happy"]


def test_storing_in_sqlite_imports_nothing_of_postgresql(tmp_path: Path) -> None:
    """Its dialect would be 2 MB of every process of a service that never uses it."""
    script = (
        "import sys\n"
        "import service.processes.supervisor\n"
        "from service.store import Store, bring_up_to_date\n"
        "bring_up_to_date('sqlite:///made.db', list)\n"
        "options = {'labels': ['happy'], 'version_tag': 'v1', 'model_filename': 'emotion.onnx'}\n"
        "Store.open('sqlite:///made.db', **options).close(5)\n"
        "print([name for name in sys.modules if 'postgresql' in name or 'psycopg' in name])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stderr
