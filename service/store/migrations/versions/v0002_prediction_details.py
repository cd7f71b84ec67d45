"""What the older server did not store, and the indexes for finding it again. No existing row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from service.errors import StartupError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = "predictions_log"
UNIQUE = "predictions_log_prediction_uuid_face_index_idx"
BY_TIME = "predictions_log_timestamp_idx"
BY_USER = "predictions_log_user_id_timestamp_idx"


def upgrade() -> None:
    """Add the columns (in an instant) and the indexes (reads the table once for each).

    An index by time that the operator has made, and that has the name of ours, is used as it is. Raises StartupError
    when something else has the name of an index.
    """
    for column in (
        sa.Column("prediction_uuid", sa.Uuid),
        sa.Column("face_index", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("face_box", sa.JSON),
        sa.Column("detection_score", sa.Float),
        sa.Column("probabilities", sa.JSON),
        sa.Column("processing_us", sa.Integer),
        sa.Column("request_id", sa.String(128)),
        sa.Column("user_id", sa.String(255)),
    ):
        op.add_column(TABLE, column)
    has_user = sa.text("user_id IS NOT NULL")
    for name in (UNIQUE, BY_TIME, BY_USER):
        if (owner := _taken(name)) and not (name == BY_TIME and _is_by_time()):
            raise StartupError(
                f"the database has something else of the name of an index that is to be made, {name}, on {owner}: "
                "rename it, or drop it, and start again"
            )
    op.create_index(UNIQUE, TABLE, ["prediction_uuid", "face_index"], unique=True)
    op.create_index(BY_TIME, TABLE, ["timestamp"], if_not_exists=True)
    op.create_index(
        BY_USER, TABLE, ["user_id", "timestamp"], postgresql_where=has_user, sqlite_where=has_user
    )


def _taken(name: str) -> str | None:
    """The table to which what has this name belongs, where an index of our table would get it."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        query = (
            "SELECT coalesce(indrelid, named.oid)::regclass::text FROM pg_class AS named"
            " LEFT JOIN pg_index ON indexrelid = named.oid"
            f" WHERE relname = :name AND relnamespace ="
            f" (SELECT relnamespace FROM pg_class WHERE oid = '{TABLE}'::regclass)"
        )
    else:
        query = "SELECT tbl_name FROM sqlite_master WHERE lower(name) = :name"
    found: str | None = connection.execute(sa.text(query), {"name": name}).scalar()
    return found


def _is_by_time() -> bool:
    """Whether the index of this name finds all rows by their time: PostgreSQL names one so that is given no name."""
    connection = op.get_bind()
    dialect = connection.dialect.name
    return any(
        index["name"] == BY_TIME
        and index["column_names"] == ["timestamp"]
        # Neither of some rows only, nor of another kind than a tree.
        and index.get("dialect_options", {}).keys().isdisjoint({f"{dialect}_where", f"{dialect}_using"})
        for index in sa.inspect(connection).get_indexes(TABLE)
    )


def downgrade() -> None:
    """Back to the older server's form: every row stays, with what that server knew of it."""
    for index in (BY_USER, BY_TIME, UNIQUE):
        op.drop_index(index, TABLE)
    for column in (
        "user_id",
        "request_id",
        "processing_us",
        "probabilities",
        "detection_score",
        "face_box",
        "face_index",
        "prediction_uuid",
    ):
        op.drop_column(TABLE, column)
