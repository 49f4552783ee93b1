"""GC queue: when an entry is added, and which of two times it keeps."""

from __future__ import annotations

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database
from regmirror.metadata.gc_queue import (
    AT_ONCE,
    EVERYWHERE,
    dequeue,
    enqueue,
    enqueue_blobs,
    enqueue_children,
    postpone,
)

ENTRIES = sa.select(t.gc_queue.c.kind, t.gc_queue.c.digest, t.gc_queue.c.since, t.gc_queue.c.due_at)
ENTRY = sa.select(t.gc_queue).where(t.gc_queue.c.digest == "sha256:a")


def removed(digest: str, at: float) -> dict[str, object]:
    return {"of_repository": 1, "of_digest": digest, "since": at, "due_at": at}


async def add_index(database: Database) -> None:
    """An index of one child, which references one stored and one unknown layer."""
    async with database.write_shared() as connection:
        await connection.execute(sa.insert(t.repositories).values(id=1, upstream="u", name="n"))
        for digest in ("index", "child"):
            values = {"digest": digest, "media_type": "x/y", "payload": b"", "stored_at": 1.0}
            await connection.execute(sa.insert(t.manifests).values(values))
            row = {"repository_id": 1, "digest": digest, "stored_at": 1.0, "pulled_at": 1.0}
            await connection.execute(sa.insert(t.repository_manifests).values(row))
        for manifest, position, digest, role in (
            ("index", 0, "child", "manifest"),
            ("child", 0, "stored", "layer"),
            ("child", 1, "unknown", "layer"),
        ):
            reference = {"manifest": manifest, "position": position, "digest": digest, "role": role}
            await connection.execute(
                sa.insert(t.manifest_references).values(**reference, size=1, fetchable=True)
            )
        blob = {"digest": "stored", "size": 1, "stored_at": 1.0, "pulled_at": 1.0}
        await connection.execute(sa.insert(t.blobs).values(blob))
        await connection.execute(sa.delete(t.gc_queue))


async def test_an_entry_has_the_time_of_its_last_reference(database: Database) -> None:
    async with database.write_shared() as connection:
        await enqueue(connection, "blob", EVERYWHERE, ["sha256:a", None], 1.0)
        await enqueue(connection, "blob", EVERYWHERE, ["sha256:a"], 5.0)
    assert await database.all(ENTRIES) == [("blob", "sha256:a", 5.0, 5.0)]


async def test_a_postponed_entry_keeps_the_time_of_its_last_reference(database: Database) -> None:
    async with database.write_shared() as connection:
        await enqueue(connection, "blob", EVERYWHERE, ["sha256:a", "sha256:b"], 1.0)
        row = (await connection.execute(ENTRY)).one()
        await dequeue(connection, "blob", [(EVERYWHERE, "sha256:a"), (EVERYWHERE, "sha256:b")])
        await postpone(connection, "blob", [(row, 9.0)])
    assert await database.all(ENTRIES) == [("blob", "sha256:a", 1.0, 9.0)]


async def test_children_inherit_the_time_of_their_index(database: Database) -> None:
    await add_index(database)
    async with database.write_shared() as connection:
        await enqueue_children(connection, [removed("index", 3.0)])
    assert await database.all(ENTRIES) == [("manifest", "child", 3.0, 3.0)]


async def test_a_later_time_stays_unless_content_is_purged(database: Database) -> None:
    await add_index(database)
    async with database.write_shared() as connection:
        await enqueue(connection, "manifest", 1, ["child"], 5.0)
        await enqueue_children(connection, [removed("index", 3.0)])
    assert await database.all(ENTRIES) == [("manifest", "child", 5.0, 5.0)]
    async with database.write_shared() as connection:
        await enqueue_children(connection, [removed("index", AT_ONCE)])
    assert await database.all(ENTRIES) == [("manifest", "child", AT_ONCE, AT_ONCE)]


async def test_only_blobs_with_a_row_or_a_link_are_enqueued(database: Database) -> None:
    await add_index(database)
    async with database.write_shared() as connection:
        await enqueue_blobs(connection, [removed("child", 3.0)])
    assert await database.all(ENTRIES) == [("blob", "stored", 3.0, 3.0)]
