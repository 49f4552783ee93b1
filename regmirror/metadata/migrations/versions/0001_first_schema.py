"""The first schema.

Written out, not taken from ``schema.py``: a migration says what was, and stays as it is.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _create_names()
    _create_manifests()
    _create_blobs()


def _create_names() -> None:
    op.create_table(
        "repositories",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("upstream", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.UniqueConstraint("upstream", "name", name="uq_repositories_upstream_name"),
    )
    op.create_table(
        "tags",
        sa.Column("repository_id", sa.Integer, sa.ForeignKey("repositories.id"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, index=True),
        sa.Column("media_type", sa.String, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("checked_at", sa.Float, nullable=False),
        sa.Column("changed_at", sa.Float, nullable=False),
        sa.Column("pulled_at", sa.Float, nullable=False),
    )


def _create_manifests() -> None:
    op.create_table(
        "manifests",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("media_type", sa.String, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("stored_at", sa.Float, nullable=False),
    )
    op.create_table(
        "repository_manifests",
        sa.Column("repository_id", sa.Integer, sa.ForeignKey("repositories.id"), primary_key=True),
        sa.Column("digest", sa.String, sa.ForeignKey("manifests.digest"), primary_key=True, index=True),
        sa.Column("stored_at", sa.Float, nullable=False),
        sa.Column("pulled_at", sa.Float, nullable=False),
    )
    op.create_table(
        "manifest_references",
        sa.Column("manifest", sa.String, sa.ForeignKey("manifests.digest"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, index=True),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("fetchable", sa.Boolean, nullable=False),
    )


def _create_blobs() -> None:
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stored_at", sa.Float, nullable=False),
        sa.Column("pulled_at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "repository_blobs",
        sa.Column("repository_id", sa.Integer, sa.ForeignKey("repositories.id"), primary_key=True),
        sa.Column("digest", sa.String, primary_key=True, index=True),
        sa.Column("confirmed_at", sa.Float, nullable=False),
    )
