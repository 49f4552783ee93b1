"""The queue of what may have lost its last holder: put up when that happens, looked at later.

The idea is that of GitLab's container registry: a collection looks at what has changed since the
last one and not at everything that is stored. A manifest is reviewed for each repository that
holds it, a blob once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t

Kind = Literal["manifest", "blob"]
EVERYWHERE: Final = 0  # the repository of blobs, which belong to none
AT_ONCE: Final = 0.0  # when what is purged is due


async def enqueue(
    connection: AsyncConnection, kind: Kind, repository_id: int, digests: Iterable[str | None], at: float
) -> None:
    """The last holder of these may have gone ``at`` this time; a later time replaces an earlier."""
    rows = [
        {"kind": kind, "repository_id": repository_id, "digest": digest, "since": at, "due_at": at}
        for digest in digests
        if digest is not None
    ]
    if rows:
        await connection.execute(_or_newer(insert(t.reviews)), rows)


async def enqueue_children(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """A repository no longer holds a manifest: review what it held there in its turn.

    Those are its children and its referrers. ``rows`` have ``of_repository``, ``of_digest``,
    ``since`` and ``due_at``, which are passed on: a tree is collected in one go.
    """
    refs, held = t.manifest_references.c, t.repository_manifests.c
    here = held.repository_id == sa.bindparam("of_repository")
    children = _selection("manifest", held.repository_id, held.digest).where(
        here,
        held.digest == refs.digest,
        refs.manifest == sa.bindparam("of_digest"),
        refs.role == "manifest",
    )
    referrers = _selection("manifest", held.repository_id, held.digest).where(
        here,
        held.digest == refs.manifest,
        refs.digest == sa.bindparam("of_digest"),
        refs.role == "subject",
    )
    for query in (children, referrers):
        await connection.execute(_from(query), rows)


async def enqueue_blobs(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Manifests are about to go: review the blobs they name, as far as anything is known of those.

    For ``rows`` see above.
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
    """What lost a holder of its own more recently keeps its own time, but for a purge."""
    columns = ["kind", "repository_id", "digest", "since", "due_at"]
    statement = insert(t.reviews).from_select(columns, query)
    new = statement.excluded.due_at
    return _or_newer(statement, sa.or_(new <= AT_ONCE, new > t.reviews.c.due_at))


def _or_newer(statement: Any, condition: Any = None) -> Any:
    return statement.on_conflict_do_update(
        ["kind", "repository_id", "digest"],
        set_={"since": statement.excluded.since, "due_at": statement.excluded.due_at},
        where=condition,
    )


async def delete_manifest(connection: AsyncConnection, digest: str) -> None:
    """Delete a manifest everywhere; the daily sweep finds what it held."""
    for table, column in (
        (t.repository_manifests, t.repository_manifests.c.digest),
        (t.manifest_references, t.manifest_references.c.manifest),
        (t.manifests, t.manifests.c.digest),
    ):
        await connection.execute(sa.delete(table).where(column == digest))
