"""Reads of the database: one that is late is nobody else's matter, and no answer is not a no."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.metadata import bounded_access as reads
from regmirror.metadata.bounded_access import READS_MAX, BoundedReads, has_failed_read, tracking_reads
from tests.mirror_fixture import wait_until


class World:
    """A database whose reads and pings wait for events."""

    def __init__(self) -> None:
        self.told, self.begun = [], 0
        self.answer, self.pong = asyncio.Event(), asyncio.Event()
        self.reads = BoundedReads(self.told.append, self.ping)

    async def ping(self) -> None:
        await self.pong.wait()

    async def read(self) -> Any:
        self.begun += 1
        await self.answer.wait()
        return "answer"

    async def end(self) -> None:
        self.answer.set()
        self.pong.set()
        await wait_until(lambda: not len(self.reads), "every read has ended")
        await self.reads.close()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(reads, "READ_DEADLINE", 0.01)
    monkeypatch.setattr(reads, "PING_DEADLINE", 1_000)
    world = World()
    yield world
    await world.end()


async def quick() -> Any:
    return "quick"


async def failing() -> None:
    raise OperationalError("SELECT", {}, Exception("disk I/O error"))


async def test_one_late_read_delays_nobody_else(world: Any) -> None:
    """B44: the others are answered, while the database answers."""
    assert await world.reads.find(world.read()) is None
    assert await world.reads.find(quick()) == "quick"
    assert await world.reads.find(quick()) == "quick"
    assert [str(error) for error in world.told] == ["the database does not answer"]


async def test_a_database_that_answers_no_ping_is_not_waited_for(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B34, B44: else each read of each pull would wait, and clients fall back after 3 s."""
    await world.reads.find(world.read())
    monkeypatch.setattr(reads, "PING_DEADLINE", 0)
    monkeypatch.setattr(reads, "READ_DEADLINE", 1_000)
    assert await world.reads.find(world.read()) is None
    assert world.begun == 1
    world.pong.set()
    world.answer.set()
    await wait_until(lambda: not world.reads.is_stuck, "the ping is answered")
    assert await world.reads.find(world.read()) == "answer"


async def test_late_reads_are_bounded(world: Any) -> None:
    """B100: each holds memory until the database answers."""
    await asyncio.gather(*(world.reads.find(world.read()) for _ in range(READS_MAX + 5)))
    assert world.begun == len(world.reads) == READS_MAX


async def test_a_read_without_an_answer_puts_its_request_in_doubt(world: Any) -> None:
    """B44: the request alone that met it, and the work that it began."""
    with tracking_reads() as sure:
        await world.reads.find(quick())
        assert not has_failed_read()
    for question in (failing, world.read):
        with tracking_reads() as doubt:
            assert await asyncio.create_task(world.reads.find(question())) is None
            assert has_failed_read()
        assert doubt.has_failed
    assert not sure.has_failed
    assert not has_failed_read()
