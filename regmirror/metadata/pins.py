"""Pins: patterns that protect images from eviction, and the content that they protect.

A pattern is matched with ``upstream/name``, ``upstream/name:tag`` and ``upstream/name@digest``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database, uncancellable
from regmirror.metadata.dialect import insert
from regmirror.oci.globs import matches
from regmirror.oci.names import Digest

Key = tuple[int, str]  # a repository's id and a digest, or a tag


@dataclass(frozen=True, slots=True)
class Pin:
    """A pattern, and the time at which it was pinned."""

    """A pattern, and the time at which it was pinned."""

    pattern: str
    pinned_at: float  # wall-clock seconds


@dataclass(frozen=True, slots=True)
class Pinned:
    """The tags, manifests of repositories and blobs that pins protect."""

    tags: frozenset[Key] = frozenset()
    manifests: frozenset[Key] = frozenset()
    blobs: frozenset[Digest] = frozenset()


class Pins:
    """The pins in the database; ``now`` is the wall clock."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self._now = now

    async def list(self) -> list[Pin]:
        """Return every pin, in the order of patterns."""
        query = sa.select(t.pins.c.pattern, t.pins.c.pinned_at).order_by(t.pins.c.pattern)
        return [Pin(*row) for row in await self.database.all(query)]

    @uncancellable
    async def add(self, pattern: str) -> bool:
        """Add a pin; return False if it exists already."""
        async with self.database.write_exclusive() as connection:
            new = insert(t.pins).values(pattern=pattern, pinned_at=self._now())
            return bool((await connection.execute(new.on_conflict_do_nothing())).rowcount)

    @uncancellable
    async def remove(self, pattern: str) -> bool:
        """Remove a pin; return False if there is none."""
        async with self.database.write_exclusive() as connection:
            gone = await connection.execute(sa.delete(t.pins).where(t.pins.c.pattern == pattern))
            return bool(gone.rowcount)

    async def find_pinned(self) -> Pinned:
        """Return the protected content. Reads all tags and manifests, unless there is no pin."""
        patterns = [pin.pattern for pin in await self.list()]
        if not patterns:
            return Pinned()
        repository, tag, entries = t.repositories.c, t.tags.c, t.repository_manifests.c
        tags = await self.database.all(
            sa.select(
                repository.id, repository.upstream, repository.name, tag.name, tag.digest, tag.previous
            ).select_from(t.repositories.join(t.tags))
        )
        named = [row for row in tags if _is_pinned(patterns, row[1], row[2], f":{row[3]}", f"@{row[4]}")]
        manifests = await self.database.all(
            sa.select(repository.id, repository.upstream, repository.name, entries.digest).select_from(
                t.repositories.join(t.repository_manifests)
            )
        )
        roots = {(row[0], row[3]) for row in manifests if _is_pinned(patterns, row[1], row[2], f"@{row[3]}")}
        roots |= {(row[0], digest) for row in named for digest in row[4:6] if digest is not None}
        blobs = await self._below({digest for _, digest in roots})
        return Pinned(frozenset((row[0], row[3]) for row in named), frozenset(roots), blobs)

    async def _below(self, roots: Iterable[str]) -> frozenset[Digest]:
        """Return everything that the manifests reference, directly or through an index."""
        refs = t.manifest_references.c
        found: set[str] = set()
        fresh = {*roots}
        while fresh:
            part, fresh = sorted(fresh)[:500], {*sorted(fresh)[500:]}
            rows = await self.database.all(
                sa.select(refs.digest).where(refs.manifest.in_(part), refs.role != "subject").distinct()
            )
            new = {row[0] for row in rows} - found
            found |= new
            fresh |= new
        return frozenset(map(Digest, found))


def _is_pinned(patterns: Iterable[str], upstream: str, name: str, *tails: str) -> bool:
    texts = [f"{upstream}/{name}{tail}" for tail in ("", *tails)]
    return any(matches(pattern, text) for pattern in patterns for text in texts)
