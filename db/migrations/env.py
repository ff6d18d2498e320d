"""Alembic's entry: migrates the connection that labstack.store.database.migrate passes."""

from alembic import context

# the tables that the migrations are compared with
from labstack.store import audit, datasets, leases, predictions, windows  # noqa: F401
from labstack.store.database import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
