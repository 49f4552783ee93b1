"""What may go, as transactions decide it; and that they find it by an index."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from regmirror.maintenance.gc import Collector
from regmirror.maintenance.remover import Remover
from regmirror.metadata import schema as t
from regmirror.metadata.gc import PURGE, GcQueries
from regmirror.metadata.pins import Pins
from regmirror.metadata.reachability import select_due_blobs, select_due_manifests
from regmirror.metadata.records import TagRecord
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag

APP, OTHER, TAG = Repository("registry.test", "team/app"), Repository("registry.test", "team/b"), Tag("1")
GRACE, KEEP = 100.0, 1_000.0
LAYER = Digest.of(b"layer")


class Now:
    def __init__(self) -> None:
        self.time = 10_000.0

    def __call__(self) -> Any:
        return self.time


class Files:
    """A store whose files are names, and of which some are being read."""

    def __init__(self) -> None:
        self.busy = set()

    def exists(self, digest: str) -> Any:
        return digest in self.busy

    def lock_for_removal(self, digest: str) -> Any:
        return None


class World:
    def __init__(self, path: str) -> None:
        self.now, self.files = Now(), Files()
        self.store = MetadataStore(path, self.now)
        self.queries = GcQueries(self.store.database, self.now)
        self.pins = Pins(self.store.database, self.now)
        self.remover = Remover(self.queries, self.files, lambda event: None)

    async def add(self, payload: Any, repository: str = APP, tag: str | None = None, *layers: Any) -> Any:
        manifest = Manifest(Digest.of(payload), OCI_MANIFEST, payload)
        named = [Descriptor(item, 5, "layer", "layer", fetchable=True) for item in layers]
        await self.store.save_manifest(repository, manifest, named, tag)
        return manifest.digest

    async def pulled(self, digest: str, repository: str = APP) -> None:
        await self.store.save_pulls({}, {(repository, digest): self.now()}, {})

    async def collect(self) -> Any:
        gone = []
        collector = Collector(
            self.queries, self.pins, self.remover, grace=GRACE, keep_untagged=KEEP, now=self.now
        )
        await collector.collect(gone.append)
        return [item.digest for item in gone]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Any]:
    upgrade(database_path(tmp_path))
    world = World(database_path(tmp_path))
    yield world
    await world.store.close()


async def test_a_moved_tags_old_manifest_goes_after_the_grace_time_and_not_before(world: Any) -> None:
    """B43."""
    old = await world.add(b"old", APP, TAG)
    world.now.time += 10
    await world.add(b"new", APP, TAG)
    world.now.time += GRACE - 1
    assert await world.collect() == []
    world.now.time += 2
    assert await world.collect() == [old]


async def test_a_manifest_pulled_by_digest_after_it_lost_its_tag_stays_long(world: Any) -> None:
    """B43: whoever names it by its digest needs it, for keep_untagged after the last pull."""
    old = await world.add(b"old", APP, TAG)
    world.now.time += 10
    await world.add(b"new", APP, TAG)
    world.now.time += 10
    await world.pulled(old)
    world.now.time += KEEP - 1
    assert await world.collect() == []
    world.now.time += 2
    assert await world.collect() == [old]


async def test_a_manifest_goes_from_one_repository_and_stays_in_another(world: Any) -> None:
    """B8: with what it names."""
    await world.store.save_blob(LAYER, 5)
    shared = await world.add(b"shared", APP, TAG, LAYER)
    await world.add(b"shared", OTHER, TAG, LAYER)
    await world.store.delete_tag(APP, TAG)
    world.now.time += 2 * GRACE
    assert await world.collect() == [shared]
    assert await world.store.find_manifest(APP, shared) is None
    assert await world.store.find_manifest(OTHER, shared) is not None
    assert (await world.store.totals()).blobs == 1


async def test_a_pinned_manifest_stays_without_a_tag(world: Any) -> None:
    """B40: by its digest."""
    digest = await world.add(b"pinned", APP)
    await world.pins.add(f"{APP}@{digest}")
    world.now.time += 2 * KEEP
    assert await world.collect() == []


async def test_a_purge_spares_a_blob_that_a_manifest_names_by_now(world: Any) -> None:
    """B8, B42: it was pulled again while the purge was going on."""
    await world.store.save_blob(LAYER, 5)
    image = await world.add(b"image", APP, TAG, LAYER)
    await world.queries.purge_manifests(APP, [image])
    removing = world.queries.remove_blobs

    async def late(*args: Any, **kwargs: Any) -> Any:
        await world.add(b"image", APP, TAG, LAYER)
        return await removing(*args, **kwargs)

    world.queries.remove_blobs = late
    gone = []
    collector = Collector(world.queries, world.pins, world.remover, grace=0, keep_untagged=0, now=world.now)
    await collector.purge(gone.append)
    assert gone == []
    assert (await world.store.totals()).blobs == 1


async def test_a_blob_that_is_being_read_is_looked_at_again_later(world: Any) -> None:
    """B40, B42."""
    await world.store.save_blob(LAYER, 5)
    world.files.busy = {LAYER}
    world.now.time += 2 * GRACE
    assert await world.collect() == []
    world.files.busy = set()
    assert await world.collect() == []
    world.now.time += 2 * GRACE
    assert await world.collect() == [LAYER]


async def test_a_tag_that_a_pin_protects_is_not_forgotten(world: Any) -> None:
    """B40."""
    manifest = await world.add(b"image", APP, TAG)
    await world.store.save_tag(APP, Tag("2"), TagRecord(manifest, OCI_MANIFEST, 5, world.now()))
    await world.pins.add(f"{APP}:1")
    pinned = await world.pins.find_pinned()
    world.now.time += 10
    assert await world.queries.delete_old_tags(world.now(), pinned.tags, 10) == 1
    assert await world.store.list_tags(APP) == ["1"]


# --- the plans of queries: a million rows are not looked at for a few

BIG = ("blobs", "manifests", "manifest_references", "repository_manifests", "tags", "reviews")


async def plan_of(world: Any, query: Any) -> Any:
    compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
    rows = await world.store.database.all(sa.text(f"EXPLAIN QUERY PLAN {compiled}"))
    return [row[3] for row in rows]


def scans(plan: Any) -> Any:
    """The steps that look at all of a big table."""
    return [line for line in plan if line.startswith("SCAN") and any(name in line for name in BIG)]


@pytest.mark.parametrize(
    "query", [select_due_manifests(1.0, 10), select_due_blobs(1.0, 10)], ids=["manifests", "blobs"]
)
async def test_due_entries_are_found_through_an_index(world: Any, query: Any) -> None:
    """B42: a collection's work grows with what has changed, not with what is stored."""
    plan = await plan_of(world, query)
    assert scans(plan) == []
    assert any("ix_reviews_kind_due_at" in line for line in plan)
    assert not any("TEMP B-TREE" in line for line in plan)


@pytest.mark.parametrize("is_first", [True, False])
async def test_the_order_of_eviction_is_that_of_an_index(
    world: Any, is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B40: neither sorted nor read to its end."""
    asked = []

    async def remember(query: Any) -> Any:
        asked.append(query)
        return []

    from regmirror.metadata.records import Candidate

    after = None if is_first else Candidate(LAYER, 5, 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(world.queries.database, "all", remember)
        await world.queries.least_recently_pulled(after, 10)
    plan = await plan_of(world, asked[0])
    assert all("ix_blobs_pulled_at" in line for line in plan)
    assert not any("TEMP B-TREE" in line for line in plan)


async def test_nothing_is_purged_by_a_review_that_is_not_due(world: Any) -> None:
    """B43: a purge settles only what it has put up itself."""
    await world.add(b"fresh", APP)
    assert (await world.queries.process_manifest_queue(PURGE, (), 10)).count == 0
    count = await world.store.database.first(sa.select(sa.func.count()).select_from(t.gc_queue))
    assert count == (1,)
