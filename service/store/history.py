"""What is read of the stored predictions: the latest of somebody's, and figures over a time.

Every statement is a scan of one index, see `schema`: a connection's rows are a range of the index over the ids (see
`prediction_ids`), a user's one of that over user and time, everybody's one of that over time. Figures over long windows
are in `minutes`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from service.store.schema import UTCDateTime, emotion_class, model_version, predictions_log

PERCENTILES: Final = (50, 90, 99)

# Latencies are told apart by their first three digits, so that millions are counted in a few thousand classes.
_DIGITS: Final = 1000
_LONGEST_US: Final = 10**10

# SQLite's own functions know times to the millisecond, which may be a bucket's length. To the microsecond a question of
# many rows takes a third longer; nobody sees one row of 60 000 in the bucket beside its own.
_LONG: Final = timedelta(minutes=1)

# A confidence that is counted; another is as null, and leaves the others their mean. NaN is larger to PostgreSQL.
_FINITE: Final = (-sys.float_info.max, sys.float_info.max)

_columns = predictions_log.c
_READ: Final = (
    _columns.predic_id,
    _columns.prediction_uuid,
    _columns.face_index,
    _columns.timestamp,
    _columns.emotion_id,
    _columns.confidence,
    _columns.model_id,
    _columns.processing_us,
    _columns.processing_time_ms,
    _columns.request_id,
    _columns.face_box,
)


@dataclass(frozen=True, slots=True)
class ByConnection:
    """The predictions whose ids lie from `first` to `last`, and that one user made, or None a client without one."""

    first: UUID
    last: UUID
    user: str | None = None


@dataclass(frozen=True, slots=True)
class ByUser:
    """The predictions of one user, over whatever connections."""

    user: str


@dataclass(frozen=True, slots=True)
class Anonymous:
    """The predictions of all clients that have no user."""


Scope = ByConnection | ByUser | Anonymous


@dataclass(frozen=True, slots=True)
class Position:
    """A row's place in a history: by id and face for a connection's, by time and row number for a user's."""

    key: UUID | datetime
    number: int


@dataclass(frozen=True, slots=True)
class StoredFace:
    """One row: one face of a prediction.

    `processing_ms` is its whole request's. The older server's rows have neither id nor box.
    """

    position: Position
    prediction_id: UUID | None
    face_index: int
    timestamp: datetime
    emotion: str | None
    confidence: float | None
    version_tag: str | None
    processing_ms: float | None
    request_id: str | None
    box: Sequence[int] | None


@dataclass(slots=True)
class Tally:
    """How many faces, and the sum of their confidences."""

    count: int = 0
    confidence: float = 0.0


@dataclass(slots=True)
class Figures:
    """Figures over a time: `emotions` counts faces, `buckets` counts them in equal parts of the time.

    `latency_ms` maps percentiles to milliseconds, each at most 0.5 % off (2.5 % from `minutes`); empty if there were
    no requests.
    """

    emotions: dict[str, Tally] = field(default_factory=dict)
    latency_ms: dict[int, float] = field(default_factory=dict)
    buckets: list[dict[str, int]] = field(default_factory=list)

    def add(self, emotion: str, bucket: int, count: int, confidence: float | None) -> None:
        """Add so many faces of an emotion, with the sum of their confidences."""
        tally = self.emotions.setdefault(emotion, Tally())
        tally.count += count
        tally.confidence += confidence or 0.0
        if self.buckets:
            part = self.buckets[min(max(bucket, 0), len(self.buckets) - 1)]
            part[emotion] = part.get(emotion, 0) + count


def latest(
    connection: sa.Connection,
    scope: ByConnection | ByUser,
    limit: int,
    after: Position | None = None,
    labels: Sequence[str] = (),
) -> list[StoredFace]:
    """The newest `limit` rows of a scope, newest first; with `after`, of those that come after that place.

    Rows without a time, which other programs may write, are left out. Emotions are told as `labels` write them.
    """
    spell = _speller(labels)
    if isinstance(scope, ByConnection):
        key: tuple[sa.Column[Any], sa.Column[Any]] = (_columns.prediction_uuid, _columns.face_index)
    else:
        key = (_columns.timestamp, _columns.predic_id)
    conditions = [*_within(scope), *_timed(connection)]
    if after is not None:
        place: sa.ColumnElement[Any] = sa.literal(after.key, key[0].type)
        if isinstance(scope, ByUser) and connection.dialect.name == "sqlite":
            # It compares texts, and other programs write a moment otherwise than we do: as its row has it.
            there = sa.select(key[0]).where(key[1] == after.number, *_within(scope))
            place = sa.func.coalesce(there.scalar_subquery(), place)
        conditions.append(sa.tuple_(*key) < sa.tuple_(place, sa.literal(after.number, key[1].type)))
    # The rows are found first, and only then joined to what they point to. No more is read of them than is told:
    # what the driver makes of each value is work under the lock that predictions need.
    found = (
        sa.select(*_READ)
        .where(*conditions)
        .order_by(*(column.desc() for column in key))
        .limit(limit)
        .subquery()
    )
    columns = found.c
    statement = (
        sa.select(found, emotion_class.c.emotion_name, model_version.c.model_version_tag)
        .select_from(found)
        .outerjoin(emotion_class, emotion_class.c.emotion_id == columns.emotion_id)
        .outerjoin(model_version, model_version.c.model_id == columns.model_id)
        .order_by(*(columns[column.name].desc() for column in key))
    )
    return [
        StoredFace(
            position=Position(row[key[0].name], row[key[1].name]),
            prediction_id=row["prediction_uuid"],
            face_index=row["face_index"],
            timestamp=row["timestamp"],
            emotion=None if row["emotion_name"] is None else spell(row["emotion_name"]),
            confidence=row["confidence"],
            version_tag=row["model_version_tag"],
            processing_ms=_milliseconds(row["processing_us"], row["processing_time_ms"]),
            request_id=row["request_id"],
            box=row["face_box"],
        )
        for row in connection.execute(statement).mappings()
    ]


def figures(
    connection: sa.Connection,
    scope: Scope,
    since: datetime,
    window: timedelta,
    buckets: int = 0,
    labels: Sequence[str] = (),
) -> Figures:
    """Figures over the predictions of a scope from `since` on, for `window`, in so many buckets or in none.

    Emotions are told as `labels` write them.
    """
    conditions = [*_within(scope), _columns.timestamp >= since, _columns.timestamp < since + window]
    found = Figures(buckets=[{} for _ in range(buckets)])
    counted = (
        sa.select(
            _columns.emotion_id,
            bucket_of(connection, _columns.timestamp, since, window, buckets),
            sa.func.count().label("faces"),
            # Not FILTER, which SQLite before 3.30 does not know.
            sa.func.sum(sa.case((_columns.confidence.between(*_FINITE), _columns.confidence))).label(
                "confidence"
            ),
        )
        .where(*conditions)
        .group_by(_columns.emotion_id, sa.text("bucket"))
    )
    add_faces(found, connection, counted, labels)
    # One row of each request, so that those with many faces do not count for more.
    thousand = sa.cast(1000, sa.BigInteger)  # 36 minutes are more microseconds than an integer holds
    microseconds = sa.func.coalesce(_columns.processing_us, _columns.processing_time_ms * thousand)
    requests = [*conditions, _columns.face_index == 0, microseconds.is_not(None)]
    latency = _leading_digits(microseconds).label("latency")
    classes = sa.select(latency, sa.func.count()).where(*requests).group_by(sa.text("latency"))
    found.latency_ms = percentiles((row[0] / 1000, row[1]) for row in connection.execute(classes))
    return found


def _within(scope: Scope) -> list[sa.ColumnElement[bool]]:
    match scope:
        case ByConnection(first, last, user):
            # A gateway sends what several users ask over one connection.
            return [
                _columns.prediction_uuid.between(first, last),
                _columns.user_id.is_not_distinct_from(user),
            ]
        case ByUser(user):
            return [_columns.user_id == user]
        case Anonymous():
            return [_columns.user_id.is_(None)]


def _timed(connection: sa.Connection) -> list[sa.ColumnElement[bool]]:
    """Rows that have a time. SQLite takes numbers for one, too, and an empty text; PostgreSQL knows more years than
    Python, of which the first and the last may be left in another time zone.

    In words of which no index is made use: that of the scope is the one to read.
    """
    moment = _columns.timestamp
    if connection.dialect.name == "sqlite":
        return [sa.func.typeof(moment) == "text", moment != sa.literal_column("''", moment.type)]
    # Not the range itself: PostgreSQL guesses that one row in 200 is in it, and may read and sort all of a user's for a
    # page of them.
    return [(~sa.func.date_part("year", moment).between(2, 9998)).is_(False)]


def add_faces(
    found: Figures, connection: sa.Connection, counting: sa.Select[Any], labels: Sequence[str]
) -> None:
    """Add what a statement counts to figures: `emotion_id`, `bucket`, how many `faces`, and the sum of `confidence`.

    An emotion whose name is null, as it may be, is counted nowhere.
    """
    counted, emotions = counting.subquery(), emotion_class.c
    is_its = sa.and_(emotions.emotion_id == counted.c.emotion_id, emotions.emotion_name.is_not(None))
    statement = sa.select(
        emotions.emotion_name, counted.c.bucket, counted.c.faces, counted.c.confidence
    ).join_from(counted, emotion_class, is_its)
    spell = _speller(labels)
    for emotion, bucket, faces, confidence in connection.execute(statement):
        found.add(spell(emotion), int(bucket), int(faces), confidence)


def _speller(labels: Sequence[str]) -> Callable[[str], str]:
    """What tells a stored emotion as these labels write it, and one that is none of them as the database does.

    Predictions are stored under the emotion of the same name in any case of letters (see `reference`).
    """
    known = {label.lower(): label for label in labels}
    return lambda name: known.get(name.lower(), name)


def bucket_of(
    connection: sa.Connection,
    moment: sa.ColumnElement[datetime],
    since: datetime,
    window: timedelta,
    buckets: int,
) -> sa.Label[Any]:
    """As `bucket`, in which of so many parts of a window from `since` on a moment lies; 0 where there are no parts."""
    number = _number(connection, moment, since, window / buckets) if buckets else sa.literal_column("0")
    return number.label("bucket")


def _number(
    connection: sa.Connection, moment: sa.ColumnElement[datetime], since: datetime, bucket: timedelta
) -> sa.ColumnElement[Any]:
    # In whole microseconds: 0.043 / 0.001 is a little less than 43.
    length = bucket // timedelta(microseconds=1)
    if connection.dialect.name == "postgresql":
        # Not extract(), which gives an exact number and takes four times as long.
        passed = sa.func.date_part("epoch", moment - sa.literal(since, UTCDateTime()))
        return sa.cast(passed * 1_000_000, sa.BigInteger) // length
    # What SQLite takes for no time is counted where the window begins.
    if bucket < _LONG:
        return sa.func.coalesce(_microseconds_since(since, moment), 0) // length
    days = sa.func.julianday(moment) - sa.func.julianday(sa.literal(since, UTCDateTime()))
    return sa.func.coalesce(sa.cast(days * (86400 / bucket.total_seconds()), sa.Integer), 0)


def _microseconds_since(since: datetime, moment: sa.ColumnElement[datetime]) -> sa.ColumnElement[int]:
    """How many lie between two moments, on SQLite: its calendar has the seconds, the text the digits behind them.

    An offset behind those is left out, as by the comparison of texts that chooses the window.
    """
    start = sa.literal(since.replace(microsecond=0), UTCDateTime())
    days = sa.func.julianday(sa.func.substr(moment, 1, 19)) - sa.func.julianday(start)
    # Nothing, or what is no fraction, behind the nought is none.
    fraction = sa.cast(sa.literal("0") + sa.func.substr(moment, 20, 7, type_=sa.String), sa.Float)
    return (
        sa.cast(days * 86400 + 0.5, sa.Integer) * 1_000_000
        + sa.cast(fraction * 1_000_000 + 0.5, sa.Integer)
        - since.microsecond
    )


def _leading_digits(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The middle of all integers that share their first three digits with this one; 0 of those below 0."""
    cases: list[tuple[sa.ColumnElement[bool], Any]] = [(value < 0, 0), (value < _DIGITS, value)]
    unit = 10
    while unit * _DIGITS <= _LONGEST_US:
        cases.append((value < unit * _DIGITS, value - value % unit + unit // 2))
        unit *= 10
    return sa.case(*cases, else_=sa.literal_column(str(_LONGEST_US)))


def percentiles(classes: Iterable[tuple[float, int]]) -> dict[int, float]:
    """Nearest-rank percentiles of milliseconds that are given with how often each occurs."""
    ordered = sorted(classes)
    total = sum(count for _, count in ordered)
    percentiles: dict[int, float] = {}
    for percentile in PERCENTILES:
        seen = 0
        for milliseconds, count in ordered:
            seen += count
            if seen * 100 >= total * percentile:
                percentiles[percentile] = milliseconds
                break
    return percentiles


def _milliseconds(microseconds: int | None, whole: int | None) -> float | None:
    return whole if microseconds is None else microseconds / 1000
