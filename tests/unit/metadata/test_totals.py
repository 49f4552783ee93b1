"""Totals: counts and bytes follow every change of rows."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database
from regmirror.metadata.reachability import REFERENCE_BYTES
from regmirror.metadata.totals import CONTENT_TOTALS, NONEMPTY_REPOSITORIES, TOTALS, Totals


async def read(database: Database) -> Totals:
    return Totals.read(await database.first(TOTALS))


async def test_an_empty_database_counts_nothing(database: Database) -> None:
    assert await read(database) == Totals(0, 0, 0, 0, 0, 0)


async def test_triggers_count_blobs_and_bytes(database: Database) -> None:
    async with database.write_shared() as connection:
        rows = [{"digest": str(size), "size": size, "stored_at": 1.0, "pulled_at": 1.0} for size in (3, 4)]
        await connection.execute(sa.insert(t.blobs), rows)
    assert await read(database) == Totals(2, 7, 0, 0, 0, 0)
    async with database.write_shared() as connection:
        await connection.execute(sa.update(t.blobs).where(t.blobs.c.digest == "3").values(size=10))
    assert await read(database) == Totals(2, 14, 0, 0, 0, 0)
    async with database.write_shared() as connection:
        await connection.execute(sa.delete(t.blobs))
    assert await read(database) == Totals(0, 0, 0, 0, 0, 0)


async def test_manifests_count_with_their_references(database: Database) -> None:
    async with database.write_shared() as connection:
        manifest = {"digest": "m", "media_type": "x/y", "payload": b"12345", "stored_at": 1.0}
        await connection.execute(sa.insert(t.manifests).values(manifest))
        reference = {"manifest": "m", "position": 0, "digest": "l", "role": "layer", "size": 1}
        await connection.execute(sa.insert(t.manifest_references).values(**reference, fetchable=True))
    assert await read(database) == Totals(0, 0, 1, 0, 0, 5 + REFERENCE_BYTES)
    assert await database.first(CONTENT_TOTALS) == (0, 0, 1, 5 + REFERENCE_BYTES)


@pytest.mark.parametrize("has_link", [False, True])
async def test_only_repositories_with_content_count(database: Database, has_link: bool) -> None:
    async with database.write_shared() as connection:
        await connection.execute(sa.insert(t.repositories).values(id=1, upstream="u", name="n"))
        if has_link:
            link = {"repository_id": 1, "digest": "l", "confirmed_at": 1.0}
            await connection.execute(sa.insert(t.repository_blobs).values(link))
    assert (await read(database)).repositories == int(has_link)
    assert await database.all(NONEMPTY_REPOSITORIES) == [(1,)] * has_link
