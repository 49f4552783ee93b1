"""Lists: from memory, from the upstream, or from the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.errors import ManifestUnknown, NameUnknown, UpstreamFailed, UpstreamNotFound
from regmirror.mirror.cache_status import HIT, MISS, STALE
from regmirror.mirror.json_list import JsonList
from regmirror.mirror.listings import REFERRERS_MAX_AGE, ListCache, Listings, _read_index
from regmirror.mirror.resolver import Resolver
from regmirror.oci.names import Tag
from tests.unit.mirror.world import APP, MAX_AGE, NAME, TAG, Complete, World, manifest

ONE = manifest()
FAILED = UpstreamFailed(NAME, "responded 500", reason="status")


class Setup:
    def __init__(self, root: Path, **freshness: Any) -> None:
        self.world = World(root, **freshness)
        self.upstream = self.world.upstream
        self.upstream.tags = ["b", "a", "b"]
        self.resolver = Resolver(
            metadata_cache=self.world.cache,
            upstream_access=self.world.access,
            completeness=Complete().as_completeness(),
            freshness=self.world.freshness,
            now=self.world.now,
        )
        self.listings = Listings(
            resolver=self.resolver,
            metadata_cache=self.world.cache,
            upstream_access=self.world.access,
            tag_max_age=MAX_AGE,
            clock=self.world.now,
            cache=ListCache(),
        )

    async def tags(self, **page: Any) -> tuple[bytes, object]:
        result = await self.listings.list_tags(APP, **page)
        return result.content.elements, result.cache_status


@pytest.fixture
async def setup(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path, **getattr(request, "param", {}))
    yield setup
    await setup.listings.close()
    await setup.resolver.close()
    await setup.world.close()


async def test_a_list_of_tags_is_sorted_and_kept_for_its_max_age(setup: Setup) -> None:
    assert await setup.tags() == (b'"a","b"', MISS)
    assert await setup.tags(limit=1) == (b'"a"', HIT)
    setup.world.time += MAX_AGE
    assert await setup.tags(last="a") == (b'"b"', MISS)


async def test_the_last_list_is_served_while_the_upstream_fails(setup: Setup) -> None:
    """B33."""
    await setup.tags()
    setup.world.time += MAX_AGE
    setup.upstream.error = FAILED
    assert await setup.tags() == (b'"a","b"', STALE)


async def test_stored_tags_are_served_while_the_upstream_fails(setup: Setup) -> None:
    """B33: also the page after the last of them, which is empty."""
    await setup.world.cache.save_manifest(APP, ONE, TAG)
    setup.upstream.error = FAILED
    assert await setup.tags() == (b'"1"', STALE)
    assert await setup.tags(last="1") == (b"", STALE)


async def test_without_a_stored_tag_the_upstreams_error_is_raised(setup: Setup) -> None:
    setup.upstream.error = FAILED
    with pytest.raises(UpstreamFailed):
        await setup.tags()


async def test_a_repository_that_the_upstream_no_longer_has_is_unknown(setup: Setup) -> None:
    """Its list in memory is dropped."""
    await setup.tags()
    setup.world.time += MAX_AGE
    setup.upstream.error = UpstreamNotFound(NAME, "has no team/app")
    with pytest.raises(NameUnknown):
        await setup.tags()
    setup.upstream.error = FAILED
    with pytest.raises(UpstreamFailed):
        await setup.tags()


@pytest.mark.parametrize("setup", [{"offline": True}], indirect=True)
async def test_offline_stored_tags_are_listed(setup: Setup) -> None:
    """B38."""
    with pytest.raises(NameUnknown, match="no tag is cached, and the mirror is offline"):
        await setup.tags()
    await setup.world.cache.save_manifest(APP, ONE, TAG)
    assert await setup.tags() == (b'"1"', HIT)
    assert not (await setup.listings.list_referrers(APP, ONE.digest)).content


async def test_referrers_come_from_the_api_of_the_upstream(setup: Setup) -> None:
    setup.upstream.referrers = [{"digest": "d"}]
    result = await setup.listings.list_referrers(APP, ONE.digest)
    assert (result.content.text, result.cache_status) == (b'{"digest":"d"}', MISS)
    setup.world.time += REFERRERS_MAX_AGE
    assert (await setup.listings.list_referrers(APP, ONE.digest)).cache_status is MISS


async def test_referrers_come_from_the_fallback_tag_of_an_upstream_without_the_api(setup: Setup) -> None:
    assert not (await setup.listings.list_referrers(APP, ONE.digest)).content
    tag = Tag(f"sha256-{ONE.digest.encoded}")
    with pytest.raises(ManifestUnknown):
        await setup.resolver.get_manifest(APP, tag)
    assert ("GET", tag) in setup.upstream.requests


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"manifests": [{"digest": "d"}, 5]}', b'{"digest":"d"}'),
        (b'{"manifests": 5}', b""),
        (b"{}", b""),
        (b"no document", b""),
    ],
)
def test_an_index_is_read_as_far_as_it_makes_sense(payload: bytes, expected: bytes) -> None:
    assert _read_index(payload) == JsonList(expected)
