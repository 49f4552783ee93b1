"""Called by Alembic with the connection that ``regmirror.metadata.upgrade`` has opened.

Every migration runs in the transaction that is begun and committed there.
"""

from __future__ import annotations

from alembic import context

from regmirror.metadata.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
