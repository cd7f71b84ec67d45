"""PostgreSQL counts in the schema of ``predictions_log``, whatever the search path of who writes there.

``pg_restore``, ``postgres_fdw`` and a careful administrator have an empty one: nothing was found, and their statement
failed. A path with another VisionAI's schema in it had that one's minutes counted.
"""

from __future__ import annotations

from alembic import op

from service.store.migrations.versions.v0003_minutes import FUNCTION, TRIGGERS, counting_function

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# Not the schema's name, which may change. What is set inside a function that has a setting of its own for it ends with
# the function.
SETTINGS = " SET search_path = pg_catalog"
FIRST = " PERFORM set_config('search_path', quote_ident(TG_TABLE_SCHEMA) || ', pg_temp', true);"


def upgrade() -> None:
    """Have the function look where the table is. Takes no lock that anybody waits for."""
    replace_function(SETTINGS, FIRST)


def downgrade() -> None:
    """Have it look in the writer's search path again."""
    replace_function()


def replace_function(settings: str = "", first: str = "") -> str:
    """Make PostgreSQL's counting function anew, with these additions; its name."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return FUNCTION
    # The one that is called: on a path of several schemas a new one might be made in another than the table's.
    used: str | None = connection.exec_driver_sql(
        "SELECT tgfoid::regproc::text FROM pg_trigger"
        f" WHERE tgrelid = 'predictions_log'::regclass AND tgname = '{TRIGGERS['INSERT']}'"
    ).scalar()
    name = used or FUNCTION
    statement = counting_function(name, settings, first)
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
    return name
