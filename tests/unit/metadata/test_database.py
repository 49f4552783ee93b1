"""Connections: reads do not wait for writers, lists are bounded, and cancelled work ends."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import database as database_module
from regmirror.metadata import schema as t
from regmirror.metadata.database import LISTS_AT_ONCE, Database, ListsBusy, uncancellable

COUNT = sa.select(sa.func.count()).select_from(t.pins)


def pin(name: str) -> sa.Insert:
    return sa.insert(t.pins).values(pattern=name, pinned_at=1.0)


async def test_a_read_does_not_wait_for_a_write(database: Database) -> None:
    async with database.write_shared() as connection:
        await connection.execute(pin("a"))
        assert await database.first(COUNT) == (0,)
    assert await database.first(COUNT) == (1,)
    assert await database.all(sa.select(t.pins.c.pattern)) == [("a",)]
    assert await database.first(sa.select(t.tags.c.name)) is None


async def test_a_failed_transaction_writes_nothing(database: Database) -> None:
    async def write() -> None:
        async with database.write_shared() as connection:
            await connection.execute(pin("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write()
    assert await database.first(COUNT) == (0,)


async def test_a_cancelled_transaction_runs_to_its_end(database: Database) -> None:
    class Writer:
        def __init__(self) -> None:
            self.database, self.has_begun, self.may_end = database, asyncio.Event(), asyncio.Event()

        @uncancellable
        async def write(self) -> None:
            async with self.database.write_shared() as connection:
                self.has_begun.set()
                await self.may_end.wait()
                await connection.execute(pin("a"))

    writer = Writer()
    caller = asyncio.create_task(writer.write())
    await writer.has_begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    writer.may_end.set()
    await database.close()
    assert await database.first(COUNT) == (1,)


async def test_lists_beyond_the_limits_are_rejected(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "LIST_WAIT", 0.05)
    monkeypatch.setattr(database_module, "LISTS_WAITING", 1)
    may_end = asyncio.Event()

    async def work(connection: AsyncConnection) -> str:
        await may_end.wait()
        return "list"

    running = [asyncio.create_task(database.read_list(work)) for _ in range(LISTS_AT_ONCE)]
    await asyncio.sleep(0.01)
    waiting = asyncio.create_task(database.read_list(work))
    await asyncio.sleep(0)
    with pytest.raises(ListsBusy, match="1 lists are waiting for a connection"):
        await database.read_list(work)
    with pytest.raises(ListsBusy, match="no connection for lists became free"):
        await waiting
    may_end.set()
    assert await asyncio.gather(*running) == ["list"] * LISTS_AT_ONCE
    assert await database.read_list(work) == "list"
