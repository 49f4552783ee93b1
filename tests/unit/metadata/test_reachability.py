"""Reachability: every kind of reference keeps a manifest, and a subject keeps no blob."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database
from regmirror.metadata.reachability import is_blob_referenced, is_manifest_referenced, select_manifests

TAG = {
    "repository_id": 1,
    "name": "1",
    "media_type": "x/y",
    "size": 1,
    "checked_at": 1.0,
    "changed_at": 1.0,
    "pulled_at": 1.0,
}


@pytest.fixture
async def stored(database: Database) -> Database:
    """Manifests ``a`` and ``b`` in repository 1, and ``b`` in repository 2."""
    async with database.write_shared() as connection:
        for number in (1, 2):
            row = {"id": number, "upstream": "u", "name": f"n{number}"}
            await connection.execute(sa.insert(t.repositories).values(row))
        for digest in "ab":
            manifest = {"digest": digest, "media_type": "x/y", "payload": b"123", "stored_at": 1.0}
            await connection.execute(sa.insert(t.manifests).values(manifest))
        for number, digest in ((1, "a"), (1, "b"), (2, "b")):
            row = {"repository_id": number, "digest": digest, "stored_at": 1, "pulled_at": 1}
            await connection.execute(sa.insert(t.repository_manifests).values(row))
    return database


async def add_reference(database: Database, manifest: str, digest: str, role: str) -> None:
    values = {"manifest": manifest, "position": 0, "digest": digest, "role": role, "size": 1}
    async with database.write_shared() as connection:
        await connection.execute(sa.insert(t.manifest_references).values(**values, fetchable=True))


async def is_reachable(database: Database, repository_id: int, digest: str) -> bool:
    row = await database.first(sa.select(is_manifest_referenced(repository_id, digest)))
    assert row is not None
    return bool(row[0])


@pytest.mark.parametrize("column", ["digest", "previous"])
async def test_a_tag_keeps_its_present_and_its_previous_manifest(stored: Database, column: str) -> None:
    assert not await is_reachable(stored, 1, "a")
    async with stored.write_shared() as connection:
        await connection.execute(sa.insert(t.tags).values({"digest": "other", **TAG, column: "a"}))
    assert await is_reachable(stored, 1, "a")
    assert not await is_reachable(stored, 2, "a")


async def test_an_index_keeps_its_children_where_it_is_stored(stored: Database) -> None:
    await add_reference(stored, "a", "b", "manifest")
    assert await is_reachable(stored, 1, "b")
    assert not await is_reachable(stored, 2, "b")
    assert not await is_reachable(stored, 1, "a")


async def test_a_subject_keeps_its_referrers_where_it_is_stored(stored: Database) -> None:
    await add_reference(stored, "b", "a", "subject")
    assert await is_reachable(stored, 1, "b")
    assert not await is_reachable(stored, 2, "b")


@pytest.mark.parametrize(("role", "expected"), [("layer", 1), ("config", 1), ("subject", 0)])
async def test_a_blob_is_kept_by_any_reference_but_a_subject(
    stored: Database, role: str, expected: int
) -> None:
    await add_reference(stored, "a", "blob", role)
    assert await stored.first(sa.select(is_blob_referenced("blob"))) == (expected,)


async def test_manifests_are_selected_with_their_size(stored: Database) -> None:
    mine = t.repository_manifests.c.repository_id == 2
    assert await stored.all(select_manifests(mine)) == [("b", 3)]
