"""The tables. ``migrations/`` brings a database to this shape; a test keeps the two equal.

    repositories ──< tags                 each tag as its upstream last reported it
                 ──< repository_manifests manifests that the repository's upstream has sent
                 ──< repository_blobs     links: blobs that this upstream has sent or proven to have
    manifests    ──< manifest_references  descriptors in a manifest
    blobs                                 blobs that are stored as files: sizes and times

    totals                                counts and bytes of blobs and manifests, kept by triggers
    gc_queue                              content that may have lost its last reference
    pending_removals                      blobs without a row whose files are still to be removed
    pins                                  patterns that protect from eviction
    maintenance_runs                      last run and progress of periodic tasks

Times are wall-clock seconds. Digests are texts ``algorithm:hex``. A row without its file is a cache
miss; reconciliation adds a row for a file that has none.

Three tables have older names in SQL (``reviews``, ``removals``, ``chores``). A migration that renames
them would rewrite triggers and indexes of every existing database and prevent a return to the version
before, so that only their Python names have changed.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData()

repositories = Table(
    "repositories",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("upstream", String, nullable=False),
    Column("name", String, nullable=False),
    UniqueConstraint("upstream", "name", name="uq_repositories_upstream_name"),
)

tags = Table(
    "tags",
    metadata,
    Column("repository_id", ForeignKey("repositories.id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("media_type", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("checked_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("pulled_at", Float, nullable=False),
    # The tag's earlier digest, while the manifest of the present one is not stored.
    Column("previous", String),
    Index("ix_tags_digest", "digest"),
    Index("ix_tags_pulled_at", "pulled_at"),
    Index("ix_tags_previous", "previous", sqlite_where=text("previous IS NOT NULL")),
)

manifests = Table(
    "manifests",
    metadata,
    Column("digest", String, primary_key=True),
    Column("media_type", String, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("stored_at", Float, nullable=False),
)

repository_manifests = Table(
    "repository_manifests",
    metadata,
    Column("repository_id", ForeignKey("repositories.id"), primary_key=True),
    Column("digest", ForeignKey("manifests.digest"), primary_key=True),
    Column("stored_at", Float, nullable=False),
    Column("pulled_at", Float, nullable=False),
    # As this repository's upstream sent it; NULL in rows of older versions.
    Column("media_type", String),
    # False in rows that an older version wrote before the upstream had sent the manifest's bytes.
    Column("is_verified", Boolean, nullable=False, server_default=false()),
    Index("ix_repository_manifests_digest", "digest"),
    Index("ix_repository_manifests_pulled_at", "pulled_at", "digest", "repository_id"),  # order of eviction
)

manifest_references = Table(
    "manifest_references",
    metadata,
    Column("manifest", ForeignKey("manifests.digest"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("digest", String, nullable=False),
    Column("role", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("fetchable", Boolean, nullable=False),
    Index("ix_manifest_references_digest", "digest"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("stored_at", Float, nullable=False),
    Column("pulled_at", Float, nullable=False),
    Index("ix_blobs_pulled_at", "pulled_at", "digest"),
)

repository_blobs = Table(
    "repository_blobs",
    metadata,
    Column("repository_id", ForeignKey("repositories.id"), primary_key=True),
    Column("digest", String, primary_key=True),
    Column("confirmed_at", Float, nullable=False),
    Index("ix_repository_blobs_digest", "digest"),
)

totals = Table(
    "totals",
    metadata,
    Column("what", String, primary_key=True),  # blobs, manifests, references (their bytes are estimated)
    Column("count", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
)

#: ``since`` is when the last reference may have been removed. An entry is due when ``due_at`` is longer
#: ago than the grace time. ``repository_id`` is 0 for blobs, which belong to no repository.
gc_queue = Table(
    "reviews",
    metadata,
    Column("kind", String, primary_key=True),  # manifest, blob
    Column("repository_id", Integer, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("since", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Index("ix_reviews_kind_due_at", "kind", "due_at"),
)

pending_removals = Table(
    "removals",
    metadata,
    Column("digest", String, primary_key=True),
    Column("size", Integer, nullable=False),
    Column("reason", String, nullable=False),
)

pins = Table(
    "pins",
    metadata,
    Column("pattern", String, primary_key=True),
    Column("pinned_at", Float, nullable=False),
)

maintenance_runs = Table(
    "chores",
    metadata,
    Column("name", String, primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=False),
    Column("cursor", String, nullable=False),
)
