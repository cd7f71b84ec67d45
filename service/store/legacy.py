"""Recognising a database of the older server: its three tables, before any migration of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.store.schema import metadata, predictions_log

_INTEGER: Final = (sa.Integer,)
_TEXT: Final = (sa.String,)
_REAL: Final = (sa.Float, sa.Numeric)
_TIME: Final = (sa.DateTime,)
_ADDRESS: Final = (postgresql.INET, sa.String)

#: The tables and columns of the older server, each with the kinds of type that it may have.
TABLES: Final[dict[str, dict[str, tuple[type[sa.types.TypeEngine[Any]], ...]]]] = {
    "emotion_class": {"emotion_id": _INTEGER, "emotion_name": _TEXT, "emotion_desc": _TEXT},
    "model_version": {
        "model_id": _INTEGER,
        "model_version_tag": _TEXT,
        "model_filename": _TEXT,
        "model_status": _TEXT,
        "creation_date": _TIME,
    },
    "predictions_log": {
        "predic_id": _INTEGER,
        "emotion_id": _INTEGER,
        "confidence": _REAL,
        "model_id": _INTEGER,
        "processing_time_ms": _INTEGER,
        "source_ip": _ADDRESS,
        "timestamp": _TIME,
    },
}


def _fits(
    found: sa.types.TypeEngine[Any], kinds: tuple[type[sa.types.TypeEngine[Any]], ...], dialect: str
) -> bool:
    """PostgreSQL has a type for addresses, which gets a netmask where it becomes text, and times that are the same in
    every session's zone only with one of their own."""
    if dialect == "postgresql" and kinds is _ADDRESS:
        return isinstance(found, postgresql.INET)
    if dialect == "postgresql" and kinds is _TIME:
        return isinstance(found, sa.DateTime) and found.timezone
    return isinstance(found, kinds)


#: The keys of rows that are added while serving: the database has to number them.
_NUMBERED: Final = {"model_version": "model_id", "predictions_log": "predic_id"}
_NUMBERS: Final = {
    "postgresql": "it has neither a sequence nor an identity",
    "sqlite": "it is no INTEGER PRIMARY KEY",
}


def _is_numbered(inspector: sa.Inspector, table: str, column: Mapping[str, Any]) -> bool:
    """A copy of a table, made with CREATE TABLE AS say, has lost its sequence.

    SQLite numbers a key of the one type INTEGER, and leaves one of INT empty.
    """
    if inspector.dialect.name == "postgresql":
        return column["default"] is not None or "identity" in column
    key = inspector.get_pk_constraint(table)["constrained_columns"]
    declared = sa.text("SELECT upper(type) FROM pragma_table_info(:table) WHERE name = :name")
    assert isinstance(inspector.bind, sa.Connection)
    found = inspector.bind.execute(declared, {"table": table, "name": column["name"]}).scalar()
    return key == [column["name"]] and found == "INTEGER"


def objection(inspector: sa.Inspector) -> str | None:
    """Why this database cannot be one of the older server, in words; None when it is one.

    Additional columns are accepted where rows can be written without them and none has the name of a column that
    is to be added.
    """
    present = set(inspector.get_table_names())
    missing = [name for name in TABLES if name not in present]
    if missing:
        found = [name for name in TABLES if name in present]
        return f"it has the table {found[0]} but not {missing[0]}"
    for table, expected in TABLES.items():
        columns = {column["name"]: column for column in inspector.get_columns(table)}
        for name, kinds in expected.items():
            if name not in columns:
                return f"{table} has no column {name}"
            if not _fits(columns[name]["type"], kinds, inspector.dialect.name):
                return f"{table}.{name} has the type {columns[name]['type']}"
            if _NUMBERED.get(table) == name and not _is_numbered(inspector, table, columns[name]):
                return f"{table}.{name} is not numbered by the database: {_NUMBERS[inspector.dialect.name]}"
        for name, column in columns.items():
            if name in expected:
                continue
            if table == predictions_log.name and name in metadata.tables[table].columns:
                return f"{table} has a column {name} of unknown origin"
            if not column["nullable"] and column["default"] is None:
                return f"{table}.{name} must be given a value, and nothing is known to put there"
    return None
