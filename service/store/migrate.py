"""Bringing a database to the schema of this release. Alembic is imported only when there is something to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import StartupError
from service.store import placement, provenance
from service.store.provenance import current_revision
from service.store.schema import HEAD, predictions_log

if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

# Any constant, as long as every release has the same and no other application in the database does.
_ADVISORY_LOCK: Final = 0x56_69_73_69_6F_6E_41_49  # "VisionAI"
_LOCK_TIMEOUT: Final = "60s"
# For another process that migrates: it may have to read all rows of a large database.
_MIGRATION_S: Final = 1800


def migrate(
    engine: sa.Engine,
    *,
    patient: bool = True,
    before: Callable[[], object] | None = None,
    after: Callable[[sa.Connection], object] | None = None,
) -> None:
    """Bring the database to ``HEAD``, in one transaction: it is done completely or not at all.

    Any number of processes may call this at once: one migrates, the others wait and find it done. On PostgreSQL tables
    are made in the schema of ``predictions_log``, or moved there, wherever on the search path that is. Without
    ``patient`` a SQLite file that somebody else keeps locked is an OperationalError after a few seconds. ``before`` is
    called before tables that are there are changed, ``after`` when all are, in the same transaction; what they raise
    leaves them as they were.

    Raises StartupError when the tables, or the revision, are another application's, the tables are older than the
    revision says, or the database is newer than this release, and SQLAlchemy's DBAPIError when the database cannot be
    reached.
    """
    deadline = time.monotonic() + _MIGRATION_S
    told = False
    while True:
        try:
            with engine.begin() as connection:
                if current_revision(connection) == HEAD:
                    provenance.require(connection, HEAD)
                    if not placement.misplaced(connection):
                        return
                lock(connection)
                found = current_revision(connection)
                placement.gather(connection)
                if found == HEAD:
                    return
                if before is not None and sa.inspect(connection).has_table(predictions_log.name):
                    before()
                _upgrade(connection, found)
                if after is not None:
                    after(connection)
        except exc.OperationalError as error:
            # SQLite waits a few seconds by itself (see `database`): another process takes longer for its migration.
            if not patient or "database is locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
            if not told:
                logger.warning(
                    "another process keeps the database locked: waiting until it has migrated it, or lets go of it"
                )
                told = True
        else:
            logger.info("database migrated from revision %s to %s", found or "none", HEAD)
            return


def lock(connection: sa.Connection) -> None:
    """Exclude every other process that migrates or sets up this database until the transaction ends."""
    if connection.dialect.name == "postgresql":
        # What a query or a transaction may take otherwise is not meant for this: it may read a large table several
        # times, and is idle while `before` loads models. A server before PostgreSQL 17 has no limit for transactions,
        # and would refuse its name.
        connection.exec_driver_sql(
            "SELECT set_config(name, '0', true) FROM pg_settings"
            " WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
        )
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_MIGRATION_S}s'")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        # From here on for the tables' own locks: an older server that still runs may hold those.
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    # On SQLite the transaction itself began with the write lock (see database.create_engine).


def alembic_config(connection: sa.Connection) -> Config:
    """A configuration for Alembic's commands on this connection; its caller commits."""
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: sa.Connection, found: str | None) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise StartupError(
            f"the database is at revision {found}, which this release does not know (it works with {HEAD}): "
            "it was used by a newer release, or belongs to another application: install that release, or name another "
            "database in DATABASE_URL"
        )
    if found is not None:
        provenance.require(connection, found)
    logger.info("migrating the database from revision %s to %s", found or "none", HEAD)
    placement.begin_with_the_rows(connection)
    command.upgrade(config, "head")
