"""Room for manifests: their references are counted, and they are evicted by last pull.

Repositories of which nothing is known are dropped.
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_repository_manifests_pulled_at", "repository_manifests", ["pulled_at", "digest", "repository_id"]
    )
    op.execute("INSERT INTO totals SELECT 'references', count(*), 0 FROM manifest_references")
    for event, change in (("INSERT", "count + 1"), ("DELETE", "count - 1")):
        op.execute(
            f"CREATE TRIGGER totals_references_{event.lower()} AFTER {event} ON manifest_references "  # noqa: S608
            f"BEGIN UPDATE totals SET count = {change} WHERE what = 'references'; END"
        )
    op.execute(
        "DELETE FROM repositories WHERE id NOT IN (SELECT repository_id FROM tags "
        "UNION SELECT repository_id FROM repository_manifests "
        "UNION SELECT repository_id FROM repository_blobs)"
    )
