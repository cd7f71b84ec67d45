"""Where on PostgreSQL's search path tables lie: what is made for ``predictions_log`` belongs into its schema.

An older server's tables may lie behind a schema that the path begins with: ``"$user", public`` is the default, and a
schema named like the user is enough. Triggers count in the schema of ``predictions_log``, and nowhere else.
"""

from __future__ import annotations

import logging
from typing import Final

import sqlalchemy as sa

from service.store.schema import emotion_minutes, latency_minutes, predictions_log

logger = logging.getLogger(__name__)

# Those of this `predictions_log` alone, which has the triggers of 0003: what else the path shows, the counts of another
# VisionAI say, has rows of its own beside it. Schemas are quoted where they have to be.
_MISPLACED: Final = f"""
SELECT found.relnamespace::regnamespace || '.' || found.relname, rows.relnamespace::regnamespace::text
FROM pg_class AS rows, pg_class AS found
WHERE rows.oid = to_regclass('{predictions_log.name}')
  AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = rows.oid AND tgname = 'predictions_log_added')
  AND found.oid IN (to_regclass('{emotion_minutes.name}'), to_regclass('{latency_minutes.name}'))
  AND found.relnamespace <> rows.relnamespace
  AND NOT EXISTS (
    SELECT FROM pg_class AS other
    WHERE (other.relnamespace, other.relname) IN (
      (found.relnamespace, rows.relname), (rows.relnamespace, found.relname)))
ORDER BY found.relname  -- as who writes locks them
"""


def misplaced(connection: sa.Connection) -> dict[str, str]:
    """The tables of counts that lie elsewhere than the rows they count, each with the schema that it belongs into."""
    if connection.dialect.name != "postgresql":
        return {}
    return {row[0]: row[1] for row in connection.exec_driver_sql(_MISPLACED)}


def gather(connection: sa.Connection) -> None:
    """Move the tables of counts to the rows they count. Earlier releases made them where the path begins."""
    found = misplaced(connection)
    if found:
        # Who writes has this one first, too: a migration that wants it later would else wait for them in a ring.
        connection.exec_driver_sql(f"LOCK TABLE {predictions_log.name} IN SHARE ROW EXCLUSIVE MODE")
    for table, schema in found.items():
        # As it is: a percent sign in a name is no parameter.
        statement = f"ALTER TABLE {table} SET SCHEMA {schema}"
        connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        logger.info("moved %s into the schema of predictions_log, %s", table, schema)


def begin_with_the_rows(connection: sa.Connection) -> None:
    """Until the transaction ends, make tables beside ``predictions_log``, where there is one."""
    if connection.dialect.name == "postgresql":
        # Before the rest of the path and not in its place: the tables that predictions point to may lie there.
        connection.exec_driver_sql(
            "SELECT set_config("
            "'search_path', relnamespace::regnamespace || ', ' || current_setting('search_path'), true)"
            f" FROM pg_class WHERE oid = to_regclass('{predictions_log.name}')"
        )
