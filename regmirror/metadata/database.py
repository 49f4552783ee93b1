"""Connections to the database, and the ways it is used: a question, a list, a short transaction.

SQLite in WAL mode: readers never wait, writers take turns. Within a process a lock keeps the
writers in line without polling; between processes ``busy_timeout`` does.
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

#: Whatever goes wrong with a database.
DatabaseFailed = sa.exc.SQLAlchemyError

BUSY_TIMEOUT: Final = 10.0  # seconds a transaction waits for those of other processes
READ_TIMEOUT: Final = 1.0  # seconds a question waits, which it does only while the file is recovered
LISTS_AT_ONCE: Final = 2  # lists and figures that are read at the same time
LISTS_WAITING: Final = 32  # and that wait for their turn
LIST_WAIT: Final = 2.0  # seconds that one waits for its turn
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA journal_size_limit=8388608",  # the log is cut to that once it has been written back
)


class ListsBusy(DatabaseFailed):
    """So many lists are being read that another one has to come later."""


P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """The database at ``path``, already migrated (see ``upgrade``). Errors are SQLAlchemy's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader, self._lister, self._writer = self._engines()
        self._lock = asyncio.Lock()
        self._turns = asyncio.Semaphore(LISTS_AT_ONCE)
        self._waiting = 0  # for a turn to read a list
        self._running: set[asyncio.Task[Any]] = set()

    def _engines(self) -> tuple[AsyncEngine, AsyncEngine, AsyncEngine]:
        """For what pulls ask, for lists and figures, and for transactions that write.

        Lists have connections of their own, so that no number of them delays a pull.
        """
        # Never created here: an empty file would take the place of one that is being restored.
        url = f"sqlite+aiosqlite:///file:{quote(str(self.path))}?mode=rw&uri=true"
        return (
            _engine(url, pool_size=4, begin="BEGIN", timeout=READ_TIMEOUT),
            _engine(url, pool_size=LISTS_AT_ONCE, begin="BEGIN", timeout=READ_TIMEOUT),
            _engine(url, pool_size=1, begin="BEGIN IMMEDIATE", timeout=BUSY_TIMEOUT),
        )

    async def close(self) -> None:
        """Wait for what is running, and close every connection."""
        await self.reconnect()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def reconnect(self) -> None:
        """Have the next question open the file that is there now."""
        old, running = (self._reader, self._lister, self._writer), set(self._running)
        self._reader, self._lister, self._writer = self._engines()
        if running:  # what they use is theirs until they end, and would not be closed now
            self._begin(_dispose(old, after=running))
        else:
            await _dispose(old)

    async def first(self, query: Any) -> tuple[Any, ...] | None:
        """The first row of the answer."""
        return await self.run(self._first(query))

    async def all(self, query: Any) -> list[tuple[Any, ...]]:
        """Every row of the answer."""
        return await self.run(self._all(query))

    async def read_list(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """What ``work`` reads, which may be much, when it is its turn; raises ListsBusy."""
        await self._take_turn()
        return await self.run(self._read_list(work))  # gives the turn back

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that holds the write lock from its beginning to its end.

        To be used inside ``whole``.
        """
        async with self._lock, self._writer.begin() as connection:
            yield connection

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Work that goes on when its caller is cancelled: a driver's call that is broken off in
        the middle leaves a connection that nobody closes. ``close`` waits for what is running.
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
            task.exception()  # nobody may be left to be told

    async def _take_turn(self) -> None:
        if self._waiting >= LISTS_WAITING:
            raise ListsBusy("too many lists are wanted")
        self._waiting += 1
        try:
            async with asyncio.timeout(LIST_WAIT):
                await self._turns.acquire()
        except TimeoutError:
            raise ListsBusy("lists take too long") from None
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
    """A method that runs to its end even if its caller is cancelled (see ``Database.run``)."""

    @functools.wraps(method)
    async def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.database.run(method(self, *args, **kwargs))

    return run


async def _dispose(engines: Iterable[AsyncEngine], after: Iterable[asyncio.Task[Any]] = ()) -> None:
    """Close every connection, when the tasks that may use them have ended."""
    await asyncio.gather(*after, return_exceptions=True)
    for engine in engines:
        await engine.dispose()


def _engine(url: str, *, pool_size: int, begin: str, timeout: float) -> AsyncEngine:
    """An engine that sets SQLite's pragmas and begins transactions as it is told.

    The driver's own habit of beginning late is switched off (``isolation_level = None``), as
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
