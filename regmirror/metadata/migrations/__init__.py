"""Alembic's scripts; ``regmirror.metadata.upgrade`` runs them."""
