"""Alembic's entry: migrate over the connection, and in the transaction, that the caller holds."""

from alembic import context

from service.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # Alembic believes SQLite's DDL to be outside of transactions. It is not, once the driver is told to leave
    # them alone, so a migration that fails half-way leaves nothing behind.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
