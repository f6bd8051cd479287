"""Alembic's entry. The connection is handed over by `hfi.store.migrate`; there is no alembic.ini."""

from alembic import context

from hfi.store.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
