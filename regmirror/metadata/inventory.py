"""Going through everything that is stored, page by page: for the sweep and for the scrub.

Pages follow the order of keys, so that a walk can be broken off and resumed anywhere and rows
that come and go meanwhile do not disturb it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.gc_queue import EVERYWHERE, delete_manifest
from regmirror.metadata.reachability import is_held, is_named
from regmirror.metadata.totals import KNOWN
from regmirror.oci.names import Digest, Repository


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob as the database knows it; ``is_named``: by a stored manifest."""

    digest: Digest
    size: int
    stored_at: float
    is_named: bool


@dataclass(frozen=True, slots=True)
class Chore:
    """Something that is done now and then: when last, and how far a run has come that was broken off."""

    started_at: float = 0.0
    ended_at: float = 0.0
    cursor: str = ""


class Inventory:
    """Walks over the rows; ``now`` is the wall clock."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now

    async def blobs_after(self, digest: str, limit: int) -> list[BlobRow]:
        """The next blobs in the order of their digests."""
        row = t.blobs.c
        query = sa.select(row.digest, row.size, row.stored_at, is_named(row.digest))
        rows = await self.database.all(query.where(row.digest > digest).order_by(row.digest).limit(limit))
        return [BlobRow(Digest(item[0]), item[1], item[2], bool(item[3])) for item in rows]

    async def known(self, digests: Collection[Digest]) -> set[str]:
        """Which of these blobs have a row."""
        query = sa.select(t.blobs.c.digest).where(t.blobs.c.digest.in_([*map(str, digests)]))
        return {row[0] for row in await self.database.all(query)}

    @uncancellable
    async def adopt_rows(self, found: Iterable[tuple[Digest, int, float]]) -> None:
        """Blobs whose files are there and whose rows are not: digest, size, time they were stored."""
        blobs = [
            {"digest": str(digest), "size": size, "stored_at": at, "pulled_at": at}
            for digest, size, at in found
        ]
        if blobs:
            async with self.database.write() as connection:
                await connection.execute(insert(t.blobs).on_conflict_do_nothing(), blobs)
        await self.enqueue([(Digest(str(row["digest"])), float(str(row["stored_at"]))) for row in blobs])

    @uncancellable
    async def drop_rows(self, digests: Collection[Digest]) -> None:
        """Blobs whose rows are there and whose files are not."""
        async with self.database.write() as connection:
            await connection.execute(sa.delete(t.blobs).where(t.blobs.c.digest.in_([*map(str, digests)])))

    @uncancellable
    async def enqueue(self, blobs: Collection[tuple[Digest, float]]) -> None:
        """Blobs that nothing names and that await no review get one."""
        rows = [
            {
                "kind": "blob",
                "repository_id": EVERYWHERE,
                "digest": str(digest),
                "since": at,
                "due_at": at,
            }
            for digest, at in blobs
        ]
        if rows:
            async with self.database.write() as connection:
                await connection.execute(insert(t.reviews).on_conflict_do_nothing(), rows)

    @uncancellable
    async def put_up_unheld_manifests(self) -> int:
        """Manifests that nothing holds and that await no review get one; returns how many.

        There are none unless something went wrong: this is the backstop.
        """
        held, review = t.repository_manifests.c, t.reviews.c
        query = sa.select(held.repository_id, held.digest, held.stored_at).where(
            ~is_held(held.repository_id, held.digest),
            ~sa.exists().where(
                review.kind == "manifest",
                review.repository_id == held.repository_id,
                review.digest == held.digest,
            ),
        )
        rows = [
            {"kind": "manifest", "repository_id": row[0], "digest": row[1], "since": row[2], "due_at": row[2]}
            for row in await self.database.all(query)
        ]
        if rows:
            async with self.database.write() as connection:
                await connection.execute(insert(t.reviews).on_conflict_do_nothing(), rows)
        return len(rows)

    @uncancellable
    async def drop_unknown_repositories(self) -> int:
        """Repositories without a tag, a manifest or a right go; returns how many."""
        row = t.repositories.c.id
        async with self.database.write() as connection:
            return (await connection.execute(sa.delete(t.repositories).where(row.not_in(KNOWN)))).rowcount

    # --- manifests, and where a blob may be had from ---------------------------------------

    async def manifests_after(self, digest: str, limit: int) -> list[tuple[str, bytes]]:
        """The next manifests in the order of their digests: digest and payload."""
        row = t.manifests.c
        query = sa.select(row.digest, row.payload).where(row.digest > digest)
        return [
            (item[0], item[1]) for item in await self.database.all(query.order_by(row.digest).limit(limit))
        ]

    @uncancellable
    async def drop_manifest(self, digest: str) -> None:
        """A manifest that is not what its name says: it is fetched again when it is asked for."""
        async with self.database.write() as connection:
            await delete_manifest(connection, digest)

    async def find_sources(self, digest: Digest, limit: int = 5) -> list[Repository]:
        """Repositories that have a right to the blob, whose upstreams can therefore be asked for it."""
        repository, refs = t.repositories.c, t.manifest_references.c
        held, rights = t.repository_manifests.c, t.repository_blobs.c
        ids = sa.union(
            sa.select(held.repository_id)
            .join(t.manifest_references, refs.manifest == held.digest)
            .where(refs.digest == str(digest), refs.fetchable),
            sa.select(rights.repository_id).where(rights.digest == str(digest)),
        )
        query = sa.select(repository.upstream, repository.name).where(repository.id.in_(ids)).limit(limit)
        return [Repository(row[0], row[1]) for row in await self.database.all(query)]

    # --- chores ----------------------------------------------------------------------------

    async def find_chore(self, name: str) -> Chore:
        """When it was done last."""
        row = t.chores.c
        query = sa.select(row.started_at, row.ended_at, row.cursor).where(row.name == name)
        found = await self.database.first(query)
        return Chore() if found is None else Chore(*found)

    @uncancellable
    async def save_chore(self, name: str, chore: Chore) -> None:
        values = {"started_at": chore.started_at, "ended_at": chore.ended_at, "cursor": chore.cursor}
        async with self.database.write() as connection:
            new = insert(t.chores).values(name=name, **values)
            await connection.execute(new.on_conflict_do_update(["name"], set_=values))
