"""Whether the revision that a database says it is at is VisionAI's: other applications have a table of that name, too,
and number their revisions as they like."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import StartupError
from service.store.schema import emotion_minutes, latency_minutes, predictions_log

VERSION_TABLE: Final = "alembic_version"

_ANOTHERS: Final = (
    f"{VERSION_TABLE} is another application's: give VisionAI a database of its own in DATABASE_URL (on PostgreSQL a "
    "schema is enough, alone on the search path)"
)

# No release was at the first revision, whose tables are the older server's: nothing would tell one that is from another
# application's beside these.
_FIRST: Final = "0001"
# Since 0002.
_COLUMNS: Final = (
    "prediction_uuid",
    "face_index",
    "face_box",
    "detection_score",
    "probabilities",
    "processing_us",
    "request_id",
    "user_id",
)
_COUNTS_SINCE: Final = "0003"
_COUNTS: Final = ("user_id", "minute", "emotion_id", "faces", "confidence")


def current_revision(connection: sa.Connection) -> str | None:
    """The revision that the database is at; None before the first migration.

    Raises StartupError for several, which VisionAI never has.
    """
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    query = sa.text(f"SELECT version_num FROM {VERSION_TABLE} ORDER BY version_num")
    revisions: list[str] = list(connection.execute(query).scalars())
    if len(revisions) > 1:
        raise StartupError(f"the database has the revisions {', '.join(revisions)}: {_ANOTHERS}")
    return revisions[0] if revisions else None


def require(connection: sa.Connection, revision: str) -> None:
    """Raise StartupError unless the database has what VisionAI's has at this revision, one of ours by its name.

    `pg_restore --clean` of an older copy replaces the tables that the copy has, and keeps the version.
    """
    inspector = sa.inspect(connection)
    said = f"the database says that it is at revision {revision}, but"
    if revision == _FIRST:
        raise StartupError(f"{said} no release of VisionAI leaves one there: {_ANOTHERS}")
    missing = _missing(inspector, predictions_log.name, _COLUMNS)
    missing_count = _missing(inspector, emotion_minutes.name, _COUNTS)
    if missing and missing_count:
        raise StartupError(f"{said} {missing}: {_ANOTHERS}")
    if missing and not inspector.has_table(predictions_log.name):
        raise StartupError(f"{said} {missing}: it was dropped or renamed: put it back")
    if missing:
        raise StartupError(
            f"{said} {missing}: an older copy was put in its place: drop the tables {VERSION_TABLE}, "
            f"{emotion_minutes.name} and {latency_minutes.name}, which that copy did not have, and start again"
        )
    if missing_count and revision >= _COUNTS_SINCE:
        raise StartupError(
            f"{said} {missing_count}: it was dropped or renamed: put a copy of the database back"
        )


def _missing(inspector: sa.Inspector, table: str, columns: tuple[str, ...]) -> str | None:
    """What a table lacks of these columns, in words."""
    try:
        found = {column["name"] for column in inspector.get_columns(table)}
    except exc.NoSuchTableError:
        return f"there is no table {table}"
    missing = [name for name in columns if name not in found]
    return f"{table} has no column {missing[0]}" if missing else None
