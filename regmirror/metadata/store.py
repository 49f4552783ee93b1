"""Reading and writing metadata: one method, one question or one short transaction.

SQLite in WAL mode: readers never wait, writers take turns. Within a process a lock keeps the
writers in line without polling; between processes ``busy_timeout`` does.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from regmirror.freshness import TagRecord
from regmirror.manifests import Descriptor, Manifest
from regmirror.metadata import schema as t
from regmirror.names import Digest, Repository, Tag

_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA busy_timeout=10000",
    "PRAGMA foreign_keys=ON",
)


P = ParamSpec("P")
T = TypeVar("T")


def _whole(
    method: Callable[Concatenate[MetadataStore, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[MetadataStore, P], Coroutine[Any, Any, T]]:
    """Work that goes on when its caller is cancelled: a driver's call that is broken off in the
    middle leaves a connection that nobody closes. ``close`` waits for what is running.
    """

    @functools.wraps(method)
    async def run(self: MetadataStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(method(self, *args, **kwargs))

    return run


@dataclass(frozen=True, slots=True)
class Totals:
    """How much is stored."""

    blobs: int
    blob_bytes: int
    manifests: int
    tags: int
    repositories: int


class MetadataStore:
    """The database at ``path``, already migrated (see ``upgrade``)."""

    def __init__(self, path: Path, now: Any = time.time) -> None:
        url = f"sqlite+aiosqlite:///{path}"
        self._reader = _engine(url, pool_size=4, begin="BEGIN")
        self._writer = _engine(url, pool_size=1, begin="BEGIN IMMEDIATE")
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._now = now

    async def close(self) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._reader.dispose()
        await self._writer.dispose()

    async def ping(self) -> None:
        """Raise sqlalchemy's DatabaseError if the database cannot be read."""
        async with self._reader.connect() as connection:
            await connection.execute(sa.select(sa.func.count()).select_from(t.repositories))

    # --- questions -----------------------------------------------------------------------

    async def find_tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What the tag meant when its upstream was last asked."""
        query = (
            sa.select(t.tags.c.digest, t.tags.c.media_type, t.tags.c.size, t.tags.c.checked_at)
            .join(t.repositories)
            .where(_is(repository), t.tags.c.name == str(tag))
        )
        row = await self._first(query)
        return None if row is None else TagRecord(Digest(row[0]), row[1], row[2], row[3])

    async def find_manifest(self, digest: Digest) -> Manifest | None:
        """The manifest, from whichever repository it came; for the right to it ask has_right."""
        query = sa.select(t.manifests.c.media_type, t.manifests.c.payload)
        row = await self._first(query.where(t.manifests.c.digest == str(digest)))
        return None if row is None else Manifest(digest, row[0], row[1])

    async def holds(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository's upstream has brought or confirmed this manifest there."""
        held = t.repository_manifests
        query = sa.select(held.c.digest).join(t.repositories, t.repositories.c.id == held.c.repository_id)
        return await self._first(query.where(_is(repository), held.c.digest == str(digest))) is not None

    async def has_right(self, repository: Repository, digest: Digest) -> bool:
        """Whether the repository may serve this content: it holds the manifest, one of its
        manifests references it, or its upstream has confirmed it.
        """
        held, refs = t.repository_manifests, t.manifest_references
        mine = sa.select(t.repositories.c.id).where(_is(repository)).scalar_subquery()
        query = sa.select(
            sa.exists().where(held.c.repository_id == mine, held.c.digest == str(digest))
            | sa.exists().where(
                t.repository_blobs.c.repository_id == mine,
                t.repository_blobs.c.digest == str(digest),
            )
            | sa.exists(
                sa.select(refs.c.manifest)
                .join(held, held.c.digest == refs.c.manifest)
                .where(refs.c.digest == str(digest), refs.c.fetchable, held.c.repository_id == mine)
            )
        )
        row = await self._first(query)
        return bool(row and row[0])

    async def find_size(self, digest: Digest) -> int | None:
        """The size of a blob: of the stored one, else what manifests say it has."""
        stored = await self._first(sa.select(t.blobs.c.size).where(t.blobs.c.digest == str(digest)))
        if stored is not None:
            return int(stored[0])
        said = await self._first(
            sa.select(t.manifest_references.c.size).where(
                t.manifest_references.c.digest == str(digest), t.manifest_references.c.size >= 0
            )
        )
        return None if said is None else int(said[0])

    async def list_tags(self, repository: Repository) -> list[str]:
        """The tags that are known here, sorted."""
        query = sa.select(t.tags.c.name).join(t.repositories).where(_is(repository))
        return [row[0] for row in await self._all(query.order_by(t.tags.c.name))]

    async def list_repositories(self) -> list[Repository]:
        """Every repository that holds a manifest or a tag."""
        ids = sa.union(sa.select(t.repository_manifests.c.repository_id), sa.select(t.tags.c.repository_id))
        query = (
            sa.select(t.repositories.c.upstream, t.repositories.c.name)
            .where(t.repositories.c.id.in_(ids))
            .order_by(t.repositories.c.upstream, t.repositories.c.name)
        )
        return [Repository(row[0], row[1]) for row in await self._all(query)]

    async def list_referrers(self, repository: Repository, digest: Digest) -> list[Manifest]:
        """The stored manifests of the repository whose ``subject`` is ``digest``."""
        refs, held = t.manifest_references, t.repository_manifests
        query = (
            sa.select(t.manifests.c.digest, t.manifests.c.media_type, t.manifests.c.payload)
            .join(refs, refs.c.manifest == t.manifests.c.digest)
            .join(held, held.c.digest == t.manifests.c.digest)
            .join(t.repositories, t.repositories.c.id == held.c.repository_id)
            .where(_is(repository), refs.c.digest == str(digest), refs.c.role == "subject")
        )
        return [Manifest(Digest(row[0]), row[1], row[2]) for row in await self._all(query)]

    async def totals(self) -> Totals:
        """Counts and bytes of everything stored."""
        count = sa.func.count()
        parts = [
            sa.select(count).select_from(t.blobs).scalar_subquery(),
            sa.select(sa.func.coalesce(sa.func.sum(t.blobs.c.size), 0)).scalar_subquery(),
            *(
                sa.select(count).select_from(table).scalar_subquery()
                for table in (t.manifests, t.tags, t.repositories)
            ),
        ]
        row = await self._first(sa.select(*parts)) or (0,) * len(parts)
        return Totals(*(int(value) for value in row))

    # --- transactions --------------------------------------------------------------------

    @_whole
    async def save_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        references: Iterable[Descriptor],
        tag: Tag | None = None,
    ) -> None:
        """The repository holds this manifest; if ``tag`` is given, it means it as of now."""
        now, digest = self._now(), str(manifest.digest)
        async with self._write() as connection:
            mine = await _repository_id(connection, repository)
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
            held = {"repository_id": mine, "digest": digest, "stored_at": now, "pulled_at": now}
            await connection.execute(insert(t.repository_manifests).values(held).on_conflict_do_nothing())
            if tag is not None:
                record = TagRecord(manifest.digest, manifest.media_type, manifest.size, now)
                await connection.execute(_upsert_tag(mine, tag, record))

    @_whole
    async def save_tag(self, repository: Repository, tag: Tag, record: TagRecord) -> None:
        """The upstream says that the tag means ``record``, whether or not it is stored."""
        async with self._write() as connection:
            mine = await _repository_id(connection, repository)
            await connection.execute(_upsert_tag(mine, tag, record))

    @_whole
    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """The upstream no longer has the tag."""
        async with self._write() as connection:
            mine = await _repository_id(connection, repository)
            await connection.execute(
                sa.delete(t.tags).where(t.tags.c.repository_id == mine, t.tags.c.name == str(tag))
            )

    @_whole
    async def confirm(self, repository: Repository, digest: Digest) -> None:
        """The upstream has this content in this repository."""
        async with self._write() as connection:
            mine = await _repository_id(connection, repository)
            await connection.execute(
                insert(t.repository_blobs)
                .values(repository_id=mine, digest=str(digest), confirmed_at=self._now())
                .on_conflict_do_nothing()
            )

    @_whole
    async def save_blob(self, digest: Digest, size: int) -> None:
        """A blob has been stored as a file."""
        now = self._now()
        async with self._write() as connection:
            await connection.execute(
                insert(t.blobs)
                .values(digest=str(digest), size=size, stored_at=now, pulled_at=now)
                .on_conflict_do_update(["digest"], set_={"size": size, "stored_at": now})
            )

    @_whole
    async def forget_blob(self, digest: Digest) -> None:
        """A blob's file is gone."""
        async with self._write() as connection:
            await connection.execute(sa.delete(t.blobs).where(t.blobs.c.digest == str(digest)))

    @_whole
    async def save_pulls(
        self,
        tags: Mapping[tuple[Repository, Tag], float],
        manifests: Mapping[tuple[Repository, Digest], float],
        blobs: Mapping[Digest, float],
    ) -> None:
        """When tags, manifests and blobs were last pulled: a batch, gathered in memory."""
        mine = sa.select(t.repositories.c.id).where(
            t.repositories.c.upstream == sa.bindparam("of_upstream"),
            t.repositories.c.name == sa.bindparam("of_name"),
        )
        async with self._write() as connection:
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

    # --- plumbing ------------------------------------------------------------------------

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be left to be told

    @_whole
    async def _first(self, query: Any) -> tuple[Any, ...] | None:
        async with self._reader.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else tuple(row)

    @_whole
    async def _all(self, query: Any) -> list[tuple[Any, ...]]:
        async with self._reader.connect() as connection:
            return [tuple(row) for row in await connection.execute(query)]

    @asynccontextmanager
    async def _write(self) -> AsyncIterator[AsyncConnection]:
        async with self._lock, self._writer.begin() as connection:
            yield connection


def _is(repository: Repository) -> sa.ColumnElement[bool]:
    return sa.and_(t.repositories.c.upstream == repository.upstream, t.repositories.c.name == repository.name)


async def _repository_id(connection: AsyncConnection, repository: Repository) -> int:
    query = sa.select(t.repositories.c.id).where(_is(repository))
    found = (await connection.execute(query)).scalar()
    if found is None:
        new = insert(t.repositories).values(upstream=repository.upstream, name=repository.name)
        found = (await connection.execute(new.returning(t.repositories.c.id))).scalar_one()
    return int(found)


def _upsert_tag(repository_id: int, tag: Tag, record: TagRecord) -> Any:
    known = {
        "digest": str(record.digest),
        "media_type": record.media_type,
        "size": record.size,
        "checked_at": record.checked_at,
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


def _engine(url: str, *, pool_size: int, begin: str) -> AsyncEngine:
    """An engine that sets SQLite's pragmas and begins transactions as it is told.

    The driver's own habit of beginning late is switched off (``isolation_level = None``), as
    SQLAlchemy's documentation advises for SQLite.
    """
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
