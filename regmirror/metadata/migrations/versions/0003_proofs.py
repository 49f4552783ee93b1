"""Rights that were written for a claim are forgotten; media types belong to repositories.

Older versions opened a stored blob to a repository for a status code, a redirect or a field of a
manifest, and a stored manifest for a HEAD. Which rows came from more than that cannot be told, so
every repository proves once again what it has. Manifests stay as references, so that nothing is
collected for it.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("repository_manifests", sa.Column("media_type", sa.String))
    op.add_column(
        "repository_manifests",
        sa.Column("is_verified", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.execute("DELETE FROM repository_blobs")
