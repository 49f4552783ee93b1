"""The connection limiter."""

import asyncio
from typing import Any

import pytest

from regmirror.upstream.transport import ConnectionLimiter


async def acquire_now(limiter: Any, *, is_bulk: Any) -> Any:
    """The release of a connection if one is free, else None."""
    task = asyncio.ensure_future(limiter.acquire(is_bulk=is_bulk))
    for _ in range(5):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        return None
    return task.result()


@pytest.mark.parametrize(("limit", "bulk"), [(1, 1), (2, 1), (8, 7), (64, 56)])
async def test_long_transfers_leave_slots_for_short_requests(limit: int, bulk: int) -> None:
    """B35: manifests do not queue behind blobs; the limit holds for both together."""
    limiter = ConnectionLimiter(limit)
    held = [await acquire_now(limiter, is_bulk=True) for _ in range(limit)]
    assert sum(release is not None for release in held) == bulk
    short = [await acquire_now(limiter, is_bulk=False) for _ in range(limit)]
    assert sum(release is not None for release in short) == limit - bulk


async def test_a_connection_is_released_once() -> None:
    limiter = ConnectionLimiter(1)
    release = await limiter.acquire(is_bulk=True)
    release()
    release()
    assert await acquire_now(limiter, is_bulk=True) is not None
    assert await acquire_now(limiter, is_bulk=False) is None


async def test_a_waiting_request_that_is_cancelled_takes_no_connection() -> None:
    limiter = ConnectionLimiter(1)
    release = await limiter.acquire(is_bulk=False)
    assert await acquire_now(limiter, is_bulk=True) is None
    release()
    assert await acquire_now(limiter, is_bulk=True) is not None


async def test_waiting_requests_can_be_dismissed() -> None:
    """B34: those in flight keep their connections."""
    limiter = ConnectionLimiter(2)
    release = await limiter.acquire(is_bulk=True)
    bulk = [asyncio.ensure_future(limiter.acquire(is_bulk=True)) for _ in range(3)]
    await asyncio.sleep(0)
    limiter.dismiss()
    found = await asyncio.gather(*bulk, return_exceptions=True)
    assert [type(item) for item in found] == [ConnectionLimiter.Dismissed] * 3
    release()
    (await limiter.acquire(is_bulk=True))()
    assert (await limiter.acquire(is_bulk=False)) is not None


async def test_a_connection_released_during_a_dismissal_is_not_lost() -> None:
    """A dismissal at the moment at which a connection is released."""
    limiter = ConnectionLimiter(1)
    release = await limiter.acquire(is_bulk=False)
    waiting = asyncio.ensure_future(limiter.acquire(is_bulk=False))
    await asyncio.sleep(0)
    release()
    limiter.dismiss()
    (found,) = await asyncio.gather(waiting, return_exceptions=True)
    if not isinstance(found, BaseException):
        found()
    async with asyncio.timeout(5):
        assert await limiter.acquire(is_bulk=False) is not None
