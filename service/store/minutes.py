"""Figures over long windows, from counts by minute instead of from each prediction.

The database keeps the counts itself, in the transaction that stores (see ``migrations/versions/v0003_minutes``), so
they tell the same as the rows do; only latencies are less exact, by 2.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from service.store.history import Anonymous, ByUser, Figures, add_faces, bucket_of, percentiles
from service.store.schema import emotion_minutes, latency_minutes

MINUTE: Final = timedelta(minutes=1)

#: Of a shorter window the rows are read: there are not many, and it may begin at any moment.
SHORTEST: Final = timedelta(hours=1)


def apply(window: timedelta, buckets: int) -> bool:
    """Whether a window, and each of its buckets, is made of whole minutes and long enough."""
    parts = window / (buckets * MINUTE) if buckets else window / MINUTE
    return window >= SHORTEST and parts.is_integer()


def end_of(moment: datetime) -> datetime:
    """The next full minute: where a window of whole minutes ends that is to hold this moment."""
    return moment.replace(second=0, microsecond=0) + MINUTE


def figures(
    connection: sa.Connection,
    scope: ByUser | Anonymous,
    since: datetime,
    window: timedelta,
    buckets: int = 0,
    labels: Sequence[str] = (),
) -> Figures:
    """Figures from `since`, a full minute, on; `apply` has said yes to the window and its buckets.

    Emotions are told as `labels` write them.
    """
    found = Figures(buckets=[{} for _ in range(buckets)])
    columns = emotion_minutes.c
    counted = (
        sa.select(
            columns.emotion_id,
            # By its middle: a minute's beginning may be the bucket's own, and would be on either side of it by chance.
            bucket_of(connection, columns.minute, since - MINUTE / 2, window, buckets),
            sa.func.sum(columns.faces).label("faces"),
            sa.func.sum(columns.confidence).label("confidence"),
        )
        .where(*_within(emotion_minutes, scope, since, window))
        .group_by(columns.emotion_id, sa.text("bucket"))
    )
    add_faces(found, connection, counted, labels)
    latencies = latency_minutes.c
    classes = (
        sa.select(latencies.latency_us, sa.func.sum(latencies.requests))
        .where(*_within(latency_minutes, scope, since, window))
        .group_by(latencies.latency_us)
    )
    found.latency_ms = percentiles((row[0] / 1000, int(row[1])) for row in connection.execute(classes))
    return found


def _within(
    table: sa.Table, scope: ByUser | Anonymous, since: datetime, window: timedelta
) -> list[sa.ColumnElement[Any]]:
    user = scope.user if isinstance(scope, ByUser) else ""
    return [table.c.user_id == user, table.c.minute >= since, table.c.minute < since + window]
