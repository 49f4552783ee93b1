"""Metadata store: the queries and transactions of pulls, one for each method.

A transaction that removes a reference adds the content to the GC queue; ``gc.py`` processes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.dialect import insert, values_of
from regmirror.metadata.gc_queue import EVERYWHERE, delete_manifest, enqueue
from regmirror.metadata.list_queries import (
    CatalogPage,
    read_catalog,
    read_first_row,
    read_referrers,
    read_tags,
)
from regmirror.metadata.records import TagRecord
from regmirror.metadata.repositories import find_repository_id, get_repository_id, is_repository
from regmirror.metadata.sqlite import SqliteFile, reclaim_space
from regmirror.metadata.totals import BLOB_BYTES, CONTENT_TOTALS, MANIFEST_BYTES, TOTALS, Totals
from regmirror.oci.manifests import MANIFEST_MAX, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

#: A larger manifest is served and not stored. Clients reject more than about 4.4 MB, and an image has
#: at most some hundred layers; the rows of its references take many times its own size.
STORED_MANIFEST_MAX: Final = 4_500_000
STORED_REFERENCES_MAX: Final = 10_000


def is_storable(manifest: Manifest, references: Sized) -> bool:
    """Whether the manifest is small enough to store, with ``references`` as its descriptors."""
    return manifest.size <= STORED_MANIFEST_MAX and len(references) <= STORED_REFERENCES_MAX


class MetadataStore:
    """Rows of the database at ``path``, which ``upgrade`` has migrated; ``now`` is the wall clock.

    Errors are SQLAlchemy's.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self.database = Database(SqliteFile(path).open_engines)
        self._now = now

    async def close(self) -> None:
        """Wait for running queries, and close every connection."""
        await self.database.close()

    async def reclaim_space(self) -> None:
        """Return the space of deleted rows to the file system. Errors are ignored."""
        await asyncio.to_thread(reclaim_space, self.path)

    async def ping(self) -> None:
        """Raise sqlalchemy's DatabaseError if the database cannot be read."""
        await self.database.first(sa.select(t.repositories.c.id).limit(1))

    # --- queries -------------------------------------------------------------------------

    async def find_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return the tag as its upstream last reported it."""
        query = (
            sa.select(
                *(t.tags.c[name] for name in ("digest", "media_type", "size", "checked_at", "previous"))
            )
            .join(t.repositories)
            .where(is_repository(repository), t.tags.c.name == str(tag))
        )
        row = await self.database.first(query)
        if row is None:
            return None
        previous = None if row[4] is None else Digest(row[4])
        return TagRecord(Digest(row[0]), row[1], row[2], row[3], previous)

    async def find_manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return the manifest that the repository's upstream sent; its digest is not verified."""
        entries = t.repository_manifests
        media_type = sa.func.coalesce(entries.c.media_type, t.manifests.c.media_type)
        query = (
            sa.select(media_type, t.manifests.c.payload)
            .select_from(entries.join(t.manifests).join(t.repositories))
            .where(is_repository(repository), entries.c.digest == str(digest), entries.c.is_verified)
        )
        row = await self.database.first(query)
        return None if row is None else Manifest(digest, row[0], row[1])

    async def is_linked(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository's upstream has sent the blob or proven that it has it."""
        links = t.repository_blobs
        query = sa.select(links.c.digest).join(t.repositories)
        return (
            await self.database.first(query.where(is_repository(repository), links.c.digest == str(digest)))
            is not None
        )

    async def find_links(self, repository: Repository, digests: Collection[Digest]) -> set[str]:
        """Return those of ``digests`` that are linked to the repository."""
        links = t.repository_blobs
        is_named = links.c.digest.in_(values_of(map(str, digests)))
        query = sa.select(links.c.digest).join(t.repositories).where(is_named)
        return {row[0] for row in await self.database.all(query.where(is_repository(repository)))}

    async def find_size(self, digest: Digest) -> int | None:
        """Return the size of a stored blob, from its file and not from a descriptor."""
        row = await self.database.first(sa.select(t.blobs.c.size).where(t.blobs.c.digest == str(digest)))
        return None if row is None else int(row[0])

    async def list_tags(
        self, repository: Repository, *, last: str | None = None, limit: int | None = None
    ) -> list[str]:
        """Return the stored tags in order: at most ``limit`` after ``last``. Raises ListsBusy."""
        mine = is_repository(repository)
        return await self.database.read_list(lambda link: read_tags(link, mine, last or "", limit))

    async def list_catalog(self, page: CatalogPage) -> list[str]:
        """Return one page of names of repositories that have a manifest or a tag. Raises ListsBusy."""
        return await self.database.read_list(lambda link: read_catalog(link, page))

    async def list_repositories(self) -> list[Repository]:
        """Return every repository that has a manifest or a tag, in order."""
        ids = sa.union(sa.select(t.repository_manifests.c.repository_id), sa.select(t.tags.c.repository_id))
        query = (
            sa.select(t.repositories.c.upstream, t.repositories.c.name)
            .where(t.repositories.c.id.in_(ids))
            .order_by(t.repositories.c.upstream, t.repositories.c.name)
        )
        return [Repository(row[0], row[1]) for row in await self.database.all(query)]

    async def list_repositories_with(self, digest: Digest) -> list[Repository]:
        """Return every repository that has this manifest."""
        entries = t.repository_manifests
        query = sa.select(t.repositories.c.upstream, t.repositories.c.name).join(entries)
        return [
            Repository(*row) for row in await self.database.all(query.where(entries.c.digest == str(digest)))
        ]

    async def list_referrers(
        self, repository: Repository, digest: Digest, limit: int = MANIFEST_MAX
    ) -> list[Manifest]:
        """Return the repository's manifests whose ``subject`` is ``digest``, in the order of their
        digests, up to ``limit`` bytes together. Raises ListsBusy.
        """
        mine = is_repository(repository)
        return await self.database.read_list(lambda link: read_referrers(link, mine, digest, limit))

    async def totals(self) -> Totals:
        """Return counts and bytes of everything stored. Raises ListsBusy."""
        return Totals.read(await self.database.read_list(lambda link: read_first_row(link, TOTALS)))

    async def content_totals(self) -> Totals:
        """Return the totals of blobs and manifests, which no query has to count; the others are 0."""
        blobs, size, manifests, manifest_bytes = await self.database.first(CONTENT_TOTALS) or (0, 0, 0, 0)
        return Totals(blobs or 0, size or 0, manifests or 0, 0, 0, manifest_bytes or 0)

    async def stored_bytes(self) -> int:
        """Return the bytes that count against ``storage.max_size``: blobs, manifests, reference rows."""
        row = await self.database.first(sa.select(BLOB_BYTES + MANIFEST_BYTES))
        return int(row[0] or 0) if row else 0

    # --- transactions --------------------------------------------------------------------

    @uncancellable
    async def save_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        references: Iterable[Descriptor],
        tag: Tag | None = None,
    ) -> None:
        """Store a manifest that the repository's upstream sent; with ``tag``, the tag names it.

        The manifest must be ``is_storable``.
        """
        now, digest = self._now(), str(manifest.digest)
        async with self.database.write_shared() as connection:
            mine = await get_repository_id(connection, repository)
            await connection.execute(
                insert(t.manifests)
                .values(
                    digest=digest,
                    media_type=manifest.media_type,
                    payload=manifest.payload,
                    stored_at=now,
                )
                .on_conflict_do_nothing()
            )
            rows = [
                {
                    "manifest": digest,
                    "position": position,
                    "digest": str(item.digest),
                    "role": item.role,
                    "size": item.size,
                    "fetchable": item.fetchable,
                }
                for position, item in enumerate(references)
            ]
            if rows:
                await connection.execute(insert(t.manifest_references).on_conflict_do_nothing(), rows)
            await _add_manifest(connection, mine, manifest, now)
            await _clear_previous(connection, mine, digest, now)
            if tag is not None:
                record = TagRecord(manifest.digest, manifest.media_type, manifest.size, now)
                await _replace_tag(connection, mine, tag, record)

    @uncancellable
    async def delete_manifest(self, digest: Digest) -> None:
        """Delete a corrupt manifest from every repository, so that it is fetched again."""
        async with self.database.write_shared() as connection:
            await delete_manifest(connection, str(digest))

    @uncancellable
    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> TagRecord:
        """Store the tag as its upstream reports it, whether or not its manifest is stored.

        Returns the stored record: until the new manifest is stored, ``previous`` is the earlier one.
        """
        async with self.database.write_shared() as connection:
            mine = await get_repository_id(connection, repository)
            return await _replace_tag(connection, mine, tag, record)

    @uncancellable
    async def delete_tag(self, repository: Repository, tag: Tag) -> None:
        """Delete a tag that the upstream no longer has; nothing if it is not stored."""
        async with self.database.write_shared() as connection:
            mine = await find_repository_id(connection, repository)
            if mine is None:  # clients may request any name: no row is created for it
                return
            gone = await connection.execute(
                sa.delete(t.tags)
                .where(t.tags.c.repository_id == mine, t.tags.c.name == str(tag))
                .returning(t.tags.c.digest, t.tags.c.previous)
            )
            for row in gone.all():
                await enqueue(connection, "manifest", mine, row, self._now())

    @uncancellable
    async def link(self, repository: Repository, digest: Digest) -> None:
        """The repository's upstream has sent this blob, or proven that it has it."""
        async with self.database.write_shared() as connection:
            await _link(connection, repository, digest, self._now())

    @uncancellable
    async def save_blob(self, digest: Digest, size: int, linked_to: Iterable[Repository] = ()) -> None:
        """Record a blob whose file is stored, and link it to these repositories."""
        now = self._now()
        async with self.database.write_shared() as connection:
            await connection.execute(
                insert(t.blobs)
                .values(digest=str(digest), size=size, stored_at=now, pulled_at=now)
                .on_conflict_do_update(["digest"], set_={"size": size, "stored_at": now})
            )
            await enqueue(connection, "blob", EVERYWHERE, [str(digest)], now)
            for repository in linked_to:
                await _link(connection, repository, digest, now)

    @uncancellable
    async def delete_blob(self, digest: Digest) -> None:
        """Delete the row of a blob whose file does not exist."""
        async with self.database.write_shared() as connection:
            await connection.execute(sa.delete(t.blobs).where(t.blobs.c.digest == str(digest)))

    @uncancellable
    async def save_pulls(
        self,
        tags: Mapping[tuple[Repository, Tag], float],
        manifests: Mapping[tuple[Repository, Digest], float],
        blobs: Mapping[Digest, float],
    ) -> None:
        """Record times of last pulls (wall-clock seconds); content that is not stored is skipped."""
        mine = sa.select(t.repositories.c.id).where(
            t.repositories.c.upstream == sa.bindparam("of_upstream"),
            t.repositories.c.name == sa.bindparam("of_name"),
        )
        async with self.database.write_shared() as connection:
            for table, column, pulls in (
                (t.tags, t.tags.c.name, tags),
                (t.repository_manifests, t.repository_manifests.c.digest, manifests),
            ):
                rows = [
                    {"of_upstream": r.upstream, "of_name": r.name, "what": str(what), "at": at}
                    for (r, what), at in pulls.items()
                ]
                update = (
                    sa.update(table)
                    .where(table.c.repository_id == mine.scalar_subquery(), column == sa.bindparam("what"))
                    .values(pulled_at=sa.bindparam("at"))
                )
                if rows:
                    await connection.execute(update, rows)
            if blobs:
                await connection.execute(
                    sa.update(t.blobs)
                    .where(t.blobs.c.digest == sa.bindparam("what"))
                    .values(pulled_at=sa.bindparam("at")),
                    [{"what": str(digest), "at": at} for digest, at in blobs.items()],
                )


async def _link(connection: AsyncConnection, repository: Repository, digest: Digest, now: float) -> None:
    right = {"repository_id": await get_repository_id(connection, repository), "digest": str(digest)}
    new = insert(t.repository_blobs).values(**right, confirmed_at=now).on_conflict_do_nothing()
    if (await connection.execute(new)).rowcount:
        await enqueue(connection, "blob", EVERYWHERE, [str(digest)], now)


async def _add_manifest(
    connection: AsyncConnection, repository_id: int, manifest: Manifest, now: float
) -> None:
    """Add the manifest to the repository, or update it.

    The media type belongs to the repository: two may serve the same bytes with different ones.
    """
    digest, entries = str(manifest.digest), t.repository_manifests.c
    key = (entries.repository_id == repository_id, entries.digest == digest)
    known = {"media_type": manifest.media_type, "is_verified": True}
    renewed = await connection.execute(sa.update(t.repository_manifests).where(*key).values(known))
    if not renewed.rowcount:
        new = {"repository_id": repository_id, "digest": digest, "stored_at": now, "pulled_at": now, **known}
        await connection.execute(insert(t.repository_manifests).values(new))
        await enqueue(connection, "manifest", repository_id, [digest], now)


async def _replace_tag(
    connection: AsyncConnection, repository_id: int, tag: Tag, record: TagRecord
) -> TagRecord:
    """Write the tag's new record, and enqueue the manifests that it no longer names."""
    row = t.tags.c
    query = sa.select(row.digest, row.previous)
    old = (
        await connection.execute(query.where(row.repository_id == repository_id, row.name == str(tag)))
    ).first()
    before = [] if old is None else [item for item in old if item not in (None, str(record.digest))]
    previous = None
    if before and not await _find_first_stored(connection, repository_id, [str(record.digest)]):
        previous = await _find_first_stored(connection, repository_id, before)
    await enqueue(connection, "manifest", repository_id, {*before} - {previous}, record.checked_at)
    record = replace(record, previous=None if previous is None else Digest(previous))
    await connection.execute(_upsert_tag(repository_id, tag, record))
    return record


async def _find_first_stored(
    connection: AsyncConnection, repository_id: int, digests: list[str]
) -> str | None:
    """Return the first of ``digests`` whose manifest the repository has."""
    entries = t.repository_manifests.c
    query = sa.select(entries.digest).where(
        entries.repository_id == repository_id, entries.digest.in_(digests), entries.is_verified
    )
    found = {row[0] for row in await connection.execute(query)}
    return next((digest for digest in digests if digest in found), None)


async def _clear_previous(connection: AsyncConnection, repository_id: int, digest: str, now: float) -> None:
    """Clear ``previous`` of tags whose present manifest is stored now, and enqueue the earlier ones."""
    row = t.tags.c
    moved = (row.repository_id == repository_id, row.digest == digest, row.previous.is_not(None))
    dropped = [old[0] for old in await connection.execute(sa.select(row.previous).where(*moved))]
    if dropped:
        await connection.execute(sa.update(t.tags).where(*moved).values(previous=None))
        await enqueue(connection, "manifest", repository_id, dropped, now)


def _upsert_tag(repository_id: int, tag: Tag, record: TagRecord) -> Any:
    known = {
        "digest": str(record.digest),
        "media_type": record.media_type,
        "size": record.size,
        "checked_at": record.checked_at,
        "previous": None if record.previous is None else str(record.previous),
    }
    new = insert(t.tags).values(
        repository_id=repository_id,
        name=str(tag),
        changed_at=record.checked_at,
        pulled_at=record.checked_at,
        **known,
    )
    moved = t.tags.c.digest != str(record.digest)
    changed_at = sa.case((moved, record.checked_at), else_=t.tags.c.changed_at)
    return new.on_conflict_do_update(["repository_id", "name"], set_={**known, "changed_at": changed_at})
