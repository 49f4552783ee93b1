"""A database that is lost, damaged or replaced: found out, put aside, made anew.

The rows of blobs are made from their files; tags and manifests are asked of their upstreams
again. A database in which SQLite finds no fault is never moved. One process at a time repairs,
by an exclusive ``flock``; the others notice that another file is there and connect to it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import quote

from regmirror.errors import ConfigError, RegmirrorError
from regmirror.files import locked, make_directory, tighten
from regmirror.metadata.database import Database
from regmirror.metadata.upgrade import REVISION, DatabaseDamaged, upgrade
from regmirror.oci.names import Digest

BATCH: Final = 1000  # rows written at once
#: Seconds until a collection looks at blobs whose manifests the lost database knew. Whatever is
#: pulled meanwhile is named by its manifest again; the rest may as well be fetched again.
RELEARN: Final = 7 * 86_400.0
NEEDED: Final = 1024 * 1024  # bytes without which SQLite cannot even open a database
BUSY: Final = 5.0  # seconds to wait for a lock of SQLite's while looking for damage
_COMPANIONS: Final = ("", "-wal", "-shm")
_MESSAGES: Final = ("malformed", "not a database", "no such table", "no such column", "readonly_dbmoved")

Scan = Callable[[], Iterable[tuple[Digest, int, float]]]
Say = Callable[[str], None]


class RecoveryFailed(RegmirrorError):
    """The database is gone or damaged, and no new one can be made."""


class DatabaseRecovery:
    """What it takes to bring back the database at ``path``.

    ``scan`` lists the stored blobs: digest, size, time they were stored. ``say`` is told in one
    line what was done. Its methods wait for the disk: use them in a thread.
    """

    def __init__(self, path: Path, quarantine: Path, scan: Scan, say: Say) -> None:
        self.path = path
        self._quarantine, self._scan, self._say = quarantine, scan, say

    def prepare(self) -> None:
        """Before anything opens it: create, migrate or replace the database.

        Raises ConfigError if it cannot be used, or belongs to a newer version. On a full disk it
        is left as it is: pulls go on without it, and ``repair`` does what is missing once it can.
        """
        with locked(_beside(self.path, ".lock"), wait=True):
            try:
                self._prepare()
            except (ConfigError, sqlite3.Error) as error:
                if not _is_full(self.path.parent):
                    if isinstance(error, ConfigError):
                        raise
                    reason = f"{self.path} cannot be made anew: {error}"
                    raise ConfigError("storage.path", str(self.path.parent), reason) from None
                self._say(f"the disk is full: the database {self.path} is not used until there is room")

    def _prepare(self) -> None:
        for suffix in _COMPANIONS:
            tighten(_beside(self.path, suffix))
        if not self.path.exists() or not self.path.stat().st_size:
            self._restore("was lost")
            return
        try:
            if old := upgrade(self.path):
                self._say(f"the database {self.path} was migrated from schema {old}")
        except DatabaseDamaged:
            if not (damage := find_damage(self.path)):
                raise
            self._restore(f"was damaged ({damage})")

    def repair(self) -> None:
        """While it may be in use: replace the database if it is gone or damaged.

        Does nothing while another process is at it.
        """
        with locked(_beside(self.path, ".lock"), wait=False) as is_mine:
            if not is_mine:
                return
            if not self.path.exists():
                self._restore("was lost")
            elif damage := find_damage(self.path):
                self._restore(f"was damaged ({damage})")
            elif is_older(self.path):  # the start may have left that undone
                upgrade(self.path)

    def _restore(self, what: str) -> None:
        """Build a new database beside the old one, which goes at the last moment."""
        new = self.path.with_name(f"{self.path.name}.new")
        for suffix in _COMPANIONS:
            _beside(new, suffix).unlink(missing_ok=True)
        upgrade(new)
        count = write_rows(new, self._scan())
        moved = self._put_aside()
        new.replace(self.path)
        if count or moved:
            kept = f" and is kept in {self._quarantine}" if moved else ""
            self._say(f"the database {self.path} {what}{kept}; a new one knows the {count} stored blobs")

    def _put_aside(self) -> bool:
        """Move the database and its companions, which must not be taken for the new one's."""
        stamp, moved = time.time_ns(), False
        for suffix in _COMPANIONS:
            old = _beside(self.path, suffix)
            if old.exists():
                make_directory(self._quarantine)
                old.replace(_beside(self._quarantine / f"{self.path.name}.{stamp}", suffix))
                moved = moved or not suffix
        return moved


class DatabaseMonitor:
    """Looks now and then whether the database is still the one that is connected to."""

    def __init__(self, database: Database, keeper: DatabaseRecovery) -> None:
        self._database, self._keeper = database, keeper
        self._known = _identity(database.path)

    async def check(self, *, is_suspect: bool = False) -> bool:
        """Whether another database is there now, to which everything has been connected anew.

        One look at the file; only a database that is gone or ``is_suspect`` is examined. Raises
        RecoveryFailed.
        """
        found = await asyncio.to_thread(_identity, self._database.path)
        if is_suspect or found is None:
            try:
                await asyncio.to_thread(self._keeper.repair)
            except (OSError, sqlite3.Error, ConfigError) as error:
                raise RecoveryFailed(f"the database cannot be repaired: {error}") from error
            found = await asyncio.to_thread(_identity, self._database.path)
        if found is None or (found == self._known and not is_suspect):
            return False
        is_another, self._known = found != self._known, found
        await self._database.reconnect()
        return is_another


def looks_damaged(message: str) -> bool:
    """Whether SQLite's words are those of a database that should be examined."""
    return any(words in message.lower() for words in _MESSAGES)


def find_damage(path: Path) -> str:
    """What is wrong with the database, in SQLite's words; empty if nothing, or if it cannot be told.

    Reads all of it.
    """
    try:
        with closing(_connect(path)) as opened:
            tables = opened.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables:
                return "it is empty"
            verdict = str(opened.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:  # locked, unreadable, no memory: that says nothing of its content
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if verdict == "ok" else " ".join(verdict.split())[:200]


def is_older(path: Path) -> bool:
    """Whether its schema is known to be older than that of this version."""
    try:
        with closing(_connect(path)) as opened:
            found = opened.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return False
    return found is not None and str(found[0]) < REVISION


def write_rows(path: Path, stored: Iterable[tuple[Digest, int, float]]) -> int:
    """Add a row for each stored blob to a database that nobody else uses yet; how many.

    A million take some seconds, and no more memory than a thousand.
    """
    count, now, found = 0, time.time(), iter(stored)
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.execute("PRAGMA journal_mode=DELETE")  # a million rows need not be written twice
        opened.execute("PRAGMA cache_size=-65536")
        opened.execute("BEGIN")
        while batch := [(str(digest), size, at) for digest, size, at in islice(found, BATCH)]:
            count += len(batch)
            opened.executemany(
                "INSERT OR IGNORE INTO blobs (digest, size, stored_at, pulled_at) VALUES (?1, ?2, ?3, ?3)",
                batch,
            )
            opened.executemany(
                "INSERT OR IGNORE INTO reviews (kind, repository_id, digest, since, due_at) "
                "VALUES ('blob', 0, ?1, ?2, ?3)",
                [(digest, now, now + RELEARN) for digest, _, _ in batch],
            )
        opened.execute("COMMIT")
        opened.execute("PRAGMA journal_mode=WAL")  # now, since later it has to wait for every reader
    return count


def _is_full(directory: Path) -> bool:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize < NEEDED


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
