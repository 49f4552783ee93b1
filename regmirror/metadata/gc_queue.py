"""GC queue: content that may have lost its last reference, to be checked by a later collection.

An entry is added by the transaction that removes a reference, so that a collection checks what has
changed since the last one and not everything that is stored; GitLab's container registry works in
the same way. A manifest has an entry for each repository that has it, a blob has one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.metadata.dialect import insert

Kind = Literal["manifest", "blob"]
EVERYWHERE: Final = 0  # ``repository_id`` of blobs, which belong to no repository
AT_ONCE: Final = 0.0  # ``due_at`` of purged content: due at once, without the grace time


async def enqueue(
    connection: AsyncConnection, kind: Kind, repository_id: int, digests: Iterable[str | None], at: float
) -> None:
    """Enqueue content that may have lost its last reference at ``at``, which replaces an earlier time."""
    rows = [
        {"kind": kind, "repository_id": repository_id, "digest": digest, "since": at, "due_at": at}
        for digest in digests
        if digest is not None
    ]
    if rows:
        await connection.execute(_or_newer(insert(t.gc_queue)), rows)


async def dequeue(connection: AsyncConnection, kind: Kind, keys: Iterable[tuple[int, str]]) -> None:
    """Delete the entries of these keys: a repository's id and a digest."""
    row = t.gc_queue.c
    rows = [{"of_repository": repository_id, "of_digest": digest} for repository_id, digest in keys]
    if rows:
        await connection.execute(
            sa.delete(t.gc_queue).where(
                row.kind == kind,
                row.repository_id == sa.bindparam("of_repository"),
                row.digest == sa.bindparam("of_digest"),
            ),
            rows,
        )


async def postpone(connection: AsyncConnection, kind: Kind, rows: list[tuple[Any, float]]) -> None:
    """Set another ``due_at``; ``since`` stays."""
    values = [
        {
            "kind": kind,
            "repository_id": row.repository_id,
            "digest": row.digest,
            "since": row.since,
            "due_at": at,
        }
        for row, at in rows
    ]
    if values:
        await connection.execute(insert(t.gc_queue).on_conflict_do_nothing(), values)


async def enqueue_children(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Enqueue the children and referrers of manifests that a repository no longer has.

    ``rows`` have ``of_repository``, ``of_digest``, ``since`` and ``due_at``. The new entries inherit
    both times, so that one collection removes a whole tree.
    """
    refs, entries = t.manifest_references.c, t.repository_manifests.c
    here = entries.repository_id == sa.bindparam("of_repository")
    children = _selection("manifest", entries.repository_id, entries.digest).where(
        here,
        entries.digest == refs.digest,
        refs.manifest == sa.bindparam("of_digest"),
        refs.role == "manifest",
    )
    referrers = _selection("manifest", entries.repository_id, entries.digest).where(
        here,
        entries.digest == refs.manifest,
        refs.digest == sa.bindparam("of_digest"),
        refs.role == "subject",
    )
    for query in (children, referrers):
        await connection.execute(_from(query), rows)


async def enqueue_blobs(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Enqueue the blobs of manifests that are about to be deleted, if they have a row or a link.

    ``rows`` are as for ``enqueue_children``.
    """
    refs = t.manifest_references.c
    named = _selection("blob", sa.literal(EVERYWHERE), refs.digest).where(
        refs.manifest == sa.bindparam("of_digest"),
        sa.or_(refs.role == "config", refs.role == "layer"),
        sa.or_(
            sa.exists().where(t.blobs.c.digest == refs.digest),
            sa.exists().where(t.repository_blobs.c.digest == refs.digest),
        ),
    )
    await connection.execute(_from(named), rows)


def _selection(kind: Kind, repository_id: Any, digest: Any) -> sa.Select[Any]:
    return sa.select(
        sa.literal(kind),
        repository_id,
        digest,
        sa.bindparam("since", type_=sa.Float),
        sa.bindparam("due_at", type_=sa.Float),
    ).distinct()


def _from(query: sa.Select[Any]) -> Any:
    """Insert the selected entries. An existing entry keeps its time if that is later, so that its
    grace time does not end early; a purge always replaces it.
    """
    columns = ["kind", "repository_id", "digest", "since", "due_at"]
    statement = insert(t.gc_queue).from_select(columns, query)
    new = statement.excluded.due_at
    return _or_newer(statement, sa.or_(new <= AT_ONCE, new > t.gc_queue.c.due_at))


def _or_newer(statement: Any, condition: Any = None) -> Any:
    return statement.on_conflict_do_update(
        ["kind", "repository_id", "digest"],
        set_={"since": statement.excluded.since, "due_at": statement.excluded.due_at},
        where=condition,
    )


async def delete_manifest(connection: AsyncConnection, digest: str) -> None:
    """Delete a manifest from every repository.

    Nothing is enqueued: reconciliation finds the content that it referenced.
    """
    for table, column in (
        (t.repository_manifests, t.repository_manifests.c.digest),
        (t.manifest_references, t.manifest_references.c.manifest),
        (t.manifests, t.manifests.c.digest),
    ):
        await connection.execute(sa.delete(table).where(column == digest))
