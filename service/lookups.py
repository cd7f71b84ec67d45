"""`history` and `stats`, without sockets and without a database: fields in, typed requests out; rows in, replies out.

Whose predictions are looked at is decided here, in one place:

============ ============================== ===========================================================
             a client with a user           an anonymous client
============ ============================== ===========================================================
history      that user's                    what this connection made without a user
stats        that user's; of this           of all anonymous clients; with ``"scope": "connection"`` what this
             connection alone with          connection made without a user
             ``"scope": "connection"``
============ ============================== ===========================================================

So what a user does shows in nobody else's figures, and where every client has to have a user, nobody sees more than
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar
from uuid import UUID

import orjson
import sqlalchemy as sa

from service.errors import InvalidRequest
from service.store import minutes
from service.store.history import (
    Anonymous,
    ByConnection,
    ByUser,
    Figures,
    Position,
    StoredFace,
    figures,
    latest,
)
from service.store.prediction_ids import PredictionIds

MAX_LIMIT: Final = 1000
MAX_BUCKETS: Final = 500
MAX_WINDOW_S: Final = 10 * 366 * 86400.0
# Far below what anybody looks at, and far above the microseconds that times are told in.
MIN_BUCKET_S: Final = 0.001
_MAX_CURSOR: Final = 100
# What the columns hold: a row's number is a bigint, a face's a smallint.
_MAX_ROW: Final = 2**63 - 1
_MAX_FACE: Final = 2**15 - 1

RequestId = str | int | None


@dataclass(frozen=True, slots=True)
class History:
    """A request for stored predictions, newest first. `cursor` is the `next` of the page before."""

    id: RequestId
    limit: int = 50
    cursor: str | None = None
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Stats:
    """A request for figures over the last `window_s` seconds, in so many `buckets` or in none."""

    id: RequestId
    window_s: float = 3600.0
    buckets: int = 0
    scope: Literal["all", "connection"] = "all"
    token: str | None = field(default=None, repr=False)


Lookup = History | Stats
Read = Callable[[sa.Connection], bytes]
Default = TypeVar("Default", int, None)


def parse_lookup(command: str, request_id: RequestId, fields: Mapping[str, Any]) -> Lookup:
    """Read the fields of a `history` or `stats` request. Null is as if the field was not there.

    Raises:
        InvalidRequest: one has an impossible value; names it.
    """
    fields = {name: value for name, value in fields.items() if value is not None}
    if command == "history":
        cursor = fields.get("cursor")
        if cursor is not None and (not isinstance(cursor, str) or len(cursor) > _MAX_CURSOR):
            raise InvalidRequest("'cursor' is the 'next' of the page before, or left out")
        return History(request_id, integer(fields, "limit", 50, 1, MAX_LIMIT), cursor)
    window = fields.get("window_s", 3600.0)
    if isinstance(window, bool) or not isinstance(window, int | float) or not 0 < window <= MAX_WINDOW_S:
        raise InvalidRequest(f"'window_s' is a number of seconds above 0, at most {MAX_WINDOW_S:.0f}")
    buckets = integer(fields, "buckets", 0, 0, MAX_BUCKETS)
    # In whole microseconds: 0.071 / 71 is a little less than 0.001.
    if round(window * 1e6) < max(buckets, 1) * round(MIN_BUCKET_S * 1e6):
        raise InvalidRequest(f"'window_s' is at least {MIN_BUCKET_S} seconds for each of the 'buckets'")
    scope = fields.get("scope", "all")
    if scope not in ("all", "connection"):
        raise InvalidRequest("'scope' is all or connection")
    return Stats(request_id, float(window), buckets, scope)


def integer(fields: Mapping[str, Any], name: str, default: Default, low: int, high: int) -> int | Default:
    """The integer of a field, `default` where it is null or not there. 4.0 is one, as in JSON Schema.

    Raises:
        InvalidRequest: it is none, or not from `low` to `high`.
    """
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"'{name}' is an integer from {low} to {high}")
    return value


def reader(lookup: Lookup, user: str | None, ids: PredictionIds, now: datetime, pending: int) -> Read:
    """What makes the reply to a lookup of this client, given a connection to the database.

    Args:
        lookup: the request.
        user: who the client is; None for anybody.
        ids: those of the client's connection.
        now: the moment of the request, in UTC.
        pending: how many predictions are answered and not yet in the database, which the reply tells.

    Raises:
        InvalidRequest: the cursor is none of this client's.
    """
    connection_scope = ByConnection(ids.first, ids.last, user)
    if isinstance(lookup, History):
        scope = connection_scope if user is None else ByUser(user)
        after = None if lookup.cursor is None else _position(lookup.cursor, scope)
        return lambda connection: _history_reply(
            lookup, latest(connection, scope, lookup.limit + 1, after), pending
        )
    window = timedelta(seconds=lookup.window_s)
    if lookup.scope == "connection":
        began = now - window
        return lambda connection: _stats_reply(
            lookup,
            "connection",
            began,
            figures(connection, connection_scope, began, window, lookup.buckets),
            pending,
        )
    chosen, name = (Anonymous(), "anonymous") if user is None else (ByUser(user), "user")
    by_minute = minutes.apply(window, lookup.buckets)
    since = (minutes.end_of(now) if by_minute else now) - window
    count = minutes.figures if by_minute else figures
    return lambda connection: _stats_reply(
        lookup, name, since, count(connection, chosen, since, window, lookup.buckets), pending
    )


def _history_reply(history: History, rows: Sequence[StoredFace], pending: int) -> bytes:
    page = rows[: history.limit]
    return _success(
        history.id,
        {
            "type": "history",
            "status": "success",
            "predictions": [
                {
                    "prediction_id": row.prediction_id,
                    "face_index": row.face_index,
                    "timestamp": row.timestamp.replace(tzinfo=None).isoformat(timespec="microseconds"),
                    "emotion_name": row.emotion,
                    "confidence": row.confidence,
                    "model_version_tag": row.version_tag,
                    "processing_time_ms": row.processing_ms,
                    "request_id": row.request_id,
                    "box": row.box,
                }
                for row in page
            ],
            "next": _cursor(page[-1].position) if len(rows) > history.limit else None,
            "pending": pending,
        },
    )


def _stats_reply(stats: Stats, scope: str, since: datetime, found: Figures, pending: int) -> bytes:
    count = sum(tally.count for tally in found.emotions.values())
    confidence = sum(tally.confidence for tally in found.emotions.values())
    reply: dict[str, Any] = {
        "type": "stats",
        "status": "success",
        "scope": scope,
        "since": since.replace(tzinfo=None).isoformat(timespec="microseconds"),
        "window_s": stats.window_s,
        "count": count,
        "mean_confidence": round(confidence / count, 6) if count else None,
        "emotions": {
            name: {"count": tally.count, "mean_confidence": round(tally.confidence / tally.count, 6)}
            for name, tally in sorted(found.emotions.items())
        },
        "latency_ms": {f"p{percentile}": value for percentile, value in found.latency_ms.items()},
        "pending": pending,
    }
    if stats.buckets:
        reply["bucket_s"] = stats.window_s / stats.buckets
        reply["buckets"] = found.buckets
    return _success(stats.id, reply)


def _success(request_id: RequestId, reply: dict[str, Any]) -> bytes:
    if request_id is not None:
        reply["id"] = request_id
    return orjson.dumps(reply)


def _cursor(position: Position) -> str:
    key = position.key
    return f"{key.isoformat() if isinstance(key, datetime) else key.hex}~{position.number}"


def _position(cursor: str, scope: ByConnection | ByUser) -> Position:
    key, _, text = cursor.rpartition("~")
    try:
        number = int(text)
        if not 0 <= number <= _MAX_ROW:
            raise ValueError("no row has that number")
        if isinstance(scope, ByConnection):
            return Position(UUID(hex=key), min(number, _MAX_FACE))
        moment = datetime.fromisoformat(key)
        if moment.tzinfo is None:
            raise ValueError("the time has no offset")
        return Position(moment.astimezone(UTC), number)
    except (ValueError, OverflowError):  # OverflowError: in UTC it is before year 1, or after 9999
        raise InvalidRequest("'cursor' is the 'next' of the page before, or left out") from None
