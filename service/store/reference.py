"""The rows that predictions point to: emotions and model versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from service.store.migrate import lock
from service.store.schema import ACTIVE, INACTIVE, emotion_class, model_version, predictions_log


@dataclass(frozen=True, slots=True)
class Model:
    """What predictions were made with: the version's tag, its file's name, and the labels it answers with."""

    version_tag: str
    filename: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class References:
    """The keys under which a model's predictions are stored in one database."""

    model_id: int
    emotion_ids: Mapping[str, int]


def ensure(connection: sa.Connection, model: Model, descriptions: Mapping[str, str]) -> References:
    """The model's keys, after adding what is missing. Emotions are found by name, in any case of letters.

    A table of the older server may lack its unique key, and have a name twice: the first is used.

    On PostgreSQL new rows are numbered behind those that are there, also where somebody numbered rows by hand. The
    transaction excludes other processes that do the same.
    """
    lock(connection)
    if connection.dialect.name == "postgresql":
        for table in (emotion_class, model_version, predictions_log):
            _number_behind(connection, table)
    emotion_ids = _ensure_emotions(connection, model.labels, descriptions)
    columns = model_version.c
    _insert_missing(
        connection,
        model_version,
        {
            columns.model_version_tag.name: model.version_tag,
            columns.model_filename.name: model.filename,
            columns.model_status.name: INACTIVE,
            columns.creation_date.name: datetime.now(UTC),
        },
    )
    found = sa.select(sa.func.min(columns.model_id)).where(columns.model_version_tag == model.version_tag)
    return References(connection.execute(found).scalar_one(), emotion_ids)


def activate(connection: sa.Connection, model_id: int) -> None:
    """Mark this model version as the active one, and no other. Rows that are right already are not written."""
    columns = model_version.c
    others = (columns.model_id != model_id) & (columns.model_status == ACTIVE)
    connection.execute(sa.update(model_version).where(others).values(model_status=INACTIVE))
    this = (columns.model_id == model_id) & columns.model_status.is_distinct_from(ACTIVE)
    connection.execute(sa.update(model_version).where(this).values(model_status=ACTIVE))


def activate_where_none_is(connection: sa.Connection, model_id: int) -> None:
    """Mark this model version as the active one, unless another is."""
    columns = model_version.c
    none_is = ~sa.exists().where(model_version.alias().c.model_status == ACTIVE)
    this = (columns.model_id == model_id) & none_is
    connection.execute(sa.update(model_version).where(this).values(model_status=ACTIVE))


def _ensure_emotions(
    connection: sa.Connection, labels: Sequence[str], descriptions: Mapping[str, str]
) -> dict[str, int]:
    columns = emotion_class.c
    name = sa.func.lower(columns.emotion_name)
    names = sa.select(name, sa.func.min(columns.emotion_id)).group_by(name)
    known: dict[str, int] = {row[0]: row[1] for row in connection.execute(names)}
    for label in labels:
        if label.lower() not in known:
            row = {"emotion_name": label, "emotion_desc": descriptions.get(label, label)}
            _insert_missing(connection, emotion_class, row)
            found = sa.select(columns.emotion_id).where(columns.emotion_name == label)
            known[label.lower()] = connection.execute(found).scalar_one()
    return {label: known[label.lower()] for label in labels}


def _number_behind(connection: sa.Connection, table: sa.Table) -> None:
    """An import of rows with their numbers leaves the sequence behind: it would give the same numbers again."""
    (key,) = table.primary_key
    connection.exec_driver_sql(
        f"SELECT setval(sequence, highest) FROM (SELECT pg_get_serial_sequence('{table.name}', '{key.name}')::regclass"
        f" AS sequence, (SELECT max({key.name}) FROM {table.name}) AS highest) AS found"
        " WHERE highest > coalesce(pg_sequence_last_value(sequence), 0)"
    )


def _insert_missing(connection: sa.Connection, table: sa.Table, row: Mapping[str, object]) -> None:
    # ON CONFLICT needs a unique constraint, which a table of the older server may lack: hence WHERE NOT EXISTS.
    key, value = next(iter(row.items()))
    absent = ~sa.exists().where(table.c[key] == value)
    values = sa.select(*(sa.literal(item, table.c[name].type) for name, item in row.items())).where(absent)
    connection.execute(sa.insert(table).from_select(list(row), values))
