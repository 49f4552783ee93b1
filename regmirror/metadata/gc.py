"""Transactions of garbage collection, eviction and purge.

Every transaction checks its conditions again before it deletes a row, so that it is safe beside
pulls and other processes. A blob loses its row first and its file afterwards. In between it stands
in ``pending_removals``, so that a later run removes the file if this process is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.dialect import insert
from regmirror.metadata.gc_queue import (
    AT_ONCE,
    EVERYWHERE,
    dequeue,
    enqueue,
    enqueue_blobs,
    enqueue_children,
    postpone,
)
from regmirror.metadata.reachability import (
    is_blob_referenced,
    select_due_blobs,
    select_due_manifests,
    select_eviction_candidates,
    select_manifests,
)
from regmirror.metadata.records import Candidate
from regmirror.metadata.repositories import find_repository_id
from regmirror.oci.names import Digest, Repository, Tag

Reason = Literal["unreferenced", "evicted", "purged", "corrupt"]
Key = tuple[int, str]  # a repository's id and a digest
T = TypeVar("T")
CHUNK: Final = 500  # values in one statement


@dataclass(frozen=True, slots=True)
class Removal:
    """Removed content, or content that a dry run would remove.

    A manifest of ``repository``, or a blob if that is None. ``why`` is the reason as reported.
    """

    digest: Digest
    size: int
    why: str
    repository: Repository | None = None


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """Times that decide what a collection removes, in wall-clock seconds.

    Entries of the GC queue are due at ``due``. Blobs stored or pulled after ``recent`` stay, and so do
    manifests without a tag that were pulled by digest after ``pulled``.
    """

    due: float
    recent: float
    pulled: float


PURGE: Final = Cutoffs(AT_ONCE, float("inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class ProcessedManifests:
    """How many entries of the GC queue were processed, and which manifests were removed."""

    count: int
    removed: tuple[Removal, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessedBlobs:
    """Of ``count`` due blobs, the unreferenced ones; the entries of the others were processed."""

    count: int
    unreferenced: tuple[Digest, ...]


class GcQueries:
    """Deletion of rows that are no longer needed; ``now`` is the wall clock."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now

    # --- manifests -----------------------------------------------------------------------

    @uncancellable
    async def process_manifest_queue(
        self, cutoffs: Cutoffs, pinned: Collection[Key], limit: int
    ) -> ProcessedManifests:
        """Process up to ``limit`` due manifests of the GC queue, and remove the unreferenced ones.

        Pinned ones and those recently pulled by digest are postponed.
        """
        async with self.database.write_exclusive() as connection:
            due = (await connection.execute(select_due_manifests(cutoffs.due, limit))).all()
            await dequeue(connection, "manifest", [(row.repository_id, row.digest) for row in due])
            unreferenced = [row for row in due if row.size is not None and not row.is_referenced]
            kept = [row for row in unreferenced if (row.repository_id, row.digest) in pinned]
            later = [row for row in unreferenced if row.pulled_at > max(row.since, cutoffs.pulled)]
            await postpone(connection, "manifest", [(row, _keep_until(row, cutoffs)) for row in later])
            await postpone(connection, "manifest", [(row, self._now() + 1.0) for row in kept])
            removed = [row for row in unreferenced if row not in later and row not in kept]
            await _remove_manifests(connection, [_as_parameters(row) for row in removed])
        return ProcessedManifests(len(due), tuple(_removal(row) for row in removed))

    @uncancellable
    async def purge_manifests(
        self, repository: Repository, digests: Collection[Digest] | None
    ) -> list[Removal]:
        """Remove these manifests (None: all) from the repository, even if they are referenced."""
        entries = t.repository_manifests.c
        async with self.database.write_exclusive() as connection:
            mine = await find_repository_id(connection, repository)
            wanted = [] if digests is None else [entries.digest.in_([*map(str, digests)])]
            rows = (await connection.execute(select_manifests(entries.repository_id == mine, *wanted))).all()
            found = [Removal(Digest(row.digest), row.size, "purged", repository) for row in rows]
            due = {"since": AT_ONCE, "due_at": AT_ONCE, "of_repository": mine}
            await _remove_manifests(connection, [{"of_digest": row.digest, **due} for row in rows])
        return found

    @uncancellable
    async def purge_tags(self, repository: Repository, tags: Collection[Tag] | None) -> None:
        """Delete these tags (None: all) of the repository, and enqueue their manifests as due."""
        row = t.tags.c
        async with self.database.write_exclusive() as connection:
            mine = await find_repository_id(connection, repository)
            wanted = [] if tags is None else [row.name.in_([*map(str, tags)])]
            gone = await connection.execute(
                sa.delete(t.tags)
                .where(row.repository_id == mine, *wanted)
                .returning(row.digest, row.previous)
            )
            for digests in gone.all():
                await enqueue(connection, "manifest", mine or 0, digests, AT_ONCE)

    @uncancellable
    async def purge_links(self, repository: Repository) -> None:
        """Delete every link of the repository, and enqueue the blobs as due."""
        links = t.repository_blobs
        async with self.database.write_exclusive() as connection:
            mine = await find_repository_id(connection, repository)
            gone = await connection.execute(
                sa.delete(links).where(links.c.repository_id == mine).returning(links.c.digest)
            )
            await enqueue(connection, "blob", EVERYWHERE, [row.digest for row in gone.all()], AT_ONCE)

    @uncancellable
    async def delete_old_tags(self, before: float, kept: Collection[tuple[int, str]], limit: int) -> int:
        """Delete up to ``limit`` tags last pulled before ``before``, except ``kept``; return their number.

        Content that they alone reference was pulled no later, and has been evicted already.
        """
        now, row = self._now(), t.tags.c
        query = sa.select(row.repository_id, row.name, row.digest, row.previous)
        async with self.database.write_exclusive() as connection:
            old = await connection.execute(query.where(row.pulled_at < before).limit(limit + len(kept)))
            gone = [tag for tag in old.all() if (tag.repository_id, tag.name) not in kept][:limit]
            for tag in gone:
                await connection.execute(
                    sa.delete(t.tags).where(row.repository_id == tag.repository_id, row.name == tag.name)
                )
                digests = (tag.digest, tag.previous)
                await enqueue(connection, "manifest", tag.repository_id, digests, now)
        return len(gone)

    async def evict_manifests(self, candidates: Iterable[Candidate], pulled_until: float) -> list[Removal]:
        """Remove manifests from their repositories, except those pulled after ``pulled_until``.

        The content that they reference is enqueued. One transaction for each chunk, so that other
        writers do not wait for all of them.
        """
        removed: list[Removal] = []
        for chunk in _chunks([*candidates]):
            removed += await self._evict_manifests(chunk, pulled_until)
        return removed

    @uncancellable
    async def _evict_manifests(self, chunk: list[Candidate], pulled_until: float) -> list[Removal]:
        sizes = {(item.repository_id, str(item.digest)): item.size for item in chunk}
        now, entries, of = self._now(), t.repository_manifests.c, t.repositories.c
        query = (
            sa.select(entries.repository_id, entries.digest, of.upstream, of.name)
            .join(t.repositories, of.id == entries.repository_id)
            .where(
                sa.tuple_(entries.repository_id, entries.digest).in_([*sizes]),
                entries.pulled_at <= pulled_until,
            )
        )
        async with self.database.write_exclusive() as connection:
            found = (await connection.execute(query)).all()
            times = {"since": now, "due_at": now}
            keys = [
                {"of_repository": item.repository_id, "of_digest": item.digest, **times} for item in found
            ]
            await _remove_manifests(connection, keys)
        return [
            Removal(
                Digest(item.digest),
                sizes[item.repository_id, item.digest],
                "least recently pulled",
                Repository(item.upstream, item.name),
            )
            for item in found
        ]

    # --- blobs ---------------------------------------------------------------------------

    @uncancellable
    async def process_blob_queue(self, cutoffs: Cutoffs, limit: int) -> ProcessedBlobs:
        """Process up to ``limit`` due blobs of the GC queue, except the unreferenced ones.

        Recent blobs are postponed. Entries of unreferenced blobs stay until ``remove_blobs``.
        """
        async with self.database.write_exclusive() as connection:
            due = (await connection.execute(select_due_blobs(cutoffs.due, limit))).all()
            absent = [row.digest for row in due if row.size is None and not row.is_referenced]
            await _delete_links(connection, absent)
            recent = [row for row in due if _is_recent(row, cutoffs)]
            unreferenced = [
                row for row in due if row.size is not None and not row.is_referenced and row not in recent
            ]
            processed = [(EVERYWHERE, row.digest) for row in due if row not in unreferenced]
            await dequeue(connection, "blob", processed)
            await postpone(connection, "blob", [(row, row.last_seen) for row in recent])
        return ProcessedBlobs(len(due), tuple(Digest(row.digest) for row in unreferenced))

    @uncancellable
    async def postpone_blobs(self, digests: Collection[Digest]) -> None:
        """Postpone blobs that are being read by one grace time."""
        async with self.database.write_exclusive() as connection:
            later = self._now() + 1.0  # past the end of this collection, even without a grace time
            await enqueue(connection, "blob", EVERYWHERE, map(str, digests), later)

    @uncancellable
    async def remove_blobs(
        self,
        digests: Collection[Digest],
        reason: Reason,
        *,
        unless_referenced: bool = False,
        pulled_until: float | None = None,
    ) -> list[tuple[Digest, int]]:
        """Delete rows of blobs, and return digest and size of those whose files are to be removed.

        Call ``complete_removals`` when the files are gone. With ``unless_referenced``, blobs that a
        manifest references stay; with ``pulled_until``, blobs pulled after that time.
        """
        gone: list[tuple[Digest, int]] = []
        async with self.database.write_exclusive() as connection:
            for chunk in _chunks([str(digest) for digest in digests]):
                statement = sa.delete(t.blobs).where(t.blobs.c.digest.in_(chunk))
                if unless_referenced:
                    statement = statement.where(~is_blob_referenced(t.blobs.c.digest))
                if pulled_until is not None:
                    statement = statement.where(t.blobs.c.pulled_at <= pulled_until)
                returning = statement.returning(t.blobs.c.digest, t.blobs.c.size)
                rows = (await connection.execute(returning)).all()
                if rows:
                    new = [{"digest": row.digest, "size": row.size, "reason": reason} for row in rows]
                    await connection.execute(insert(t.pending_removals).on_conflict_do_nothing(), new)
                if reason in ("unreferenced", "purged"):
                    await _delete_links(connection, [row.digest for row in rows])
                    await dequeue(connection, "blob", [(EVERYWHERE, digest) for digest in chunk])
                gone += [(Digest(row.digest), row.size) for row in rows]
        return gone

    @uncancellable
    async def list_pending_removals(self) -> list[Digest]:
        """Return blobs whose files may remain after their row was deleted.

        Blobs that were stored again are dropped from the list.
        """
        row = t.pending_removals.c
        is_stored = sa.exists().where(t.blobs.c.digest == row.digest)
        async with self.database.write_exclusive() as connection:
            await connection.execute(sa.delete(t.pending_removals).where(is_stored))
            left = await connection.execute(sa.select(row.digest).limit(10 * CHUNK))
            return [Digest(digest) for (digest,) in left.all()]

    @uncancellable
    async def complete_removals(self, digests: Iterable[Digest]) -> None:
        """Record that the files of these blobs are gone, or that they are stored again."""
        async with self.database.write_exclusive() as connection:
            for chunk in _chunks([str(digest) for digest in digests]):
                await connection.execute(
                    sa.delete(t.pending_removals).where(t.pending_removals.c.digest.in_(chunk))
                )

    async def least_recently_pulled(self, after: Candidate | None, limit: int) -> list[Candidate]:
        """Return the next ``limit`` blobs and manifests in the order of eviction."""
        blobs = await self._old_blobs(after, limit)
        found = merge(blobs, await self._old_manifests(after, limit), key=lambda item: item.place)
        return [*islice(found, limit)]

    async def _old_manifests(self, after: Candidate | None, limit: int) -> list[Candidate]:
        rows = await self.database.all(
            select_eviction_candidates(None if after is None else after.place, limit)
        )
        return [Candidate(Digest(row[0]), row[1], row[2], row[3]) for row in rows]

    async def _old_blobs(self, after: Candidate | None, limit: int) -> list[Candidate]:
        row = t.blobs.c
        query = sa.select(row.digest, row.size, row.pulled_at)
        if after is not None:
            place = sa.tuple_(sa.literal(after.pulled_at), sa.literal(str(after.digest)))
            query = query.where(sa.tuple_(row.pulled_at, row.digest) > place)
        rows = await self.database.all(query.order_by(row.pulled_at, row.digest).limit(limit))
        return [Candidate(Digest(item[0]), item[1], item[2]) for item in rows]


def _is_recent(row: Any, cutoffs: Cutoffs) -> bool:
    return row.size is not None and not row.is_referenced and row.last_seen > cutoffs.recent


def _keep_until(row: Any, cutoffs: Cutoffs) -> float:
    """Return the ``due_at`` at which the last pull by digest is no longer recent."""
    return float(row.pulled_at - cutoffs.pulled + cutoffs.due)


def _removal(row: Any) -> Removal:
    repository = Repository(row.upstream, row.name)
    return Removal(Digest(row.digest), row.size, "no tag, index or subject holds it", repository)


def _as_parameters(row: Any) -> dict[str, Any]:
    return {
        "of_repository": row.repository_id,
        "of_digest": row.digest,
        "since": row.since,
        "due_at": row.due_at,
    }


async def _remove_manifests(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Remove manifests from their repositories, and delete those that no repository has any more."""
    if not rows:
        return
    entries, refs = t.repository_manifests, t.manifest_references
    await connection.execute(
        sa.delete(entries).where(
            entries.c.repository_id == sa.bindparam("of_repository"),
            entries.c.digest == sa.bindparam("of_digest"),
        ),
        rows,
    )
    await enqueue_children(connection, rows)
    for chunk in _chunks(rows):
        digests = [row["of_digest"] for row in chunk]
        is_anywhere = sa.exists().where(entries.c.digest == t.manifests.c.digest)
        query = sa.select(t.manifests.c.digest).where(t.manifests.c.digest.in_(digests), ~is_anywhere)
        orphans = {row[0] for row in await connection.execute(query)}
        if orphans:
            await enqueue_blobs(connection, [row for row in chunk if row["of_digest"] in orphans])
            await connection.execute(sa.delete(refs).where(refs.c.manifest.in_(orphans)))
            await connection.execute(sa.delete(t.manifests).where(t.manifests.c.digest.in_(orphans)))


async def _delete_links(connection: AsyncConnection, digests: list[str]) -> None:
    for chunk in _chunks(digests):
        await connection.execute(sa.delete(t.repository_blobs).where(t.repository_blobs.c.digest.in_(chunk)))


def _chunks(values: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
