"""Counts by minute, kept by triggers: whoever writes to ``predictions_log``, an older server too, is counted.

A trigger counts in the transaction that stores, and only rows that were stored: so each is counted exactly once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EMOTIONS = "emotion_minutes"
LATENCIES = "latency_minutes"
FUNCTION = "count_predictions"
TRIGGERS = {"INSERT": "predictions_log_added", "DELETE": "predictions_log_removed"}
# Of a column that is counted.
CHANGED = "predictions_log_changed"
EMPTIED = "predictions_log_emptied"
COUNTED = "timestamp, user_id, emotion_id, confidence, face_index, processing_us, processing_time_ms"


def upgrade() -> None:
    """Make the tables, count what is there (reads the table twice), and have the database go on counting.

    On PostgreSQL writers wait meanwhile, so that no row is missed or counted twice.
    """
    op.create_table(
        EMOTIONS,
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("minute", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("emotion_id", sa.Integer, primary_key=True),
        sa.Column("faces", sa.Integer, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        LATENCIES,
        sa.Column("user_id", sa.String(255), primary_key=True),
        sa.Column("minute", sa.DateTime(timezone=True), primary_key=True),
        sa.Column("latency_us", sa.Integer, primary_key=True),
        sa.Column("requests", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("LOCK TABLE predictions_log IN SHARE ROW EXCLUSIVE MODE")
        statements = [*_count("predictions_log", "postgresql"), *_postgresql()]
    else:
        statements = [*_count("predictions_log", "sqlite"), *sqlite_triggers()]
    for statement in statements:
        # As it is: neither colons nor percent signs are parameters.
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Stop counting, and forget the counts."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    where = " ON predictions_log" if postgresql else ""
    for trigger in (*TRIGGERS.values(), CHANGED, *([EMPTIED] if postgresql else [])):
        op.execute(f"DROP TRIGGER {trigger}{where}")
    if postgresql:
        op.execute(f"DROP FUNCTION {FUNCTION}()")
    op.drop_table(LATENCIES)
    op.drop_table(EMOTIONS)


def _count(source: str, dialect: str, sign: str = "") -> list[str]:
    """Statements that add the rows of a table, or take them away.

    In the order of the key, so that statements that count the same minutes wait for each other and never in a ring; for
    transactions of several statements 0005 sees to that.
    """
    row = f"{source}." if source in ("new", "old") else ""
    start = "" if row else f" FROM {source}"
    group = "" if row else " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    count, total = ("1", "{}") if row else ("count(*)", "sum({})")
    confidence = total.format(finite(f"{row}confidence", dialect))
    if dialect == "postgresql":
        minute = f"date_trunc('minute', {row}timestamp, 'UTC')"
    else:
        minute = f"substr({row}timestamp, 1, 16) || ':00.000000'"
    user = f"coalesce({row}user_id, '')"
    # Of 36 minutes there are more microseconds than an integer holds: one such row would stop the migration.
    latency = f"coalesce({row}processing_us, {row}processing_time_ms * CAST(1000 AS BIGINT))"
    return [
        f"INSERT INTO {EMOTIONS} (user_id, minute, emotion_id, faces, confidence)"
        f" SELECT {user}, {minute}, {row}emotion_id, {sign}{count}, {sign}{confidence}{start}"
        f" WHERE {row}timestamp IS NOT NULL AND {row}emotion_id IS NOT NULL{group}"
        " ON CONFLICT (user_id, minute, emotion_id) DO UPDATE"
        f" SET faces = {EMOTIONS}.faces + excluded.faces, confidence = {EMOTIONS}.confidence + excluded.confidence",
        f"INSERT INTO {LATENCIES} (user_id, minute, latency_us, requests)"
        f" SELECT {user}, {minute}, {_latency_class(latency)}, {sign}{count}{start}"
        f" WHERE {row}timestamp IS NOT NULL AND {row}face_index = 0 AND {latency} IS NOT NULL{group}"
        " ON CONFLICT (user_id, minute, latency_us) DO UPDATE"
        f" SET requests = {LATENCIES}.requests + excluded.requests",
    ]


def finite(value: str, dialect: str) -> str:
    """A confidence as it is added up. NaN or Infinity would make the sum useless for good: it cannot be taken away
    again, nor can what null adds."""
    low, high = (
        ("float8 '-Infinity'", "float8 'Infinity'") if dialect == "postgresql" else ("-9e999", "9e999")
    )
    return f"CASE WHEN {value} > {low} AND {value} < {high} THEN {value} ELSE 0 END"


def _latency_class(value: str) -> str:
    """The middle of a class that is 5 % wide at most: steps of 5 from 100, of 10 from 200, of 25 from 500 on.

    Less than nothing, by a clock that was put back meanwhile, is nothing: an hour of it is no integer either.
    """
    cases = [f"WHEN {value} < 0 THEN 0", f"WHEN {value} < 100 THEN {value}"]
    unit = 1
    while unit <= 10**6:  # up to 1000 seconds
        for below, step in ((200, 5), (500, 10), (1000, 25)):
            width = step * unit
            cases.append(f"WHEN {value} < {below * unit} THEN {value} - {value} % {width} + {width // 2}")
        unit *= 10
    return f"CASE {' '.join(cases)} ELSE {10**9} END"


def _drop_empty(source: str) -> list[str]:
    """Forget the minutes of which nothing is left, among those that the rows of a table were of."""
    if source == "old":
        minute, user = "substr(old.timestamp, 1, 16) || ':00.000000'", "coalesce(old.user_id, '')"
        which = f"user_id = {user} AND minute = {minute}"
    else:
        which = (
            "(user_id, minute) IN (SELECT coalesce(user_id, ''), date_trunc('minute', timestamp, 'UTC')"
            f" FROM {source})"
        )
    return [
        f"DELETE FROM {EMOTIONS} WHERE {which} AND faces <= 0",
        f"DELETE FROM {LATENCIES} WHERE {which} AND requests <= 0",
    ]


def counting_function(name: str = FUNCTION, settings: str = "", first: str = "") -> str:
    """The statement that makes the function of PostgreSQL's triggers, as it is here or with what later ones add."""
    add = "; ".join(_count("added", "postgresql"))
    remove = "; ".join([*_count("removed", "postgresql", "-"), *_drop_empty("removed")])
    return (
        f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql{settings} AS $$ BEGIN{first}"
        f" IF TG_OP = 'TRUNCATE' THEN DELETE FROM {EMOTIONS}; DELETE FROM {LATENCIES}; RETURN NULL; END IF;"
        f" IF TG_OP <> 'DELETE' THEN {add}; END IF;"
        f" IF TG_OP <> 'INSERT' THEN {remove}; END IF;"
        " RETURN NULL; END $$"
    )


def _postgresql() -> list[str]:
    tables = {
        "INSERT": "NEW TABLE AS added",
        "DELETE": "OLD TABLE AS removed",
        "UPDATE": "OLD TABLE AS removed NEW TABLE AS added",
    }
    return [
        counting_function(),
        *(
            f"CREATE TRIGGER {name} AFTER {event} ON predictions_log REFERENCING {tables[event]}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {FUNCTION}()"
            for event, name in {**TRIGGERS, "UPDATE": CHANGED}.items()
        ),
        f"CREATE TRIGGER {EMPTIED} AFTER TRUNCATE ON predictions_log"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {FUNCTION}()",
    ]


def sqlite_triggers() -> list[str]:
    """The statements that make SQLite's triggers."""
    add = "; ".join(_count("new", "sqlite"))
    remove = "; ".join([*_count("old", "sqlite", "-"), *_drop_empty("old")])
    return [
        f"CREATE TRIGGER {TRIGGERS['INSERT']} AFTER INSERT ON predictions_log BEGIN {add}; END",
        f"CREATE TRIGGER {TRIGGERS['DELETE']} AFTER DELETE ON predictions_log BEGIN {remove}; END",
        f"CREATE TRIGGER {CHANGED} AFTER UPDATE OF {COUNTED} ON predictions_log BEGIN {add}; {remove}; END",
    ]
