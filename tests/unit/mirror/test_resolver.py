"""Which manifest is served, and when the upstream is contacted for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.errors import (
    ManifestUnknown,
    MetadataUnavailable,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.metadata.bounded_access import tracking_reads
from regmirror.mirror.cache_status import HIT, MISS, REVALIDATED, STALE, STORED
from regmirror.mirror.resolver import Resolver
from tests.unit.mirror.world import APP, MAX_AGE, NAME, TAG, Complete, World, manifest

ONE, TWO = manifest("one"), manifest("two")
FAILED = UpstreamFailed(NAME, "responded 500", reason="status")


class Setup:
    """A resolver on its world; the upstream's tag is ``ONE``."""

    def __init__(self, root: Path, **freshness: Any) -> None:
        self.world, self.completeness = World(root, **freshness), Complete()
        self.upstream = self.world.upstream
        self.upstream.manifests = {TAG: ONE, ONE.digest: ONE, TWO.digest: TWO}
        self.resolver = Resolver(
            metadata_cache=self.world.cache,
            upstream_access=self.world.access,
            completeness=self.completeness.as_completeness(),
            freshness=self.world.freshness,
            now=self.world.now,
        )

    async def store(self) -> None:
        """Have the tag stored, and expired."""
        assert (await self.resolver.get_manifest(APP, TAG)).cache_status is STORED
        self.world.time += MAX_AGE + 1
        self.upstream.requests.clear()

    async def close(self) -> None:
        await self.resolver.close()
        await self.world.close()


@pytest.fixture
async def setup(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path, **getattr(request, "param", {}))
    yield setup
    await setup.close()


def keys(**freshness: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("setup", [freshness], indirect=True)


async def test_a_manifest_is_fetched_once_and_then_a_hit_by_tag_and_by_digest(setup: Setup) -> None:
    """B24."""
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is STORED
    for reference in (TAG, ONE.digest):
        result = await setup.resolver.get_manifest(APP, reference)
        assert (result.content, result.cache_status) == (ONE, HIT)
    assert setup.upstream.requests == [("GET", TAG)]


async def test_memory_serves_a_fresh_tag_and_not_a_stale_one(setup: Setup) -> None:
    """B24, B25."""
    assert setup.resolver.get_cached_manifest(APP, TAG) is None
    assert setup.resolver.get_cached_head(APP, TAG) is None
    await setup.resolver.get_manifest(APP, TAG)
    for reference in (TAG, ONE.digest):
        assert setup.resolver.get_cached_manifest(APP, reference) == ONE
        head = setup.resolver.get_cached_head(APP, reference)
        assert head is not None
        assert (head.digest, head.size) == (ONE.digest, ONE.size)
    setup.world.time += MAX_AGE
    assert setup.resolver.get_cached_manifest(APP, TAG) is None
    assert setup.resolver.get_cached_head(APP, TAG) is None


async def test_memory_serves_nothing_while_blobs_cannot_be_fetched(setup: Setup) -> None:
    """B39: the image may be incomplete."""
    await setup.resolver.get_manifest(APP, TAG)
    for _ in range(3):
        setup.upstream.health.note_failure(0, "status")
    for reference in (TAG, ONE.digest):
        assert setup.resolver.get_cached_manifest(APP, reference) is None
        assert setup.resolver.get_cached_head(APP, reference) is None


async def test_a_head_of_a_fresh_tag_is_a_hit(setup: Setup) -> None:
    await setup.resolver.get_manifest(APP, TAG)
    result = await setup.resolver.head_manifest(APP, TAG)
    assert (result.content.digest, result.cache_status) == (ONE.digest, HIT)
    assert (await setup.resolver.head_manifest(APP, ONE.digest)).cache_status is HIT
    assert len(setup.upstream.requests) == 1


async def test_a_head_fetches_no_manifest(setup: Setup) -> None:
    """By tag and by digest."""
    for reference in (TAG, TWO.digest):
        assert (await setup.resolver.head_manifest(APP, reference)).cache_status is MISS
    assert setup.upstream.requests == [("HEAD", TAG), ("HEAD", TWO.digest)]
    assert (await setup.resolver.get_manifest(APP, TAG)).content == ONE
    assert setup.upstream.requests[2:] == [("GET", ONE.digest)]


async def test_a_get_replaces_a_head_that_the_upstream_does_not_support(setup: Setup) -> None:
    setup.upstream.supports_head = False
    for reference in (TAG, TWO.digest):
        assert (await setup.resolver.head_manifest(APP, reference)).cache_status is STORED


async def test_a_stale_tag_is_revalidated(setup: Setup) -> None:
    """B25."""
    await setup.store()
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is REVALIDATED
    assert setup.upstream.requests == [("HEAD", TAG)]
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is HIT


async def test_a_stale_tag_is_served_while_the_upstream_fails(setup: Setup) -> None:
    """B33: with the error as a warning."""
    await setup.store()
    setup.upstream.error = FAILED
    result = await setup.resolver.get_manifest(APP, TAG)
    assert (result.content, result.cache_status, result.warning) == (ONE, STALE, FAILED.message)
    head = await setup.resolver.head_manifest(APP, TAG)
    assert (head.content.digest, head.cache_status, head.warning) == (ONE.digest, STALE, FAILED.message)


async def test_an_incomplete_image_is_not_served_stale(setup: Setup) -> None:
    """B39."""
    await setup.store()
    setup.completeness.gap = "0 of its 3 layers are cached"
    setup.upstream.error = FAILED
    with pytest.raises(UpstreamFailed):
        await setup.resolver.get_manifest(APP, TAG)


async def test_an_incomplete_image_is_served_stale_if_only_manifests_are_limited(setup: Setup) -> None:
    """B30, B39: its blobs can still be fetched."""
    await setup.store()
    setup.completeness.gap = "0 of its 3 layers are cached"
    setup.upstream.error = UpstreamRateLimited(NAME, "limits requests")
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is STALE


@keys(incomplete="serve")
async def test_an_incomplete_image_is_served_stale_if_that_is_configured(setup: Setup) -> None:
    """B39."""
    await setup.store()
    setup.completeness.gap = "0 of its 3 layers are cached"
    setup.upstream.error = FAILED
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is STALE


@keys(stale_if_error="10s")
async def test_a_tag_is_served_stale_for_a_limited_time(setup: Setup) -> None:
    """B33."""
    await setup.store()
    setup.world.time += 10
    setup.upstream.error = FAILED
    with pytest.raises(UpstreamFailed):
        await setup.resolver.get_manifest(APP, TAG)


async def test_a_deleted_tag_is_forgotten(setup: Setup) -> None:
    await setup.store()
    setup.upstream.manifests.clear()
    with pytest.raises(ManifestUnknown):
        await setup.resolver.get_manifest(APP, TAG)
    assert await setup.world.store.find_tag(APP, TAG) is None


@keys(on_missing="keep")
async def test_a_deleted_tag_is_kept_if_that_is_configured(setup: Setup) -> None:
    await setup.store()
    setup.upstream.manifests.clear()
    result = await setup.resolver.get_manifest(APP, TAG)
    assert (result.content, result.cache_status) == (ONE, STALE)


@keys(on_missing="keep")
async def test_a_tag_with_denied_access_is_not_kept(setup: Setup) -> None:
    await setup.store()
    setup.upstream.error = UpstreamDenied(NAME, "denies access")
    with pytest.raises(ManifestUnknown):
        await setup.resolver.get_manifest(APP, TAG)


@keys(on_missing="keep")
async def test_a_tag_that_the_database_may_have_is_unavailable_and_not_unknown(setup: Setup) -> None:
    """B44."""
    setup.upstream.manifests.clear()
    with tracking_reads() as doubt:
        doubt.has_failed = True
        with pytest.raises(MetadataUnavailable):
            await setup.resolver.get_manifest(APP, TAG)


@keys(on_missing="keep")
async def test_a_tag_that_nobody_has_is_unknown(setup: Setup) -> None:
    setup.upstream.manifests.clear()
    with pytest.raises(ManifestUnknown):
        await setup.resolver.get_manifest(APP, TAG)


async def test_a_fresh_tag_whose_manifest_was_deleted_upstream_is_fetched_by_tag(setup: Setup) -> None:
    """A HEAD has seen the digest, and the tag has moved since."""
    await setup.resolver.head_manifest(APP, TAG)
    setup.upstream.manifests = {TAG: TWO}
    assert (await setup.resolver.get_manifest(APP, TAG)).content == TWO


async def test_an_almost_exhausted_rate_limit_is_left_for_content_that_is_not_cached(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B32."""
    await setup.store()
    monkeypatch.setattr(setup.upstream.health, "find_reserve_reason", lambda: "3 of 100 left")
    for result in (await setup.resolver.get_manifest(APP, TAG), await setup.resolver.head_manifest(APP, TAG)):
        assert (result.cache_status, result.warning) == (STALE, "3 of 100 left")
    assert setup.upstream.requests == []


@keys(offline=True)
async def test_offline_what_is_stored_is_served_if_it_is_complete(setup: Setup) -> None:
    """B38, B39."""
    await setup.world.cache.save_manifest(APP, ONE, TAG)
    setup.world.time += 10 * MAX_AGE
    for reference in (TAG, ONE.digest):
        assert (await setup.resolver.get_manifest(APP, reference)).cache_status is HIT
        assert (await setup.resolver.head_manifest(APP, reference)).cache_status is HIT
        assert setup.resolver.get_cached_manifest(APP, reference) is None
    setup.completeness.gap = "none of its 3 platform images is completely cached"
    with pytest.raises(ManifestUnknown, match="completely cached, and the mirror is offline"):
        await setup.resolver.get_manifest(APP, TAG)
    with pytest.raises(ManifestUnknown, match="not cached, and the mirror is offline") as caught:
        await setup.resolver.get_manifest(APP, TWO.digest)
    assert isinstance(caught.value.__cause__, UpstreamNotFound)
    assert setup.upstream.requests == []


async def test_a_stored_image_that_is_incomplete_raises_the_upstreams_error(setup: Setup) -> None:
    """B39: the circuit is open, so its blobs cannot be fetched."""
    await setup.resolver.get_manifest(APP, TAG)
    for _ in range(3):
        setup.upstream.health.note_failure(0, "status")
    assert (await setup.resolver.get_manifest(APP, TAG)).cache_status is HIT
    setup.completeness.gap = "0 of its 3 layers are cached"
    for reference in (TAG, ONE.digest):
        with pytest.raises(Exception, match="status") as caught:
            await setup.resolver.get_manifest(APP, reference)
        assert type(caught.value).__name__ == "UpstreamCircuitOpen"
