"""The Alembic environment. ``service.store.migrate`` runs it; there is no alembic.ini to keep."""
