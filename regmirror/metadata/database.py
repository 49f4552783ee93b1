"""Connections to the database for queries, lists and write transactions.

SQLite in WAL mode: readers never wait, and writers run one at a time. A lock orders the writers of a
process without polling; ``busy_timeout`` orders those of several processes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

#: The base class of every error of a database.
DatabaseFailed = sa.exc.SQLAlchemyError

BUSY_TIMEOUT: Final = 10.0  # seconds a transaction waits for those of other processes
READ_TIMEOUT: Final = 1.0  # seconds a query waits for a lock, which exists only during recovery
LISTS_AT_ONCE: Final = 2  # lists that are read at the same time
LISTS_WAITING: Final = 32  # lists that wait for a connection
LIST_WAIT: Final = 2.0  # seconds that a list waits for a connection
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA journal_size_limit=8388608",  # size of the log file after a checkpoint
)


class ListsBusy(DatabaseFailed):
    """Too many lists are being read; the client has to retry later."""


P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The database at ``path``, which ``upgrade`` has migrated. Errors are SQLAlchemy's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader, self._lister, self._writer = self._engines()
        self._lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(LISTS_AT_ONCE)
        self._waiting = 0  # lists that wait for a connection
        self._running: set[asyncio.Task[Any]] = set()

    def _engines(self) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
        """Create the engines for queries of pulls, for lists, and for write transactions.

        Lists have connections of their own, so that no number of them delays a pull.
        """
        # mode=rw creates no file: an empty one would take the place of a database that is being restored.
        url = f"sqlite+aiosqlite:///file:{quote(str(self.path))}?mode=rw&uri=true"
        return (
            _engine(url, pool_size=4, begin="BEGIN", timeout=READ_TIMEOUT),
            _engine(url, pool_size=LISTS_AT_ONCE, begin="BEGIN", timeout=READ_TIMEOUT),
            _engine(url, pool_size=1, begin="BEGIN IMMEDIATE", timeout=BUSY_TIMEOUT),
        )

    async def close(self) -> None:
        """Wait for running queries and transactions, and close every connection."""
        await self.reconnect()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def reconnect(self) -> None:
        """Let following queries open the file that is at ``path`` now."""
        old, running = (self._reader, self._lister, self._writer), set(self._running)
        self._reader, self._lister, self._writer = self._engines()
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
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction that owns the write lock from its first to its last statement.

        For use in ``uncancellable`` methods.
        """
        async with self._lock, self._writer.begin() as connection:
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
            async with self._lister.connect() as connection:
                return await work(connection)
        finally:
            self._turns.release()

    async def _first(self, query: Any) -> tuple[Any, ...] | None:
        async with self._reader.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else tuple(row)

    async def _all(self, query: Any) -> list[tuple[Any, ...]]:
        async with self._reader.connect() as connection:
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


def _engine(url: str, *, pool_size: int, begin: str, timeout: float) -> AsyncEngine:
    """Create an engine that sets SQLite's pragmas and begins transactions with ``begin``.

    ``isolation_level = None`` keeps the driver from beginning a transaction only at its first write, as
    SQLAlchemy's documentation advises for SQLite.
    """
    engine = create_async_engine(url, pool_size=pool_size, max_overflow=0)

    @sa.event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (f"PRAGMA busy_timeout={int(timeout * 1000)}", *_PRAGMAS):
            cursor.execute(pragma)
        cursor.close()

    @sa.event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
