"""What the older server did not store, and the indexes for finding it again. No existing row is rewritten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLE = "predictions_log"
UNIQUE = "predictions_log_prediction_uuid_face_index_idx"
BY_TIME = "predictions_log_timestamp_idx"
BY_USER = "predictions_log_user_id_timestamp_idx"


def upgrade() -> None:
    """Add the columns (in an instant) and the indexes (reads the table once for each)."""
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
    op.create_index(UNIQUE, TABLE, ["prediction_uuid", "face_index"], unique=True)
    op.create_index(BY_TIME, TABLE, ["timestamp"])
    op.create_index(
        BY_USER, TABLE, ["user_id", "timestamp"], postgresql_where=has_user, sqlite_where=has_user
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
