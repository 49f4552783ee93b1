"""Writes for which nobody waits long (B44)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.metadata.bounded_access import QUEUED_BYTES, WriteQueue
from tests.mirror_fixture import wait_until


@pytest.fixture
def told() -> Any:
    return []


@pytest.fixture
def done() -> Any:
    return []


@pytest.fixture
async def writes(told: Any) -> AsyncIterator[Any]:
    writes = WriteQueue(told.append, deadline=0.02, limit=3)
    yield writes
    await writes.close()


@pytest.fixture
def lock() -> Any:
    """What a transaction waits for while another process holds the database."""
    return asyncio.Event()


async def quick(done: Any, name: str) -> None:
    done.append(name)


async def locked(done: Any, name: str, lock: Any) -> None:
    await lock.wait()
    done.append(name)


async def fail() -> None:
    raise OperationalError("INSERT", {}, Exception("database is locked"))


async def test_a_write_has_ended_when_its_caller_goes_on(writes: Any, done: Any) -> None:
    await writes.write(quick(done, "first"))
    assert done == ["first"]
    assert not writes.is_late


async def test_a_late_write_goes_on_without_its_caller(writes: Any, done: Any, lock: Any) -> None:
    """B44: the caller has not waited for the lock."""
    await writes.write(locked(done, "late", lock))
    assert done == []
    assert writes.is_late
    lock.set()
    await wait_until(lambda: not writes.is_late, "it has ended")
    assert done == ["late"]


async def test_while_one_is_late_the_others_wait_in_order(writes: Any, done: Any, lock: Any) -> None:
    """B44: at once, and they are written as soon as the database keeps up again."""
    await writes.write(locked(done, "late", lock))
    writes._deadline = 1_000  # nobody is to wait by now
    for name in ("second", "third"):
        await writes.write(quick(done, name))
    assert done == []
    lock.set()
    await wait_until(lambda: not writes.is_late, "they have ended")
    assert done == ["late", "second", "third"]
    await writes.write(quick(done, "fourth"))
    assert done[-1] == "fourth"


async def test_what_waits_is_bounded_and_what_is_dropped_is_told(
    writes: Any, done: Any, told: Any, lock: Any
) -> None:
    """B18, B44."""
    await writes.write(locked(done, "late", lock))
    for name in "abcde":
        await writes.write(quick(done, name))
    assert [str(error) for error in told] == ["not written: the queue is full with 3 writes"] * 2
    lock.set()
    await wait_until(lambda: not writes.is_late, "the rest has ended")
    assert done == ["late", "a", "b", "c"]


async def test_a_failure_is_told_and_nothing_else(writes: Any, done: Any, told: Any) -> None:
    """B44: no pull fails for it, and the next one is written."""
    await writes.write(fail())
    assert [str(error.orig) for error in told] == ["database is locked"]
    await writes.write(quick(done, "next"))
    assert done == ["next"]


async def test_one_that_waited_and_fails_stops_nobody(writes: Any, done: Any, told: Any, lock: Any) -> None:
    await writes.write(locked(done, "late", lock))
    await writes.write(fail())
    await writes.write(quick(done, "last"))
    lock.set()
    await wait_until(lambda: not writes.is_late, "all have ended")
    assert done == ["late", "last"]
    assert len(told) == 1


async def test_a_caller_that_is_cancelled_stops_no_write(writes: Any, done: Any, lock: Any) -> None:
    task = asyncio.create_task(writes.write(locked(done, "whole", lock)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    lock.set()
    await wait_until(lambda: bool(done), "it has ended")
    assert done == ["whole"]


async def test_closing_drops_what_has_not_begun(told: Any, done: Any, lock: Any) -> None:
    """B79: the end does not wait for a database that nobody can write."""
    writes = WriteQueue(told.append, deadline=0.02)
    await writes.write(locked(done, "late", lock))
    await writes.write(quick(done, "never"))
    await writes.close()
    assert done == []
    assert [str(error) for error in told] == ["not written: the server is stopping"]
    lock.set()
    await wait_until(lambda: done == ["late"], "what was running has ended")


async def test_writes_that_wait_hold_no_more_than_their_bytes(
    writes: Any, done: Any, lock: Any, told: Any
) -> None:
    """B100: a manifest of 8 MiB waits in each, and any client causes one."""
    await writes.write(locked(done, "late", lock))
    await writes.write(quick(done, "large"), QUEUED_BYTES)
    await writes.write(quick(done, "more"), 1)
    await writes.write(quick(done, "small"))
    assert len(told) == 1
    lock.set()
    await wait_until(lambda: not writes.is_late, "all are written")
    assert done == ["late", "large", "small"]
    await writes.write(quick(done, "again"), QUEUED_BYTES)
    assert done[-1] == "again"
