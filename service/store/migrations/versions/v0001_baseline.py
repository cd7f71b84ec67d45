"""The tables of the older server: made on an empty database, recognised on one of its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from service.errors import StartupError
from service.store.legacy import TABLES, objection

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A copy, not an import: a migration does the same thing whatever becomes of the rest of the code.
EMOTIONS = (
    (1, "angry", "Enojo o ira"),
    (2, "disgust", "Disgusto o asco"),
    (3, "fear", "Miedo o temor"),
    (4, "happy", "Felicidad o alegría"),
    (5, "neutral", "Expresión neutral"),
    (6, "sad", "Tristeza"),
    (7, "surprise", "Sorpresa"),
)


def upgrade() -> None:
    """Create the three tables unless they are there, and the emotions that are not. Rows are left alone.

    Raises StartupError when there are tables of these names that are not those of the older server.
    """
    inspector = sa.inspect(op.get_bind())
    if not set(TABLES).isdisjoint(inspector.get_table_names()):
        reason = objection(inspector)
        if reason is not None:
            raise StartupError(
                f"the database has tables of VisionAI's names that are not VisionAI's: {reason}; "
                "give VisionAI a database of its own, or rename them"
            )
    else:
        _create_tables()
    _add_emotions()


def downgrade() -> None:
    """Refused: it would drop the tables with all their rows."""
    raise StartupError(
        "the tables of revision 0001 hold every stored prediction and are not dropped by a downgrade"
    )


def _create_tables() -> None:
    op.create_table(
        "emotion_class",
        sa.Column("emotion_id", sa.Integer, primary_key=True),
        sa.Column("emotion_name", sa.String(50), unique=True),
        sa.Column("emotion_desc", sa.Text),
    )
    op.create_table(
        "model_version",
        sa.Column("model_id", sa.Integer, primary_key=True),
        sa.Column("model_version_tag", sa.String(100), unique=True),
        sa.Column("model_filename", sa.String(255)),
        sa.Column("model_status", sa.String(2)),
        sa.Column("creation_date", sa.DateTime(timezone=True)),
    )
    op.create_table(
        "predictions_log",
        sa.Column("predic_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("emotion_id", sa.Integer, sa.ForeignKey("emotion_class.emotion_id")),
        sa.Column("confidence", sa.Float),
        sa.Column("model_id", sa.Integer, sa.ForeignKey("model_version.model_id")),
        sa.Column("processing_time_ms", sa.Integer),
        sa.Column("source_ip", sa.String(45).with_variant(postgresql.INET(), "postgresql")),
        sa.Column("timestamp", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )


def _add_emotions() -> None:
    """The seven emotions under the ids of the wire contract, where these are free."""
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT emotion_id, lower(emotion_name) FROM emotion_class")).all()
    taken: set[int] = {row[0] for row in rows}
    known = {row[1] for row in rows}
    table = sa.table(
        "emotion_class", sa.column("emotion_id"), sa.column("emotion_name"), sa.column("emotion_desc")
    )
    for wanted, name, description in EMOTIONS:
        if name in known:
            continue
        number = wanted if wanted not in taken else max(*taken, len(EMOTIONS)) + 1
        taken.add(number)
        connection.execute(
            sa.insert(table).values(emotion_id=number, emotion_name=name, emotion_desc=description)
        )
    if connection.dialect.name == "postgresql":
        # The ids above were given by hand: the sequence must not give them again.
        connection.execute(
            sa.text(
                "SELECT setval(pg_get_serial_sequence('emotion_class', 'emotion_id'),"
                " (SELECT max(emotion_id) FROM emotion_class))"
            )
        )
