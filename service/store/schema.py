"""The tables, as SQLAlchemy metadata. Migrations make them; a test holds the two against each other.

The names and types of the first columns of each table are those of the databases that exist in the field; every
later column may be null or has a default, so that an older server could still write beside us.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

#: The revision that this code works with: the last file in ``migrations/versions`` (a test compares them).
HEAD: Final = "0005"

#: ``model_status`` of the version that is served; any other text is not active.
ACTIVE: Final = "01"
INACTIVE: Final = "00"

#: Longer values are cut when they are stored.
REQUEST_ID_LENGTH: Final = 128
USER_ID_LENGTH: Final = 255


class UTCDateTime(sa.TypeDecorator[datetime]):
    """``timestamptz`` on PostgreSQL; on SQLite the text of the UTC time. Python sees aware UTC times on both."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Turn an aware time to UTC before SQLite drops the offset."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Give the offset back to what SQLite stored without one."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Address(sa.TypeDecorator[str]):
    """``inet`` on PostgreSQL; text on SQLite, which has no addresses."""

    impl = sa.String(45)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """PostgreSQL's dialect, 2 MB of every process, is imported only where it is used."""
        if dialect.name != "postgresql":
            return super().load_dialect_impl(dialect)
        from sqlalchemy.dialects.postgresql import INET

        return dialect.type_descriptor(INET())


# The names that PostgreSQL itself gives to unnamed constraints, which are those of the existing databases.
metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

# SQLite numbers rows by itself only in a column of the exact type INTEGER.
_row_number: sa.types.TypeEngine[int] = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

emotion_class = sa.Table(
    "emotion_class",
    metadata,
    sa.Column("emotion_id", sa.Integer, primary_key=True),
    sa.Column("emotion_name", sa.String(50), unique=True),
    sa.Column("emotion_desc", sa.Text),
)

model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("model_id", sa.Integer, primary_key=True),
    sa.Column("model_version_tag", sa.String(100), unique=True),
    sa.Column("model_filename", sa.String(255)),
    sa.Column("model_status", sa.String(2)),
    sa.Column("creation_date", UTCDateTime),
)

predictions_log = sa.Table(
    "predictions_log",
    metadata,
    sa.Column("predic_id", _row_number, primary_key=True),
    sa.Column("emotion_id", sa.ForeignKey("emotion_class.emotion_id")),
    sa.Column("confidence", sa.Float),
    sa.Column("model_id", sa.ForeignKey("model_version.model_id")),
    sa.Column("processing_time_ms", sa.Integer),
    sa.Column("source_ip", Address),
    sa.Column("timestamp", UTCDateTime, server_default=sa.func.now()),
    # Since 0002.
    sa.Column("prediction_uuid", sa.Uuid),
    sa.Column("face_index", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("face_box", sa.JSON),  # [x, y, w, h] in pixels of the sent image
    sa.Column("detection_score", sa.Float),
    sa.Column("probabilities", sa.JSON),  # in label order
    sa.Column("processing_us", sa.Integer),  # processing_time_ms is too coarse: most predictions take 1
    sa.Column("request_id", sa.String(REQUEST_ID_LENGTH)),
    sa.Column("user_id", sa.String(USER_ID_LENGTH)),
    # What makes a write repeatable: the same face of the same prediction cannot be stored twice.
    sa.Index(None, "prediction_uuid", "face_index", unique=True),
    sa.Index(None, "timestamp"),
    # A user's history. Partial in the databases, WHERE user_id IS NOT NULL: a deployment without users pays nothing
    # for it. That is for the migration to say: the option would import the dialects of both, see Address.
    sa.Index(None, "user_id", "timestamp"),
)

# Since 0003: what `stats` reads of long windows. Triggers keep both, see the migrations; nobody else writes to them.
# The user of predictions without one is the empty text, so that it can be part of a key.
emotion_minutes = sa.Table(
    "emotion_minutes",
    metadata,
    sa.Column("user_id", sa.String(USER_ID_LENGTH), primary_key=True),
    sa.Column("minute", UTCDateTime, primary_key=True),
    sa.Column("emotion_id", sa.Integer, primary_key=True),
    sa.Column("faces", sa.Integer, nullable=False),
    sa.Column("confidence", sa.Float, nullable=False),  # their sum
    sqlite_with_rowid=False,
)

latency_minutes = sa.Table(
    "latency_minutes",
    metadata,
    sa.Column("user_id", sa.String(USER_ID_LENGTH), primary_key=True),
    sa.Column("minute", UTCDateTime, primary_key=True),
    sa.Column("latency_us", sa.Integer, primary_key=True),  # the middle of a class that is 5 % wide at most
    sa.Column("requests", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)
