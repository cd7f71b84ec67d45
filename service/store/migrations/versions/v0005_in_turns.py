"""On PostgreSQL one transaction at a time counts, and in both databases a confidence that is no finite number is 0.

Of the transactions that write several rows, as an older server's may, each locked the counts of its rows in the order
of its statements: two of them waited for each other in a ring, and one failed. Of a minute with one NaN the mean stayed
null, also after that row was deleted.
"""

from __future__ import annotations

from alembic import op

from service.store.migrations.versions.v0003_minutes import (
    CHANGED,
    EMOTIONS,
    LATENCIES,
    TRIGGERS,
    finite,
    sqlite_triggers,
)
from service.store.migrations.versions.v0004_counted_in_place import FIRST, SETTINGS, replace_function

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

QUEUED = "predictions_log_queued"
# "Visi", which no other application in the database is likely to have, and the table's number, so that another VisionAI
# in a schema of its own has turns of its own. A lock of two numbers is never one of a single number, as `migrate` has.
LOCK_CLASS = 0x56_69_73_69
# Before the statement, and not where it is counted: there it would hold rows already, which who has the turn may want
# with a later statement (a prediction that both write, or delete). So everybody has the turn first, and rows second.
TAKE_TURN = (
    " IF TG_WHEN = 'BEFORE' THEN"
    f" PERFORM pg_advisory_xact_lock({LOCK_CLASS}, TG_RELID::integer); RETURN NULL; END IF;"
)


def upgrade() -> None:
    """Have writers take turns, and make the sums anew of the minutes that have none.

    On PostgreSQL those who write are waited for, and wait meanwhile; the counts are read once, and of the rows those of
    these minutes. Who owns ``predictions_log`` then owns all that writing to it takes.
    """
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("LOCK TABLE predictions_log IN SHARE ROW EXCLUSIVE MODE")
        function = replace_function(SETTINGS, TAKE_TURN + FIRST)
        statements = [
            f"CREATE TRIGGER {QUEUED} BEFORE INSERT OR UPDATE OR DELETE ON predictions_log"
            f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
            _GIVE_TO_THE_OWNER,
        ]
    else:
        statements = [
            f"DROP TRIGGER IF EXISTS {name}" for name in (*TRIGGERS.values(), CHANGED)
        ] + sqlite_triggers()
    for statement in (*statements, _sum_anew(connection.dialect.name)):
        # As it is: neither colons nor percent signs are parameters.
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def downgrade() -> None:
    """Have PostgreSQL's writers count without turns again; the sums are right as they are."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"DROP TRIGGER {QUEUED} ON predictions_log")
        replace_function(SETTINGS, FIRST)


def _sum_anew(dialect: str) -> str:
    """The statement that adds up the confidences of the minutes whose sum is no finite number."""
    if dialect == "postgresql":
        minute = "date_trunc('minute', timestamp, 'UTC')"
        # With its end, for the minute of a time that is `infinity`.
        near = "timestamp BETWEEN counted.minute AND counted.minute + interval '1 minute'"
    else:
        minute = "substr(timestamp, 1, 16) || ':00.000000'"
        # By the index. What follows the minute is a colon, or nothing, in a time that is one.
        near = "timestamp BETWEEN substr(counted.minute, 1, 16) AND substr(counted.minute, 1, 16) || ';'"
    return (
        f"UPDATE {EMOTIONS} AS counted SET confidence = (SELECT coalesce(sum({finite('confidence', dialect)}), 0)"
        f" FROM predictions_log AS stored WHERE {near} AND {minute} = counted.minute"
        " AND stored.emotion_id = counted.emotion_id AND coalesce(stored.user_id, '') = counted.user_id)"
        f" WHERE confidence <> {finite('confidence', dialect)}"
    )


# A superuser who migrates would else be the only one who can write. Who may not give them away keeps them.
_GIVE_TO_THE_OWNER = f"""
DO $$ DECLARE statement text; BEGIN
  FOR statement IN
    SELECT format('ALTER TABLE %s OWNER TO %s', made.oid::regclass, stored.relowner::regrole)
    FROM pg_class AS stored, pg_class AS made
    WHERE stored.oid = 'predictions_log'::regclass AND made.relowner <> stored.relowner
      AND made.oid IN ('{EMOTIONS}'::regclass, '{LATENCIES}'::regclass, to_regclass('alembic_version'))
    UNION ALL
    SELECT format('ALTER FUNCTION %s OWNER TO %s', counting.oid::regprocedure, stored.relowner::regrole)
    FROM pg_class AS stored, pg_trigger, pg_proc AS counting
    WHERE stored.oid = 'predictions_log'::regclass AND counting.proowner <> stored.relowner
      AND tgrelid = stored.oid AND tgname = '{QUEUED}' AND counting.oid = tgfoid
  LOOP EXECUTE statement; END LOOP;
EXCEPTION WHEN insufficient_privilege THEN NULL;
END $$
"""
