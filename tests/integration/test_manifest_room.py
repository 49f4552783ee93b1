"""Room that manifests and broken-off downloads take (B40)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.config.schema import Config
from regmirror.maintenance.toolkit import open_toolkit
from regmirror.metadata.cache import MetadataCache
from regmirror.metadata.reachability import REFERENCE_BYTES
from regmirror.metadata.records import Candidate
from regmirror.metadata.store import STORED_REFERENCES_MAX, MetadataStore, is_storable
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("docker.io", "team/app"), Repository("docker.io", "team/other")
TYPE = "application/vnd.oci.image.manifest.v1+json"


def manifest(number: Any, size: int = 5_000) -> Any:
    payload = json.dumps({"number": number, "padding": "x" * size}).encode()
    return Manifest(Digest.of(payload), TYPE, payload)


def references(count: int) -> Any:
    return [Descriptor(Digest.of(b"%d" % n), 10, TYPE, "layer", fetchable=True) for n in range(count)]


def with_references(count: int) -> Any:
    """A manifest that names so many layers, all of them the same one."""
    layer = {"mediaType": TYPE, "digest": str(Digest.of(b"0")), "size": 10}
    payload = json.dumps({"schemaVersion": 2, "layers": [layer] * count}).encode()
    return Manifest(Digest.of(payload), TYPE, payload)


class World:
    def __init__(self, root: Any) -> None:
        self.root, self.time = root, 1_000.0
        upgrade(database_path(root))
        self.metadata = MetadataStore(database_path(root), lambda: self.time)
        self.toolkit = open_toolkit(root, self.metadata, lambda event: None, lambda: self.time)
        self.events = []
        self.metadata_cache = MetadataCache(self.metadata, self.events.append, missing_max_age=10)
        self.toolkit.store.prepare()
        self.toolkit.staging.prepare()

    def room(self, max_size: Any, *, is_dry: bool = False) -> Any:
        async def flush() -> None:
            pass

        config = Config.model_validate({"storage": {"max_size": str(max_size), "min_free": "0"}})
        room = self.toolkit.capacity(config, flush)
        room._is_dry = is_dry
        return room

    async def save(self, item: Any, repository: str = APP, tag: str | None = None, count: int = 1) -> None:
        self.time += 10
        await self.metadata.save_manifest(repository, item, references(count), tag)

    def rows(self, query: Any) -> Any:
        connection = sqlite3.connect(database_path(self.root))
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Any]:
    world = World(tmp_path)
    yield world
    await world.metadata.close()


async def test_manifests_and_their_references_count(world: Any) -> None:
    """B40: exactly, whatever comes and goes."""
    items = [manifest(number) for number in range(3)]
    for number, item in enumerate(items):
        await world.save(item, count=number)
    whole = sum(item.size for item in items) + 3 * REFERENCE_BYTES
    assert await world.room(0).used() == whole
    await world.save(items[0], OTHER)
    assert await world.room(0).used() == whole + REFERENCE_BYTES
    await world.toolkit.gc_queries.purge_manifests(APP, [items[2].digest])
    assert await world.room(0).used() == whole - items[2].size - REFERENCE_BYTES


async def test_the_least_recently_pulled_manifests_are_evicted(world: Any) -> None:
    """B40: and what they named is reviewed; what is pinned stays."""
    items = [manifest(number) for number in range(4)]
    await world.metadata.link(APP, references(1)[0].digest)
    for number, item in enumerate(items):
        await world.save(item, tag=Tag(f"v{number}"))
    await world.toolkit.pins.add("docker.io/team/app:v0")
    summary = await world.room(18_000).enforce()
    assert summary.removed == 1
    assert {items[number].digest for number in (0, 2, 3)} == {
        digest for (digest,) in world.rows("SELECT digest FROM manifests")
    }
    assert (str(references(1)[0].digest),) in world.rows("SELECT digest FROM reviews WHERE kind = 'blob'")
    assert await world.room(18_000).used() <= 18_000


async def test_a_manifest_that_is_pulled_elsewhere_frees_nothing_here(world: Any) -> None:
    """B40: two repositories hold the same one."""
    shared, last = manifest(1), manifest(2)
    await world.save(shared)
    await world.save(shared, OTHER)
    await world.save(last)
    summary = await world.room(last.size + REFERENCE_BYTES + 1_000).enforce()
    assert (summary.removed, summary.bytes) == (2, shared.size + REFERENCE_BYTES)
    assert [(last.digest,)] == world.rows("SELECT digest FROM manifests")


async def test_the_database_uses_the_pages_of_evicted_manifests_again(world: Any) -> None:
    """B40, B100: with a limit the file does not grow with what has passed through."""
    room, sizes = world.room(3_000_000), []
    for number in range(24):
        await world.save(manifest(number, 200_000), count=1_000)
        await room.enforce()
        sizes.append(world.rows("PRAGMA page_count")[0][0] * 4096)
    assert sizes[-1] < 2 * 3_000_000
    assert sizes[-1] <= sizes[11] * 1.1


@pytest.mark.parametrize(("count", "is_stored"), [(STORED_REFERENCES_MAX, 1), (STORED_REFERENCES_MAX + 1, 0)])
async def test_a_manifest_with_too_many_references_is_not_stored(
    world: Any, count: Any, is_stored: int
) -> None:
    """B40, B100."""
    item, named = manifest(1), references(1)
    assert is_storable(item, named * count) is bool(is_stored)
    await world.metadata_cache.save_manifest(APP, with_references(count), Tag("latest"))
    assert len(world.rows("SELECT digest FROM manifests")) == is_stored
    assert await world.metadata.find_tag(APP, Tag("latest")) is not None
    assert len(world.events) == 1 - is_stored


async def test_what_broken_downloads_left_goes_first(world: Any) -> None:
    """B40: oldest first, and nothing that a writer holds."""
    item = manifest(1)
    await world.save(item)
    written = [Digest.of(b"old"), Digest.of(b"held")]
    staged = [world.toolkit.staging.open(digest) for digest in written]
    assert staged[1].try_lock()
    for file in staged:
        file.open_bytes(create=True)
        file.truncate(10_000)
    staged[0].close()
    seen = []
    room = world.room(12_000)
    need = await room.find_excess()
    planned = []
    await world.room(12_000, is_dry=True).evict(need, planned.append)
    summary = await room.evict(need, seen.append)
    assert planned[:1] == seen[:1]
    assert [removal.digest for removal in seen][:1] == [written[0]]
    assert summary.bytes >= 10_000
    assert not staged[0].path.exists()
    assert staged[1].path.exists()
    staged[1].close()


async def test_names_that_do_not_exist_leave_no_rows(world: Any) -> None:
    """B100: not in the database, and not in the figures."""
    for number in range(20):
        await world.metadata.delete_tag(Repository("docker.io", f"invented/{number}"), Tag("latest"))
    assert world.rows("SELECT count(*) FROM repositories") == [(0,)]
    await world.save(manifest(1))
    await world.toolkit.gc_queries.purge_manifests(APP, None)
    assert (await world.metadata.totals()).repositories == 0
    await world.toolkit.reconcile()
    assert world.rows("SELECT count(*) FROM repositories") == [(0,)]


async def test_other_writers_take_turns_with_a_large_eviction(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B40, B44: else nothing can be written, and no download reserves its space, until it has ended."""
    items = [manifest(number, 10) for number in range(1_200)]
    for item in items:
        await world.save(item)
    writes = []
    write = world.metadata.database.write_exclusive
    monkeypatch.setattr(world.metadata.database, "write_exclusive", lambda: writes.append(1) or write())
    gone = await world.toolkit.gc_queries.evict_manifests(
        [Candidate(item.digest, item.size, 0.0, 1) for item in items], float("inf")
    )
    assert (len(gone), len(writes)) == (1_200, 3)
    assert world.rows("SELECT digest FROM manifests") == []
