"""How a manifest is revalidated, and what is recorded of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.errors import UpstreamNotFound
from regmirror.metadata.records import TagRecord
from regmirror.mirror.cache_status import CHANGED, HIT, MISS, REVALIDATED, STORED
from regmirror.mirror.manifest_fetcher import ManifestFetcher
from tests.unit.mirror.world import APP, MAX_AGE, TAG, World, manifest

ONE, TWO = manifest("one"), manifest("two")


class Setup:
    """A fetcher, and the record of a tag that is stored as ``ONE`` and expired."""

    def __init__(self, root: Path, **freshness: Any) -> None:
        self.world = World(root, **freshness)
        self.upstream = self.world.upstream
        self.upstream.manifests = {TAG: ONE}
        self.fetcher = ManifestFetcher(
            self.world.cache, self.world.access, self.world.freshness, self.world.now
        )
        self.record = TagRecord(ONE.digest, ONE.media_type, ONE.size, self.world.time)

    async def stored(self) -> TagRecord | None:
        """The tag as the database has it."""
        return await self.world.store.find_tag(APP, TAG)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    await setup.world.cache.save_manifest(APP, ONE, TAG)
    setup.world.time += MAX_AGE
    yield setup
    await setup.world.close()


async def test_an_unchanged_tag_needs_one_head(setup: Setup) -> None:
    """B25."""
    result = await setup.fetcher.revalidate(APP, TAG, setup.record)
    assert (result.content, result.cache_status) == (ONE, REVALIDATED)
    assert setup.upstream.requests == [("HEAD", TAG)]
    stored = await setup.stored()
    assert stored is not None
    assert stored.checked_at == setup.world.time


async def test_a_tag_that_moved_needs_a_head_and_a_get(setup: Setup) -> None:
    """B25."""
    setup.upstream.manifests = {TAG: TWO}
    result = await setup.fetcher.revalidate(APP, TAG, setup.record)
    assert (result.content, result.cache_status) == (TWO, CHANGED)
    assert setup.upstream.requests == [("HEAD", TAG), ("GET", TAG)]


async def test_a_registry_without_head_is_revalidated_by_get(setup: Setup) -> None:
    setup.upstream.supports_head = False
    result = await setup.fetcher.revalidate(APP, TAG, setup.record)
    assert (result.content, result.cache_status) == (ONE, REVALIDATED)


async def test_a_tag_without_a_record_or_a_manifest_needs_one_get(setup: Setup) -> None:
    await setup.world.cache.delete_tag(APP, TAG)
    assert (await setup.fetcher.revalidate(APP, TAG, None)).cache_status is STORED
    await setup.world.cache.delete_tag(APP, TAG)
    lost = TagRecord(TWO.digest, TWO.media_type, TWO.size, 0.0)
    assert (await setup.fetcher.revalidate(APP, TAG, lost)).cache_status is STORED
    assert setup.upstream.requests == [("GET", TAG)] * 2


async def test_a_tag_that_another_request_has_just_revalidated_needs_no_request(setup: Setup) -> None:
    await setup.world.cache.save_manifest(APP, TWO, TAG)
    result = await setup.fetcher.revalidate(APP, TAG, setup.record)
    assert (result.content, result.cache_status) == (TWO, HIT)
    assert setup.upstream.requests == []


async def test_a_head_that_sees_a_tag_move_records_its_previous_manifest(setup: Setup) -> None:
    """B34: the stored manifest can still be served if the new one cannot be fetched."""
    setup.upstream.manifests = {TAG: TWO}
    result = await setup.fetcher.revalidate_head(APP, TAG, setup.record, ONE)
    assert (result.content.digest, result.cache_status) == (TWO.digest, MISS)
    stored = await setup.stored()
    assert stored is not None
    assert (stored.digest, stored.previous) == (TWO.digest, ONE.digest)


async def test_a_head_of_an_unchanged_tag_records_no_previous_manifest(setup: Setup) -> None:
    assert (await setup.fetcher.revalidate_head(APP, TAG, setup.record, ONE)).cache_status is REVALIDATED
    stored = await setup.stored()
    assert stored is not None
    assert stored.previous is None


@pytest.mark.parametrize("field", ["digest", "size", "media_type"])
async def test_a_head_without_a_header_is_replaced_by_a_get(
    setup: Setup, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = setup.upstream.head_manifest

    async def without(*args: Any) -> Any:
        found = await head(*args)
        setattr(found, field, "" if field == "media_type" else None)
        return found

    monkeypatch.setattr(setup.upstream, "head_manifest", without)
    assert await setup.fetcher.request_head(APP, TAG) is None
    assert (await setup.fetcher.revalidate_head(APP, TAG, setup.record, ONE)).cache_status is STORED


@pytest.mark.parametrize(("on_missing", "stays"), [("forget", False), ("keep", True)])
async def test_a_tag_that_the_upstream_no_longer_has_is_deleted_or_kept(
    tmp_path: Path, on_missing: str, stays: bool
) -> None:
    setup = Setup(tmp_path, on_missing=on_missing)
    await setup.world.cache.save_manifest(APP, ONE, TAG)
    setup.upstream.manifests = {}
    with pytest.raises(UpstreamNotFound):
        await setup.fetcher.fetch_tag(APP, TAG)
    assert (await setup.stored() is not None) is stays
    await setup.world.close()
