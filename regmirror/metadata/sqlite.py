"""SQLite: the database is one file, read by many processes and written by one at a time.

WAL mode: readers never wait. ``BEGIN IMMEDIATE`` takes the write lock before the first statement, and
``busy_timeout`` orders the writers of several processes.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from regmirror.metadata.database import LISTS_AT_ONCE, Engines

SPARE: Final = 4 * 1024 * 1024  # free bytes that stay in the file for new rows
STEP: Final = 1000  # pages in one transaction, during which other writers wait
VACUUM_TIMEOUT: Final = 5.0  # seconds that a vacuum waits for another writer
BUSY_TIMEOUT: Final = 10.0  # seconds a transaction waits for those of other processes
READ_TIMEOUT: Final = 1.0  # seconds a query waits for a lock, which exists only during recovery
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA journal_size_limit=8388608",  # size of the log file after a checkpoint
)


@dataclass(frozen=True)
class SqliteFile:
    """The database file at ``path``, which ``upgrade`` has migrated."""

    path: Path

    def open_engines(self) -> Engines:
        """Create the engines for the file that is at ``path`` now."""
        # mode=rw creates no file: an empty one would take the place of a database that is being restored.
        url = f"sqlite+aiosqlite:///file:{quote(str(self.path))}?mode=rw&uri=true"
        return Engines(
            reader=_engine(url, pool_size=4, begin="BEGIN", timeout=READ_TIMEOUT),
            lister=_engine(url, pool_size=LISTS_AT_ONCE, begin="BEGIN", timeout=READ_TIMEOUT),
            writer=_engine(url, pool_size=1, begin="BEGIN IMMEDIATE", timeout=BUSY_TIMEOUT),
        )


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open the database read-only.

    In a directory that is not writable, SQLite cannot create the shared memory of readers and writers.
    A database that no process has open can be read there as immutable.
    """
    name = f"file:{quote(str(path.absolute()))}?mode=ro"
    idle = not path.with_name(path.name + "-wal").exists()
    if idle and not os.access(path.parent, os.W_OK):
        name += "&immutable=1"
    connection = sqlite3.connect(name, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    connection.execute("PRAGMA query_only=ON")
    return connection


def enable_incremental_vacuum(connection: sqlite3.Connection) -> None:
    """Set ``auto_vacuum=INCREMENTAL``, which ``reclaim_space`` needs.

    An existing database has to be rewritten once. If that fails, because the disk is full or another
    process uses the database, it stays as it is and SQLite only reuses the space.
    """
    if _value(connection, "auto_vacuum"):
        return
    is_new = not _value(connection, "page_count")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    if not is_new:
        with suppress(sqlite3.Error):
            connection.execute("VACUUM")


def reclaim_space(path: Path, spare: int = SPARE) -> None:
    """Return free pages to the file system, except ``spare`` bytes. Errors are ignored."""
    name = f"file:{quote(str(path))}?mode=rw"
    with (
        suppress(sqlite3.Error, OSError),
        closing(sqlite3.connect(name, uri=True, timeout=VACUUM_TIMEOUT)) as opened,
    ):
        page_size = _value(opened, "page_size")
        kept, free, before = spare // page_size, _value(opened, "freelist_count"), None
        while free > kept and free != before:  # without auto_vacuum there is no progress
            # ``execute`` would free one page only: it fetches no row, and each row frees a page.
            opened.executescript(f"PRAGMA incremental_vacuum({min(free - kept, STEP)})")
            before, free = free, _value(opened, "freelist_count")
        # A checkpoint of the whole log truncates the file.
        if path.stat().st_size > _value(opened, "page_count") * page_size:
            opened.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _value(opened: sqlite3.Connection, pragma: str) -> int:
    return int(opened.execute(f"PRAGMA {pragma}").fetchone()[0])


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
