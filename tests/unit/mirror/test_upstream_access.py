"""Sharing of upstream requests, deadlines of clients, and the negative cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from regmirror.errors import (
    BlobUnknown,
    ManifestUnknown,
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamNotFound,
    UpstreamTimeout,
)
from regmirror.metadata.bounded_access import tracking_reads
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, CachedResult, CacheStatus
from regmirror.mirror.upstream_access import UpstreamAccess
from regmirror.oci.names import Digest
from regmirror.singleflight import SingleFlight
from regmirror.upstream.client import UpstreamClient
from tests.unit.mirror.world import APP, NAME, TAG, World

DIGEST = Digest("sha256:" + "0" * 64)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


def access(world: World, **deadlines: Any) -> UpstreamAccess:
    upstreams = cast("Mapping[str, UpstreamClient]", {NAME: world.upstream})
    return UpstreamAccess(world.cache, upstreams, **{"offline": False, **deadlines})


async def forever() -> CachedResult[int]:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def test_concurrent_requests_share_one_piece_of_work(world: World) -> None:
    """B12: those that join a miss are counted as coalesced, those that join a hit are not."""
    flight: SingleFlight[Any, CachedResult[int]] = SingleFlight()
    calls: list[CacheStatus] = []

    async def find(status: CacheStatus) -> list[CacheStatus]:
        async def work() -> CachedResult[int]:
            calls.append(status)
            await asyncio.sleep(0)
            return CachedResult(1, status)

        found = await asyncio.gather(*(world.access.share(flight, (APP, TAG), work) for _ in range(3)))
        return [item.cache_status for item in found]

    assert await find(MISS) == [MISS, COALESCED, COALESCED]
    assert await find(HIT) == [HIT, HIT, HIT]
    assert calls == [MISS, HIT]


@pytest.mark.parametrize("error", [UpstreamNotFound, UpstreamDenied])
async def test_what_the_upstream_does_not_have_is_not_requested_again_for_a_while(
    world: World, error: type[UpstreamNotFound | UpstreamDenied]
) -> None:
    """B28: clients see neither its challenge nor the difference between missing and denied."""
    flight: SingleFlight[Any, CachedResult[int]] = SingleFlight()
    calls = []

    async def work() -> CachedResult[int]:
        calls.append(1)
        raise error(NAME, "has no such tag")

    for _ in range(2):
        with pytest.raises(ManifestUnknown, match="has no such tag") as caught:
            await world.access.share(flight, (APP, TAG), work)
        assert caught.value.is_definite
    assert calls == [1]


@pytest.mark.parametrize(("is_noted", "calls"), [(False, 1), (True, 2)])
async def test_a_digest_that_may_be_stored_is_not_remembered_as_missing(
    world: World, is_noted: bool, calls: int
) -> None:
    """B44: without the database nobody knows."""
    flight: SingleFlight[Any, CachedResult[int]] = SingleFlight()
    made = []

    async def work() -> CachedResult[int]:
        made.append(1)
        raise UpstreamNotFound(NAME, "has no such blob")

    for _ in range(2):
        with tracking_reads() as doubt:
            doubt.has_failed = is_noted
            with pytest.raises(BlobUnknown) as caught:
                await world.access.share(flight, (APP, DIGEST), work, BlobUnknown)
    assert len(made) == calls
    assert caught.value.is_definite is not is_noted


async def test_offline_no_client_is_returned_and_nothing_waits_for_a_deadline(world: World) -> None:
    """B38."""
    offline = access(world, offline=True, cold_deadline=0)
    with pytest.raises(UpstreamNotFound, match="not cached, and the mirror is offline"):
        offline.get_client(APP)
    unavailability = offline.find_unavailability(APP)
    assert isinstance(unavailability, UpstreamNotFound)
    assert unavailability.reason == "offline"
    assert await offline.with_deadline(APP, lambda: asyncio.sleep(0.01, 7)) == 7


async def test_an_open_circuit_makes_blobs_unavailable(world: World) -> None:
    """B33."""
    assert world.access.find_unavailability(APP) is None
    for _ in range(3):
        world.upstream.health.note_failure(0, "status")
    assert isinstance(world.access.find_unavailability(APP), UpstreamCircuitOpen)
    async with asyncio.timeout(5):
        with pytest.raises(UpstreamCircuitOpen):
            await world.access.with_deadline(APP, forever)


async def test_a_timeout_inside_the_request_is_raised_as_it_is(world: World) -> None:
    async def fail() -> int:
        raise TimeoutError("of the request itself")

    with pytest.raises(TimeoutError, match="of the request itself"):
        await world.access.with_deadline(APP, fail)


@pytest.mark.parametrize(("has_stale", "waits"), [(True, 1), (False, 2)])
async def test_activity_extends_the_deadline_only_without_a_stale_response(
    world: World, has_stale: bool, waits: int
) -> None:
    """B34: the activity is of the same repository and subject."""
    health, calls = world.upstream.health, []

    async def wait() -> int:
        calls.append(1)
        if len(calls) == 1:
            health.note_activity(APP.name, TAG, is_upstream=True)
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with asyncio.timeout(10):
        with pytest.raises(UpstreamTimeout) as caught:
            await access(world, stale_deadline=0.05, cold_deadline=0.05).with_deadline(
                APP, wait, has_stale=has_stale, subject=TAG
            )
    assert caught.value.reason == "slow"
    assert len(calls) == waits
    assert not health.is_open()


async def test_the_work_continues_after_the_deadline(world: World) -> None:
    """B35: the next request joins it, and its deadline counts from the start of the work."""
    flight: SingleFlight[Any, CachedResult[int]] = SingleFlight()
    short, gate = access(world, cold_deadline=0.01), asyncio.Event()

    async def work() -> CachedResult[int]:
        await gate.wait()
        return CachedResult(7, MISS)

    with pytest.raises(UpstreamTimeout):
        await short.share(flight, (APP, TAG), work)
    asyncio.get_running_loop().call_later(0.01, gate.set)
    assert (await short.share(flight, (APP, TAG), forever)).content == 7
