"""The connection limiter."""

import asyncio
from typing import Any

import pytest

from regmirror.upstream.transport import ConnectionLimiter


async def acquire_now(slots: Any, *, is_bulk: Any) -> Any:
    """A slot if one is free, else None."""
    task = asyncio.ensure_future(slots.acquire(is_bulk=is_bulk))
    for _ in range(5):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        return None
    return task.result()


@pytest.mark.parametrize(("limit", "bulk"), [(1, 1), (2, 1), (8, 7), (64, 56)])
async def test_long_transfers_leave_slots_for_short_requests(limit: int, bulk: int) -> None:
    """B35: manifests do not queue behind blobs; the limit holds for both together."""
    slots = ConnectionLimiter(limit)
    held = [await acquire_now(slots, is_bulk=True) for _ in range(limit)]
    assert sum(release is not None for release in held) == bulk
    short = [await acquire_now(slots, is_bulk=False) for _ in range(limit)]
    assert sum(release is not None for release in short) == limit - bulk


async def test_a_slot_is_given_back_once() -> None:
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=True)
    release()
    release()
    assert await acquire_now(slots, is_bulk=True) is not None
    assert await acquire_now(slots, is_bulk=False) is None


async def test_who_is_cancelled_while_waiting_takes_nothing() -> None:
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=False)
    assert await acquire_now(slots, is_bulk=True) is None
    release()
    assert await acquire_now(slots, is_bulk=True) is not None


async def test_who_waits_for_a_slot_can_be_sent_away() -> None:
    """B34: and who has one keeps it."""
    slots = ConnectionLimiter(2)
    release = await slots.acquire(is_bulk=True)
    bulk = [asyncio.ensure_future(slots.acquire(is_bulk=True)) for _ in range(3)]
    await asyncio.sleep(0)
    slots.dismiss()
    found = await asyncio.gather(*bulk, return_exceptions=True)
    assert [type(item) for item in found] == [ConnectionLimiter.Dismissed] * 3
    release()
    (await slots.acquire(is_bulk=True))()
    assert (await slots.acquire(is_bulk=False)) is not None


async def test_a_slot_that_was_just_given_is_not_lost() -> None:
    """A dismissal at the very moment at which a slot becomes free."""
    slots = ConnectionLimiter(1)
    release = await slots.acquire(is_bulk=False)
    waiting = asyncio.ensure_future(slots.acquire(is_bulk=False))
    await asyncio.sleep(0)
    release()
    slots.dismiss()
    (found,) = await asyncio.gather(waiting, return_exceptions=True)
    if not isinstance(found, BaseException):
        found()
    async with asyncio.timeout(5):
        assert await slots.acquire(is_bulk=False) is not None
