"""Which rows may go, and taking them away: collection, eviction, purge.

Every transaction here looks again at what it removes, so that it is safe beside pulls, other
processes and other curators. Blobs lose their row first and their file after that; in between
they stand in ``removals``, which a later run finishes should this one be killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.gc_queue import AT_ONCE, EVERYWHERE, enqueue, enqueue_blobs, enqueue_children
from regmirror.metadata.reachability import due_blobs, due_manifests, held_manifests, is_named, old_manifests
from regmirror.metadata.records import Candidate
from regmirror.oci.names import Digest, Repository, Tag

Reason = Literal["unreferenced", "evicted", "purged", "corrupt"]
Key = tuple[int, str]  # a repository's id and a digest
T = TypeVar("T")
CHUNK: Final = 500  # values in one statement


@dataclass(frozen=True, slots=True)
class Removal:
    """What has gone, or would go: a manifest of a repository, or a blob (``repository`` None)."""

    digest: Digest
    size: int
    why: str
    repository: Repository | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is old enough to go, in wall-clock seconds.

    ``due``: reviews of before that are settled. ``young``: blobs stored or pulled after that stay.
    ``pulled``: manifests without a tag that were pulled by their digest after that stay.
    """

    due: float
    young: float
    pulled: float


PURGE: Final = Terms(AT_ONCE, float("inf"), float("inf"))


@dataclass(frozen=True, slots=True)
class Reviewed:
    """How many reviews have been settled, and which manifests went."""

    count: int
    removed: tuple[Removal, ...] = ()


@dataclass(frozen=True, slots=True)
class DueBlobs:
    """Of ``count`` reviews of blobs, those that nothing holds; the others are settled."""

    count: int
    unheld: tuple[Digest, ...]


class GcQueries:
    """The housekeeper's view of the database; ``now`` is the wall clock."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now

    # --- manifests -----------------------------------------------------------------------

    @uncancellable
    async def review_manifests(self, terms: Terms, pinned: Collection[Key], limit: int) -> Reviewed:
        """Settle up to ``limit`` due reviews; manifests that nothing holds go."""
        async with self.database.write() as connection:
            due = (await connection.execute(due_manifests(terms.due, limit))).all()
            await _settle(connection, "manifest", [(row.repository_id, row.digest) for row in due])
            unheld = [row for row in due if row.size is not None and not row.is_held]
            kept = [row for row in unheld if (row.repository_id, row.digest) in pinned]
            later = [row for row in unheld if row.pulled_at > max(row.since, terms.pulled)]
            await _postpone(connection, "manifest", [(row, _keep_until(row, terms)) for row in later])
            await _postpone(connection, "manifest", [(row, self._now() + 1.0) for row in kept])
            removed = [row for row in unheld if row not in later and row not in kept]
            await _remove_manifests(connection, [_as_parameters(row) for row in removed])
        return Reviewed(len(due), tuple(_removal(row) for row in removed))

    @uncancellable
    async def purge_manifests(
        self, repository: Repository, digests: Collection[Digest] | None
    ) -> list[Removal]:
        """The repository no longer holds these (None: any), whatever holds them there."""
        held = t.repository_manifests.c
        async with self.database.write() as connection:
            mine = await _find_repository(connection, repository)
            wanted = [] if digests is None else [held.digest.in_([*map(str, digests)])]
            rows = (await connection.execute(held_manifests(held.repository_id == mine, *wanted))).all()
            found = [Removal(Digest(row.digest), row.size, "purged", repository) for row in rows]
            due = {"since": AT_ONCE, "due_at": AT_ONCE, "of_repository": mine}
            await _remove_manifests(connection, [{"of_digest": row.digest, **due} for row in rows])
        return found

    @uncancellable
    async def purge_tags(self, repository: Repository, tags: Collection[Tag] | None) -> None:
        """Forget the tags (None: any); what they meant is due for review at once."""
        row = t.tags.c
        async with self.database.write() as connection:
            mine = await _find_repository(connection, repository)
            wanted = [] if tags is None else [row.name.in_([*map(str, tags)])]
            gone = await connection.execute(
                sa.delete(t.tags)
                .where(row.repository_id == mine, *wanted)
                .returning(row.digest, row.previous)
            )
            for meant in gone.all():
                await enqueue(connection, "manifest", mine or 0, meant, AT_ONCE)

    @uncancellable
    async def purge_rights(self, repository: Repository) -> None:
        """Forget which blobs the repository's upstream has confirmed."""
        rights = t.repository_blobs
        async with self.database.write() as connection:
            mine = await _find_repository(connection, repository)
            gone = await connection.execute(
                sa.delete(rights).where(rights.c.repository_id == mine).returning(rights.c.digest)
            )
            await enqueue(connection, "blob", EVERYWHERE, [row.digest for row in gone.all()], AT_ONCE)

    @uncancellable
    async def forget_tags(self, before: float, kept: Collection[tuple[int, str]], limit: int) -> int:
        """Forget tags last pulled ``before``, but for those ``kept``; returns how many.

        Whatever was theirs alone has been evicted, having been pulled no later.
        """
        now, row = self._now(), t.tags.c
        query = sa.select(row.repository_id, row.name, row.digest, row.previous)
        async with self.database.write() as connection:
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
        """Take manifests from their repositories, but for what has been pulled after that.

        What they named is enqueued for collection. Other writers take their turns in between.
        """
        removed: list[Removal] = []
        for chunk in _chunks([*candidates]):
            removed += await self._evict_manifests(chunk, pulled_until)
        return removed

    @uncancellable
    async def _evict_manifests(self, chunk: list[Candidate], pulled_until: float) -> list[Removal]:
        sizes = {(item.repository_id, str(item.digest)): item.size for item in chunk}
        now, held, of = self._now(), t.repository_manifests.c, t.repositories.c
        query = (
            sa.select(held.repository_id, held.digest, of.upstream, of.name)
            .join(t.repositories, of.id == held.repository_id)
            .where(sa.tuple_(held.repository_id, held.digest).in_([*sizes]), held.pulled_at <= pulled_until)
        )
        async with self.database.write() as connection:
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
    async def review_blobs(self, terms: Terms, limit: int) -> DueBlobs:
        """Settle up to ``limit`` due reviews of blobs that a manifest names, or that are young.

        The reviews of the others stay until ``remove_blobs``.
        """
        async with self.database.write() as connection:
            due = (await connection.execute(due_blobs(terms.due, limit))).all()
            absent = [row.digest for row in due if row.size is None and not row.is_named]
            await _forget_rights(connection, absent)
            young = [row for row in due if _is_recent(row, terms)]
            unheld = [row for row in due if row.size is not None and not row.is_named and row not in young]
            settled = [(EVERYWHERE, row.digest) for row in due if row not in unheld]
            await _settle(connection, "blob", settled)
            await _postpone(connection, "blob", [(row, row.last_seen) for row in young])
        return DueBlobs(len(due), tuple(Digest(row.digest) for row in unheld))

    @uncancellable
    async def put_off_blobs(self, digests: Collection[Digest]) -> None:
        """These are being read: look again when a grace time has passed."""
        async with self.database.write() as connection:
            later = self._now() + 1.0  # so that no collection meets them again, whatever the grace time
            await enqueue(connection, "blob", EVERYWHERE, map(str, digests), later)

    @uncancellable
    async def remove_blobs(
        self,
        digests: Collection[Digest],
        reason: Reason,
        *,
        unless_named: bool = False,
        pulled_until: float | None = None,
    ) -> list[tuple[Digest, int]]:
        """Take the rows away, with ``unless_named`` only of those that no manifest names by now.

        With ``pulled_until`` what has been pulled after that stays. Returns digest and size of
        those whose files are to be removed now; then call ``finish``.
        """
        gone: list[tuple[Digest, int]] = []
        async with self.database.write() as connection:
            for chunk in _chunks([str(digest) for digest in digests]):
                statement = sa.delete(t.blobs).where(t.blobs.c.digest.in_(chunk))
                if unless_named:
                    statement = statement.where(~is_named(t.blobs.c.digest))
                if pulled_until is not None:
                    statement = statement.where(t.blobs.c.pulled_at <= pulled_until)
                returning = statement.returning(t.blobs.c.digest, t.blobs.c.size)
                rows = (await connection.execute(returning)).all()
                if rows:
                    new = [{"digest": row.digest, "size": row.size, "reason": reason} for row in rows]
                    await connection.execute(insert(t.removals).on_conflict_do_nothing(), new)
                if reason in ("unreferenced", "purged"):
                    await _forget_rights(connection, [row.digest for row in rows])
                    await _settle(connection, "blob", [(EVERYWHERE, digest) for digest in chunk])
                gone += [(Digest(row.digest), row.size) for row in rows]
        return gone

    @uncancellable
    async def unfinished(self) -> list[Digest]:
        """Blobs without a row whose files may still be there; those that have one again stay."""
        row = t.removals.c
        is_stored = sa.exists().where(t.blobs.c.digest == row.digest)
        async with self.database.write() as connection:
            await connection.execute(sa.delete(t.removals).where(is_stored))
            left = await connection.execute(sa.select(row.digest).limit(10 * CHUNK))
            return [Digest(digest) for (digest,) in left.all()]

    @uncancellable
    async def finish(self, digests: Iterable[Digest]) -> None:
        """The files of these are gone, or they are stored again."""
        async with self.database.write() as connection:
            for chunk in _chunks([str(digest) for digest in digests]):
                await connection.execute(sa.delete(t.removals).where(t.removals.c.digest.in_(chunk)))

    async def least_recently_pulled(self, after: Candidate | None, limit: int) -> list[Candidate]:
        """The next ``limit`` blobs and manifests in the order in which they are evicted."""
        blobs = await self._old_blobs(after, limit)
        found = merge(blobs, await self._old_manifests(after, limit), key=lambda item: item.place)
        return [*islice(found, limit)]

    async def _old_manifests(self, after: Candidate | None, limit: int) -> list[Candidate]:
        rows = await self.database.all(old_manifests(None if after is None else after.place, limit))
        return [Candidate(Digest(row[0]), row[1], row[2], row[3]) for row in rows]

    async def _old_blobs(self, after: Candidate | None, limit: int) -> list[Candidate]:
        row = t.blobs.c
        query = sa.select(row.digest, row.size, row.pulled_at)
        if after is not None:
            place = sa.tuple_(sa.literal(after.pulled_at), sa.literal(str(after.digest)))
            query = query.where(sa.tuple_(row.pulled_at, row.digest) > place)
        rows = await self.database.all(query.order_by(row.pulled_at, row.digest).limit(limit))
        return [Candidate(Digest(item[0]), item[1], item[2]) for item in rows]


def _is_recent(row: Any, terms: Terms) -> bool:
    return row.size is not None and not row.is_named and row.last_seen > terms.young


def _keep_until(row: Any, terms: Terms) -> float:
    """When its last pull by digest will be long enough ago, as ``due_at`` counts."""
    return float(row.pulled_at - terms.pulled + terms.due)


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


async def _settle(connection: AsyncConnection, kind: str, keys: Iterable[Key]) -> None:
    row = t.reviews.c
    rows = [{"of_repository": repository_id, "of_digest": digest} for repository_id, digest in keys]
    if rows:
        await connection.execute(
            sa.delete(t.reviews).where(
                row.kind == kind,
                row.repository_id == sa.bindparam("of_repository"),
                row.digest == sa.bindparam("of_digest"),
            ),
            rows,
        )


async def _postpone(connection: AsyncConnection, kind: str, rows: list[tuple[Any, float]]) -> None:
    """Review again at another time; when the last holder went remains what it was."""
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
        await connection.execute(insert(t.reviews).on_conflict_do_nothing(), values)


async def _remove_manifests(connection: AsyncConnection, rows: list[dict[str, Any]]) -> None:
    """Take them from their repositories; a manifest that is in none any more goes altogether."""
    if not rows:
        return
    held, refs = t.repository_manifests, t.manifest_references
    await connection.execute(
        sa.delete(held).where(
            held.c.repository_id == sa.bindparam("of_repository"),
            held.c.digest == sa.bindparam("of_digest"),
        ),
        rows,
    )
    await enqueue_children(connection, rows)
    for chunk in _chunks(rows):
        digests = [row["of_digest"] for row in chunk]
        is_anywhere = sa.exists().where(held.c.digest == t.manifests.c.digest)
        query = sa.select(t.manifests.c.digest).where(t.manifests.c.digest.in_(digests), ~is_anywhere)
        orphans = {row[0] for row in await connection.execute(query)}
        if orphans:
            await enqueue_blobs(connection, [row for row in chunk if row["of_digest"] in orphans])
            await connection.execute(sa.delete(refs).where(refs.c.manifest.in_(orphans)))
            await connection.execute(sa.delete(t.manifests).where(t.manifests.c.digest.in_(orphans)))


async def _forget_rights(connection: AsyncConnection, digests: list[str]) -> None:
    for chunk in _chunks(digests):
        await connection.execute(sa.delete(t.repository_blobs).where(t.repository_blobs.c.digest.in_(chunk)))


async def _find_repository(connection: AsyncConnection, repository: Repository) -> int | None:
    row = t.repositories.c
    query = sa.select(row.id).where(row.upstream == repository.upstream, row.name == repository.name)
    found: int | None = (await connection.execute(query)).scalar()
    return found


def _chunks(values: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
