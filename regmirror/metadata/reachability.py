"""Reachability as SQL conditions and queries.

A manifest is reachable in a repository through a tag, through an index that the repository has, or
through its subject. A blob is reachable through any stored manifest that references it.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.dialect import greatest

#: Bytes that one row of ``manifest_references`` takes in the database file, with its entries in two
#: indexes: 360 were measured for sha256 digests in full pages, and pages are rarely full.
REFERENCE_BYTES: Final = 400


def select_due_manifests(due: float, limit: int) -> sa.Select[Any]:
    """Select due manifests of the GC queue; ``size`` is None if the repository does not have one."""
    queued, entries = t.gc_queue.c, t.repository_manifests
    query = sa.select(
        queued.repository_id,
        queued.digest,
        queued.since,
        queued.due_at,
        entries.c.pulled_at,
        sa.func.length(t.manifests.c.payload).label("size"),
        t.repositories.c.upstream,
        t.repositories.c.name,
        is_manifest_referenced(queued.repository_id, queued.digest).label("is_referenced"),
    )
    query = query.select_from(
        t.gc_queue.outerjoin(
            entries,
            sa.and_(entries.c.repository_id == queued.repository_id, entries.c.digest == queued.digest),
        )
        .outerjoin(t.manifests, t.manifests.c.digest == entries.c.digest)
        .outerjoin(t.repositories, t.repositories.c.id == entries.c.repository_id)
    )
    return query.where(queued.kind == "manifest", queued.due_at <= due).order_by(queued.due_at).limit(limit)


def is_manifest_referenced(repository_id: Any, digest: Any) -> sa.ColumnElement[bool]:
    """Whether a tag, an index or the manifest's subject keeps the manifest in the repository."""
    tag, refs, other = t.tags.c, t.manifest_references.alias().c, t.repository_manifests.alias().c
    # Two conditions, because each can use an index; with OR, SQLite reads every tag of the repository.
    by_tag = sa.exists().where(tag.repository_id == repository_id, tag.digest == digest)
    by_former_tag = sa.exists().where(tag.repository_id == repository_id, tag.previous == digest)
    by_index = sa.exists().where(
        refs.digest == digest,
        refs.role == "manifest",
        other.digest == refs.manifest,
        other.repository_id == repository_id,
    )
    of_subject, subject = t.manifest_references.alias().c, t.repository_manifests.alias().c
    by_subject = sa.exists().where(
        of_subject.manifest == digest,
        of_subject.role == "subject",
        subject.digest == of_subject.digest,
        subject.repository_id == repository_id,
    )
    return sa.or_(by_tag, by_former_tag, by_index, by_subject)


def is_blob_referenced(digest: Any) -> sa.ColumnElement[bool]:
    """Whether a stored manifest references the blob."""
    refs = t.manifest_references.alias().c
    return sa.exists().where(refs.digest == digest, refs.role != "subject")


def select_due_blobs(due: float, limit: int) -> sa.Select[Any]:
    """Select due blobs of the GC queue; ``size`` is None if the blob has no row."""
    queued, blob = t.gc_queue.c, t.blobs.c
    last_seen = greatest(blob.stored_at, blob.pulled_at)
    query = sa.select(
        queued.repository_id,
        queued.digest,
        queued.since,
        blob.size,
        last_seen.label("last_seen"),
        is_blob_referenced(queued.digest).label("is_referenced"),
    ).select_from(t.gc_queue.outerjoin(t.blobs, blob.digest == queued.digest))
    return query.where(queued.kind == "blob", queued.due_at <= due).order_by(queued.due_at).limit(limit)


def select_eviction_candidates(after: tuple[float, str, int] | None, limit: int) -> sa.Select[Any]:
    """Select manifests of repositories, least recently pulled first, with the bytes each would free."""
    entries, other, refs = t.repository_manifests.c, t.repository_manifests.alias().c, t.manifest_references.c
    place = sa.tuple_(entries.pulled_at, entries.digest, entries.repository_id)
    is_needed_longer = sa.exists().where(
        other.digest == entries.digest,
        sa.tuple_(other.pulled_at, other.repository_id) > sa.tuple_(entries.pulled_at, entries.repository_id),
    )
    count = sa.select(sa.func.count()).where(refs.manifest == entries.digest).scalar_subquery()
    payload = sa.select(sa.func.length(t.manifests.c.payload)).where(t.manifests.c.digest == entries.digest)
    size = sa.case((is_needed_longer, 0), else_=payload.scalar_subquery() + count * REFERENCE_BYTES)
    query = sa.select(entries.digest, size, entries.pulled_at, entries.repository_id)
    if after is not None:
        query = query.where(place > sa.tuple_(*map(sa.literal, after)))
    return query.order_by(entries.pulled_at, entries.digest, entries.repository_id).limit(limit)


def select_manifests(*conditions: Any) -> sa.Select[Any]:
    """Select digest and size of the manifests of repositories that meet the conditions."""
    entries = t.repository_manifests
    size = sa.func.length(t.manifests.c.payload).label("size")
    joined = entries.join(t.manifests, t.manifests.c.digest == entries.c.digest)
    return sa.select(entries.c.digest, size).select_from(joined).where(*conditions)
