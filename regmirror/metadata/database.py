"""Connections to the database for queries, lists and write transactions.

A lock orders the writers of a process without polling. What depends on the kind of database is in
``sqlite.py`` and ``dialect.py``.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

#: The base class of every error of a database.
DatabaseFailed = sa.exc.SQLAlchemyError

LISTS_AT_ONCE: Final = 2  # lists that are read at the same time
LISTS_WAITING: Final = 32  # lists that wait for a connection
LIST_WAIT: Final = 2.0  # seconds that a list waits for a connection


class ListsBusy(DatabaseFailed):
    """Too many lists are being read; the client has to retry later."""


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The engines for queries of pulls, for lists, and for write transactions.

    Lists have connections of their own, so that no number of them delays a pull.
    """

    reader: AsyncEngine
    lister: AsyncEngine
    writer: AsyncEngine


class Database:
    """A database, reached by the engines that ``open_engines`` creates. Errors are SQLAlchemy's."""

    def __init__(self, open_engines: Callable[[], Engines]) -> None:
        self._open_engines, self._engines = open_engines, open_engines()
        self._lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(LISTS_AT_ONCE)
        self._waiting = 0  # lists that wait for a connection
        self._running: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Wait for running queries and transactions, and close every connection."""
        await self.reconnect()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def reconnect(self) -> None:
        """Let following queries use new connections, to the database that is there now."""
        engines, running = self._engines, set(self._running)
        old = (engines.reader, engines.lister, engines.writer)
        self._engines = self._open_engines()
        if running:  # their connections are checked out, and dispose() would leave them open
            self._begin(_dispose(old, after=running))
        else:
            await _dispose(old)

    async def first(self, query: Any) -> tuple[Any, ...] | None:
        """Return the first row of the result, or None."""
        return await self.run(self._first(query))

    async def all(self, query: Any) -> list[tuple[Any, ...]]:
        """Return every row of the result."""
        return await self.run(self._all(query))

    async def read_list(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run ``work``, which may read many rows, on a connection for lists. Raises ListsBusy."""
        await self._take_turn()
        return await self.run(self._read_list(work))  # which releases the turn

    @asynccontextmanager
    async def write_shared(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction of a pull. It adds or confirms content, in parallel with other pulls.

        For use in ``uncancellable`` methods. SQLite runs one write transaction at a time, so it owns
        the write lock from its first to its last statement.
        """
        async with self._lock, self._engines.writer.begin() as connection:
            yield connection

    @asynccontextmanager
    async def write_exclusive(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that removes content or depends on its absence: no pull writes meanwhile.

        Collection, eviction and purge use it, in ``uncancellable`` methods.
        """
        async with self._lock, self._engines.writer.begin() as connection:
            yield connection

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end even if its caller is cancelled, and return its result.

        A cancelled call of the driver would leave a connection open. ``close`` waits for all work.
        """
        return await asyncio.shield(self._begin(work))

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved here, since the caller may have left

    async def _take_turn(self) -> None:
        if self._waiting >= LISTS_WAITING:
            raise ListsBusy(f"{LISTS_WAITING} lists are waiting for a connection")
        self._waiting += 1
        try:
            async with asyncio.timeout(LIST_WAIT):
                await self._turns.acquire()
        except TimeoutError:
            raise ListsBusy(f"no connection for lists became free within {LIST_WAIT:g} s") from None
        finally:
            self._waiting -= 1

    async def _read_list(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with self._engines.lister.connect() as connection:
                return await work(connection)
        finally:
            self._turns.release()

    async def _first(self, query: Any) -> tuple[Any, ...] | None:
        async with self._engines.reader.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else tuple(row)

    async def _all(self, query: Any) -> list[tuple[Any, ...]]:
        async with self._engines.reader.connect() as connection:
            return [tuple(row) for row in await connection.execute(query)]


class _HasDatabase(Protocol):
    database: Database


S = TypeVar("S", bound=_HasDatabase)


def uncancellable(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Decorate a method to run to its end even if its caller is cancelled (see ``Database.run``)."""

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.run(method(self, *args, **kwargs))

    return run


async def _dispose(engines: Iterable[AsyncEngine], after: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Close every connection after the tasks that may use them have ended."""
    await asyncio.gather(*after, return_exceptions=True)
    for engine in engines:
        await engine.dispose()
