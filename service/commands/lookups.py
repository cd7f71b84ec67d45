"""`history` and `stats`, without sockets and without a database of its own: requests in, what reads the rows out, and
their replies.

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

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from service.errors import InvalidRequest
from service.protocol.replies import naive_utc, success
from service.protocol.requests import History, Lookup, Stats
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

# What the columns hold: a row's number is a bigint, a face's a smallint.
_MAX_ROW: Final = 2**63 - 1
_MAX_FACE: Final = 2**15 - 1

Read = Callable[[sa.Connection], bytes]


def reader(
    lookup: Lookup,
    user: str | None,
    ids: PredictionIds,
    labels: Sequence[str],
    now: datetime,
    pending: int,
) -> Read:
    """What makes the reply to a lookup of this client, given a connection to the database.

    Args:
        lookup: the request.
        user: who the client is; None for anybody.
        ids: those of the client's connection.
        labels: the emotions as replies name them; the older server's table may have them in other letters.
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
            lookup, latest(connection, scope, lookup.limit + 1, after, labels), pending
        )
    window = timedelta(seconds=lookup.window_s)
    if lookup.scope == "connection":
        began = now - window
        return lambda connection: _stats_reply(
            lookup,
            "connection",
            began,
            figures(connection, connection_scope, began, window, lookup.buckets, labels),
            pending,
        )
    chosen, name = (Anonymous(), "anonymous") if user is None else (ByUser(user), "user")
    by_minute = minutes.apply(window, lookup.buckets)
    since = (minutes.end_of(now) if by_minute else now) - window
    count = minutes.figures if by_minute else figures
    return lambda connection: _stats_reply(
        lookup, name, since, count(connection, chosen, since, window, lookup.buckets, labels), pending
    )


def _history_reply(history: History, rows: Sequence[StoredFace], pending: int) -> bytes:
    page = rows[: history.limit]
    return success(
        {
            "type": "history",
            "predictions": [
                {
                    "prediction_id": row.prediction_id,
                    "face_index": row.face_index,
                    "timestamp": naive_utc(row.timestamp),
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
        history.id,
    )


def _stats_reply(stats: Stats, scope: str, since: datetime, found: Figures, pending: int) -> bytes:
    count = sum(tally.count for tally in found.emotions.values())
    confidence = sum(tally.confidence for tally in found.emotions.values())
    reply: dict[str, Any] = {
        "type": "stats",
        "scope": scope,
        "since": naive_utc(since),
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
    return success(reply, stats.id)


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
