"""Writing encoded records: statements of many rows, which do nothing for rows that are already stored. A row that
collides with another in anything but what names a prediction's face is an error: it would be lost without a word.

Measured (``docs/reliability.md``): PostgreSQL expands the JSON itself, so that a row costs this process 4 µs where
SQLAlchemy's own batch insert takes 76 and psycopg2's ``execute_values`` 20. SQLite runs inside this process; what a
statement costs there beside its rows is shared by some.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import orjson
import sqlalchemy as sa

from service.store import records
from service.store.reference import References
from service.store.schema import REQUEST_ID_LENGTH, USER_ID_LENGTH

_COLUMNS: Final = (
    "prediction_uuid, face_index, emotion_id, model_id, confidence, probabilities, processing_time_ms, processing_us, "
    "timestamp, source_ip, request_id, user_id, face_box, detection_score"
)

_UNLESS_STORED: Final = "ON CONFLICT (prediction_uuid, face_index) DO NOTHING"

# Of PostgreSQL's integer: as microseconds 36 minutes, which a process that was paused can take.
_LARGEST_INTEGER: Final = 2**31 - 1

_POSTGRESQL: Final = f"""
INSERT INTO predictions_log ({_COLUMNS})
SELECT r.prediction_id, r.face_index, e.id::integer, %(model_id)s, r.confidence, r.probabilities,
       greatest(1, least(round(r.processing_ms), {_LARGEST_INTEGER})),
       least(round(r.processing_ms * 1000), {_LARGEST_INTEGER}), r.timestamp, r.source_ip,
       left(r.request_id, {REQUEST_ID_LENGTH}), left(r.user, {USER_ID_LENGTH}), r.face_box, r.detection_score
FROM json_to_recordset(%(payload)s) AS r(
       prediction_id uuid, face_index smallint, emotion text, confidence float, probabilities json,
       processing_ms float, timestamp timestamptz, source_ip inet, request_id text, "user" text, face_box json,
       detection_score float)
LEFT JOIN json_each_text(%(emotion_ids)s) AS e(name, id) ON e.name = r.emotion
{_UNLESS_STORED}
"""

#: Rows per statement on SQLite. A row by itself costs 18 to 25 µs, one of 32 costs 12 to 15. The driver also gives up
#: the interpreter's lock for each statement and has to get it back: beside a thread that wants it, 33 to 36 and 18 to
#: 29.
_ROWS: Final = 32


def sqlite_statement(rows: int) -> str:
    """The statement that stores so many rows of :func:`sqlite_rows`, one after the other."""
    values = ", ".join([f"({', '.join('?' * (1 + _COLUMNS.count(',')))})"] * rows)
    return f"INSERT INTO predictions_log ({_COLUMNS}) VALUES {values} {_UNLESS_STORED}"


_SQLITE_ONE: Final = sqlite_statement(1)
_SQLITE_MANY: Final = sqlite_statement(_ROWS)


def insert(connection: sa.Connection, references: References, payloads: Sequence[bytes]) -> int:
    """Store the records of the payloads (each from :func:`records.encode`) in the connection's transaction; how many of
    them were not stored before.

    Raises SQLAlchemy's DBAPIError: DataError when a value does not fit its column.
    """
    payload = payloads[0] if len(payloads) == 1 else records.join(payloads)
    if connection.dialect.name == "postgresql":
        parameters = {
            "payload": payload.decode(),
            "emotion_ids": orjson.dumps(references.emotion_ids).decode(),
            "model_id": references.model_id,
        }
        return connection.exec_driver_sql(_POSTGRESQL, parameters).rowcount
    rows = sqlite_rows(references, payload)
    full = len(rows) - len(rows) % _ROWS
    new = 0
    for start in range(0, full, _ROWS):
        values = tuple(chain.from_iterable(rows[start : start + _ROWS]))
        new += connection.exec_driver_sql(_SQLITE_MANY, values).rowcount
    if full < len(rows):
        new += connection.exec_driver_sql(_SQLITE_ONE, rows[full:]).rowcount
    return new


def sqlite_rows(references: References, payload: bytes) -> list[tuple[Any, ...]]:
    """The values of a payload's records, in the order of the statement's columns."""
    rows = []
    for record in records.decode(payload):
        request_id, user, box = record["request_id"], record["user"], record["face_box"]
        milliseconds = record["processing_ms"]
        rows.append(
            (
                record["prediction_id"].replace("-", ""),
                record["face_index"],
                references.emotion_ids[record["emotion"]],
                references.model_id,
                record["confidence"],
                orjson.dumps(record["probabilities"]).decode(),
                max(1, round(milliseconds)),  # as its reply says
                round(milliseconds * 1000),
                _sqlite_time(record["timestamp"]),
                record["source_ip"],
                request_id and request_id[:REQUEST_ID_LENGTH],
                user and user[:USER_ID_LENGTH],
                box and orjson.dumps(box).decode(),
                record["detection_score"],
            )
        )
    return rows


# The records of a micro-batch have one time: turned once, it takes a sixth off what a row takes here.
@lru_cache(maxsize=64)
def _sqlite_time(text: str) -> str:
    """``2026-11-22T10:30:45[.123456]+00:00`` as SQLAlchemy reads it back: a space, six decimals, no offset."""
    if not text.endswith("+00:00"):
        text = datetime.fromisoformat(text).astimezone(UTC).isoformat()
    seconds, dot, rest = text.partition(".")
    return f"{seconds[:10]} {seconds[11:19]}.{rest[:6] if dot else '000000'}"
