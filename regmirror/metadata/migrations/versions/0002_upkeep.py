"""Upkeep: totals kept by triggers, reviews, removals, pins, chores, and what a tag meant before.

Everything that is stored already is put up for review once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tags", sa.Column("previous", sa.String))
    op.create_index("ix_tags_pulled_at", "tags", ["pulled_at"])
    op.create_index("ix_tags_previous", "tags", ["previous"], sqlite_where=sa.text("previous IS NOT NULL"))
    op.drop_index("ix_blobs_pulled_at", "blobs")
    op.create_index("ix_blobs_pulled_at", "blobs", ["pulled_at", "digest"])  # the order of eviction
    _create_totals()
    _create_queues()
    _create_pins_and_chores()


def _create_totals() -> None:
    op.create_table(
        "totals",
        sa.Column("what", sa.String, primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
    )
    for what, size in (("blobs", "size"), ("manifests", "length(payload)")):
        op.execute(
            f"INSERT INTO totals SELECT '{what}', count(*), coalesce(sum({size}), 0) FROM {what}"  # noqa: S608
        )
    for what, new, old in (
        ("blobs", "NEW.size", "OLD.size"),
        ("manifests", "length(NEW.payload)", "length(OLD.payload)"),
    ):
        _create_trigger(what, "INSERT", f"count = count + 1, bytes = bytes + {new}")
        _create_trigger(what, "DELETE", f"count = count - 1, bytes = bytes - {old}")
    _create_trigger("blobs", "UPDATE OF size", "bytes = bytes + NEW.size - OLD.size")


def _create_trigger(table: str, event: str, change: str) -> None:
    name = f"totals_{table}_{event.partition(' ')[0].lower()}"
    op.execute(
        f"CREATE TRIGGER {name} AFTER {event} ON {table} "  # noqa: S608
        f"BEGIN UPDATE totals SET {change} WHERE what = '{table}'; END"
    )


def _create_queues() -> None:
    op.create_table(
        "reviews",
        sa.Column("kind", sa.String, primary_key=True),
        sa.Column("repository_id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
    )
    op.create_index("ix_reviews_kind_due_at", "reviews", ["kind", "due_at"])
    op.execute(
        "INSERT INTO reviews SELECT 'manifest', repository_id, digest, stored_at, stored_at "
        "FROM repository_manifests"
    )
    op.execute("INSERT INTO reviews SELECT 'blob', 0, digest, stored_at, stored_at FROM blobs")
    op.create_table(
        "removals",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
    )


def _create_pins_and_chores() -> None:
    op.create_table(
        "pins",
        sa.Column("pattern", sa.String, primary_key=True),
        sa.Column("pinned_at", sa.Float, nullable=False),
    )
    op.create_table(
        "chores",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("ended_at", sa.Float, nullable=False),
        sa.Column("cursor", sa.String, nullable=False),
    )
