"""The tables. ``migrations/`` brings a database to this shape; a test keeps the two equal.

    repositories ──< tags                 what a tag meant when its upstream was last asked
                 ──< repository_manifests which manifests a repository holds
                 ──< repository_blobs     which blobs its upstream has confirmed
    manifests    ──< manifest_references  what a manifest names
    blobs                                 what is stored as files: sizes and times

Times are wall-clock seconds. A row without its file is a miss; a file without its row is
adopted again. Digests are texts ``algorithm:hex``.
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
    Index("ix_tags_digest", "digest"),
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
    Index("ix_repository_manifests_digest", "digest"),
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
    Index("ix_blobs_pulled_at", "pulled_at"),
)

repository_blobs = Table(
    "repository_blobs",
    metadata,
    Column("repository_id", ForeignKey("repositories.id"), primary_key=True),
    Column("digest", String, primary_key=True),
    Column("confirmed_at", Float, nullable=False),
    Index("ix_repository_blobs_digest", "digest"),
)
