"""Inventory: pages in the order of keys, corrections of rows, and the state of periodic tasks."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database
from regmirror.metadata.inventory import BlobRow, Inventory, MaintenanceRun
from regmirror.oci.names import Digest, Repository

ONE, TWO, THREE = (Digest(f"sha256:{number:064}") for number in (1, 2, 3))
QUEUE = sa.select(t.gc_queue.c.kind, t.gc_queue.c.digest, t.gc_queue.c.due_at)


@pytest.fixture
def inventory(database: Database) -> Inventory:
    return Inventory(database, lambda: 1_000.0)


async def test_pages_of_blobs_are_in_order_and_can_resume_anywhere(inventory: Inventory) -> None:
    await inventory.insert_blobs([(THREE, 3, 30.0), (ONE, 1, 10.0), (TWO, 2, 20.0)])
    rows = [BlobRow(ONE, 1, 10.0, False), BlobRow(TWO, 2, 20.0, False), BlobRow(THREE, 3, 30.0, False)]
    assert await inventory.blobs_after("", 2) == rows[:2]
    assert await inventory.blobs_after(TWO, 2) == rows[2:]
    await inventory.delete_blobs([TWO])
    assert await inventory.blobs_after(ONE, 2) == rows[2:]
    assert await inventory.find_stored([ONE, TWO]) == {str(ONE)}


async def test_inserted_blobs_are_due_since_they_were_stored(inventory: Inventory) -> None:
    await inventory.insert_blobs([])
    assert await inventory.database.all(QUEUE) == []
    await inventory.insert_blobs([(ONE, 1, 10.0)])
    await inventory.enqueue([(ONE, 99.0)])
    assert await inventory.database.all(QUEUE) == [("blob", str(ONE), 10.0)]


async def test_a_run_is_recorded_and_replaced(inventory: Inventory) -> None:
    assert await inventory.get_run("scrub") == MaintenanceRun()
    await inventory.save_run("scrub", MaintenanceRun(1.0, 0.0, "cursor"))
    await inventory.save_run("scrub", MaintenanceRun(1.0, 2.0))
    assert await inventory.get_run("scrub") == MaintenanceRun(1.0, 2.0, "")
    assert await inventory.get_run("collection") == MaintenanceRun()


async def test_manifests_without_a_reference_are_enqueued_once(inventory: Inventory) -> None:
    async with inventory.database.write_shared() as connection:
        await connection.execute(sa.insert(t.repositories).values(id=1, upstream="u.test", name="n"))
        await connection.execute(sa.insert(t.repositories).values(id=2, upstream="u.test", name="empty"))
        for digest in (ONE, TWO):
            values = {"digest": str(digest), "media_type": "x/y", "payload": b"{}", "stored_at": 1.0}
            await connection.execute(sa.insert(t.manifests).values(values))
            row = {"repository_id": 1, "digest": str(digest), "stored_at": 7.0, "pulled_at": 7.0}
            await connection.execute(sa.insert(t.repository_manifests).values(row))
        reference = {"manifest": str(TWO), "position": 0, "digest": str(ONE), "role": "manifest"}
        await connection.execute(sa.insert(t.manifest_references).values(**reference, size=1, fetchable=True))
        await connection.execute(sa.delete(t.gc_queue))
    assert await inventory.enqueue_unreferenced_manifests() == 1
    assert await inventory.enqueue_unreferenced_manifests() == 0
    assert await inventory.database.all(QUEUE) == [("manifest", str(TWO), 7.0)]
    assert await inventory.delete_empty_repositories() == 1
    assert await inventory.find_sources(ONE) == [Repository("u.test", "n")]
    assert await inventory.manifests_after(ONE, 5) == [(str(TWO), b"{}")]
    await inventory.delete_manifest(TWO)
    assert await inventory.manifests_after("", 5) == [(str(ONE), b"{}")]
