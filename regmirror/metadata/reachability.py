"""What holds a manifest or a blob, as conditions and queries.

A manifest is held in a repository by a tag, by an index that is held there, or by its subject; a
blob by any stored manifest that names it.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from regmirror.metadata import schema as t

#: What a row of ``manifest_references`` takes in the database file, with its entries in two indexes:
#: measured at 360 bytes for sha256 digests in pages that are full, which they rarely are.
REFERENCE_BYTES: Final = 400


def due_manifests(due: float, limit: int) -> sa.Select[Any]:
    """Reviews with what decides them: ``size`` is None if the repository does not hold it."""
    review, held = t.reviews.c, t.repository_manifests
    query = sa.select(
        review.repository_id,
        review.digest,
        review.since,
        review.due_at,
        held.c.pulled_at,
        sa.func.length(t.manifests.c.payload).label("size"),
        t.repositories.c.upstream,
        t.repositories.c.name,
        is_held(review.repository_id, review.digest).label("is_held"),
    )
    query = query.select_from(
        t.reviews.outerjoin(
            held, sa.and_(held.c.repository_id == review.repository_id, held.c.digest == review.digest)
        )
        .outerjoin(t.manifests, t.manifests.c.digest == held.c.digest)
        .outerjoin(t.repositories, t.repositories.c.id == held.c.repository_id)
    )
    return query.where(review.kind == "manifest", review.due_at <= due).order_by(review.due_at).limit(limit)


def is_held(repository_id: Any, digest: Any) -> sa.ColumnElement[bool]:
    """Whether a tag, an index or a subject of the repository holds the manifest there."""
    tag, refs, other = t.tags.c, t.manifest_references.alias().c, t.repository_manifests.alias().c
    # Two conditions, so that each finds its index: with "or" all tags of the repository are read.
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


def is_named(digest: Any) -> sa.ColumnElement[bool]:
    """Whether a stored manifest names the blob."""
    refs = t.manifest_references.alias().c
    return sa.exists().where(refs.digest == digest, refs.role != "subject")


def due_blobs(due: float, limit: int) -> sa.Select[Any]:
    review, blob = t.reviews.c, t.blobs.c
    last_seen = sa.func.max(blob.stored_at, blob.pulled_at)
    query = sa.select(
        review.repository_id,
        review.digest,
        review.since,
        blob.size,
        last_seen.label("last_seen"),
        is_named(review.digest).label("is_named"),
    ).select_from(t.reviews.outerjoin(t.blobs, blob.digest == review.digest))
    return query.where(review.kind == "blob", review.due_at <= due).order_by(review.due_at).limit(limit)


def old_manifests(after: tuple[float, str, int] | None, limit: int) -> sa.Select[Any]:
    """Manifests of repositories, least recently pulled first, with what the removal of each frees."""
    held, other, refs = t.repository_manifests.c, t.repository_manifests.alias().c, t.manifest_references.c
    place = sa.tuple_(held.pulled_at, held.digest, held.repository_id)
    is_needed_longer = sa.exists().where(
        other.digest == held.digest,
        sa.tuple_(other.pulled_at, other.repository_id) > sa.tuple_(held.pulled_at, held.repository_id),
    )
    count = sa.select(sa.func.count()).where(refs.manifest == held.digest).scalar_subquery()
    payload = sa.select(sa.func.length(t.manifests.c.payload)).where(t.manifests.c.digest == held.digest)
    size = sa.case((is_needed_longer, 0), else_=payload.scalar_subquery() + count * REFERENCE_BYTES)
    query = sa.select(held.digest, size, held.pulled_at, held.repository_id)
    if after is not None:
        query = query.where(place > sa.tuple_(*map(sa.literal, after)))
    return query.order_by(held.pulled_at, held.digest, held.repository_id).limit(limit)


def held_manifests(*conditions: Any) -> sa.Select[Any]:
    held = t.repository_manifests
    size = sa.func.length(t.manifests.c.payload).label("size")
    joined = held.join(t.manifests, t.manifests.c.digest == held.c.digest)
    return sa.select(held.c.digest, size).select_from(joined).where(*conditions)
