"""Inventory: pages over all rows, for reconciliation and scrub, and the state of periodic tasks.

Pages are in the order of keys, so that a pass can stop and resume at any row, and rows that are
added or deleted meanwhile do not disturb it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.dialect import insert
from regmirror.metadata.gc_queue import EVERYWHERE, delete_manifest
from regmirror.metadata.reachability import is_blob_referenced, is_manifest_referenced
from regmirror.metadata.totals import NONEMPTY_REPOSITORIES
from regmirror.oci.names import Digest, Repository


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A row of ``blobs``; ``is_referenced`` tells whether a stored manifest references the blob."""

    digest: Digest
    size: int
    stored_at: float
    is_referenced: bool


@dataclass(frozen=True, slots=True)
class MaintenanceRun:
    """The last run of a periodic task, in wall-clock seconds; 0 if there was none.

    ``cursor`` is the key at which an interrupted run resumes, and empty after a complete run.
    """

    started_at: float = 0.0
    ended_at: float = 0.0
    cursor: str = ""


class Inventory:
    """Pages of rows, and corrections of rows; ``now`` is the wall clock."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now

    async def blobs_after(self, digest: str, limit: int) -> list[BlobRow]:
        """Return the next blobs in the order of their digests."""
        row = t.blobs.c
        query = sa.select(row.digest, row.size, row.stored_at, is_blob_referenced(row.digest))
        rows = await self.database.all(query.where(row.digest > digest).order_by(row.digest).limit(limit))
        return [BlobRow(Digest(item[0]), item[1], item[2], bool(item[3])) for item in rows]

    async def find_stored(self, digests: Collection[Digest]) -> set[str]:
        """Return those of ``digests`` that have a row."""
        query = sa.select(t.blobs.c.digest).where(t.blobs.c.digest.in_([*map(str, digests)]))
        return {row[0] for row in await self.database.all(query)}

    @uncancellable
    async def insert_blobs(self, found: Iterable[tuple[Digest, int, float]]) -> None:
        """Add rows for files that have none, and enqueue them: digest, size, time of storing."""
        blobs = [
            {"digest": str(digest), "size": size, "stored_at": at, "pulled_at": at}
            for digest, size, at in found
        ]
        if blobs:
            async with self.database.write_exclusive() as connection:
                await connection.execute(insert(t.blobs).on_conflict_do_nothing(), blobs)
        await self.enqueue([(Digest(str(row["digest"])), float(str(row["stored_at"]))) for row in blobs])

    @uncancellable
    async def delete_blobs(self, digests: Collection[Digest]) -> None:
        """Delete the rows of blobs whose files do not exist."""
        async with self.database.write_exclusive() as connection:
            await connection.execute(sa.delete(t.blobs).where(t.blobs.c.digest.in_([*map(str, digests)])))

    @uncancellable
    async def enqueue(self, blobs: Collection[tuple[Digest, float]]) -> None:
        """Add unreferenced blobs to the GC queue, each due at its time; existing entries stay."""
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
            async with self.database.write_exclusive() as connection:
                await connection.execute(insert(t.gc_queue).on_conflict_do_nothing(), rows)

    @uncancellable
    async def enqueue_unreferenced_manifests(self) -> int:
        """Add unreferenced manifests that are not queued to the GC queue; return their number.

        The transaction that removes a reference enqueues its target, so that there are none unless
        that has failed.
        """
        entries, queued = t.repository_manifests.c, t.gc_queue.c
        query = sa.select(entries.repository_id, entries.digest, entries.stored_at).where(
            ~is_manifest_referenced(entries.repository_id, entries.digest),
            ~sa.exists().where(
                queued.kind == "manifest",
                queued.repository_id == entries.repository_id,
                queued.digest == entries.digest,
            ),
        )
        rows = [
            {"kind": "manifest", "repository_id": row[0], "digest": row[1], "since": row[2], "due_at": row[2]}
            for row in await self.database.all(query)
        ]
        if rows:
            async with self.database.write_exclusive() as connection:
                await connection.execute(insert(t.gc_queue).on_conflict_do_nothing(), rows)
        return len(rows)

    @uncancellable
    async def delete_empty_repositories(self) -> int:
        """Delete repositories without a tag, a manifest or a link; return their number."""
        row = t.repositories.c.id
        async with self.database.write_exclusive() as connection:
            return (
                await connection.execute(sa.delete(t.repositories).where(row.not_in(NONEMPTY_REPOSITORIES)))
            ).rowcount

    # --- manifests, and sources of blobs ---------------------------------------------------

    async def manifests_after(self, digest: str, limit: int) -> list[tuple[str, bytes]]:
        """Return digest and payload of the next manifests in the order of their digests."""
        row = t.manifests.c
        query = sa.select(row.digest, row.payload).where(row.digest > digest)
        return [
            (item[0], item[1]) for item in await self.database.all(query.order_by(row.digest).limit(limit))
        ]

    @uncancellable
    async def delete_manifest(self, digest: str) -> None:
        """Delete a manifest that does not match its digest; the next request fetches it again."""
        async with self.database.write_exclusive() as connection:
            await delete_manifest(connection, digest)

    async def find_sources(self, digest: Digest, limit: int = 5) -> list[Repository]:
        """Return up to ``limit`` repositories that reference the blob or are linked to it.

        Their upstreams may have it.
        """
        repository, refs = t.repositories.c, t.manifest_references.c
        entries, links = t.repository_manifests.c, t.repository_blobs.c
        ids = sa.union(
            sa.select(entries.repository_id)
            .join(t.manifest_references, refs.manifest == entries.digest)
            .where(refs.digest == str(digest), refs.fetchable),
            sa.select(links.repository_id).where(links.digest == str(digest)),
        )
        query = sa.select(repository.upstream, repository.name).where(repository.id.in_(ids)).limit(limit)
        return [Repository(row[0], row[1]) for row in await self.database.all(query)]

    # --- periodic tasks --------------------------------------------------------------------

    async def get_run(self, name: str) -> MaintenanceRun:
        """Return the last run of the task ``name``."""
        row = t.maintenance_runs.c
        query = sa.select(row.started_at, row.ended_at, row.cursor).where(row.name == name)
        found = await self.database.first(query)
        return MaintenanceRun() if found is None else MaintenanceRun(*found)

    @uncancellable
    async def save_run(self, name: str, run: MaintenanceRun) -> None:
        """Record the last run of the task ``name``."""
        values = {"started_at": run.started_at, "ended_at": run.ended_at, "cursor": run.cursor}
        async with self.database.write_exclusive() as connection:
            new = insert(t.maintenance_runs).values(name=name, **values)
            await connection.execute(new.on_conflict_do_update(["name"], set_=values))
