"""Queries of lists. A page reads no more rows than it has entries.

The connection of each function is one that ``Database.read_list`` passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.oci.manifests import Manifest
from regmirror.oci.names import Digest


@dataclass(frozen=True, slots=True)
class CatalogPage:
    """A request for at most ``limit`` names after ``last``.

    With ``upstream``, only its names; otherwise those of all upstreams, each preceded by its upstream
    unless that is ``default``.
    """

    limit: int
    default: str
    upstream: str | None = None
    last: str | None = None


async def read_catalog(connection: AsyncConnection, page: CatalogPage) -> list[str]:
    """Return one page of names of repositories that have a manifest or a tag, in order."""
    upstreams = await _read_upstreams(connection) if page.upstream is None else [page.upstream]
    found = []
    for upstream in upstreams:
        prefix = "" if page.upstream or upstream == page.default else f"{upstream}/"
        if (last := _last_of(page.last or "", prefix)) is not None:
            names = await _read_names(connection, upstream, last, page.limit)
            found += [prefix + name for name in names]
    return sorted(found)[: page.limit]


def _last_of(last: str, prefix: str) -> str | None:
    """Return the name after which those with this prefix continue.

    None if all of them come before ``last``.
    """
    if last.startswith(prefix):
        return last[len(prefix) :]
    return "" if last < prefix else None


async def _read_upstreams(connection: AsyncConnection) -> list[str]:
    """Return every upstream, with one search in the index for each and no scan of repositories."""
    upstream = t.repositories.c.upstream
    following = sa.select(sa.func.min(upstream)).where(upstream > sa.bindparam("last"))
    found: list[str] = []
    while (
        one := (await connection.execute(following, {"last": found[-1] if found else ""})).scalar()
    ) is not None:
        found.append(one)
    return found


async def _read_names(connection: AsyncConnection, upstream: str, last: str, limit: int) -> list[str]:
    row = t.repositories.c
    query = (
        sa.select(row.name)
        .where(row.upstream == upstream, row.name > last)
        .where(
            sa.exists().where(t.repository_manifests.c.repository_id == row.id)
            | sa.exists().where(t.tags.c.repository_id == row.id)
        )
        .order_by(row.name)
        .limit(limit)
    )
    return [found[0] for found in await connection.execute(query)]


async def read_tags(
    connection: AsyncConnection, mine: sa.ColumnElement[bool], last: str, limit: int | None
) -> list[str]:
    """Return tags of the repository selected by ``mine``, in order: at most ``limit`` after ``last``."""
    query = sa.select(t.tags.c.name).join(t.repositories).where(mine, t.tags.c.name > last)
    return [row[0] for row in await connection.execute(query.order_by(t.tags.c.name).limit(limit))]


async def read_referrers(
    connection: AsyncConnection, mine: sa.ColumnElement[bool], subject: Digest, limit: int
) -> list[Manifest]:
    """Return the verified manifests whose ``subject`` is this, in the order of their digests, up to
    ``limit`` bytes together.
    """
    refs, entries, item = t.manifest_references, t.repository_manifests, t.manifests.c
    total = sa.func.sum(sa.func.length(item.payload)).over(order_by=item.digest).label("total")
    found = (
        sa.select(item.digest, entries.c.media_type, total)
        .join(refs, refs.c.manifest == item.digest)
        .join(entries, entries.c.digest == item.digest)
        .join(t.repositories, t.repositories.c.id == entries.c.repository_id)
        .where(mine, entries.c.is_verified, refs.c.digest == str(subject), refs.c.role == "subject")
        .subquery()
    )
    query = (
        sa.select(item.digest, found.c.media_type, item.payload)
        .join(found, found.c.digest == item.digest)
        .where(found.c.total <= limit)
        .order_by(item.digest)
    )
    return [Manifest(Digest(row[0]), row[1], row[2]) for row in await connection.execute(query)]


async def read_first_row(connection: AsyncConnection, query: Any) -> Any:
    """Return the first row of the result."""
    return (await connection.execute(query)).first()
