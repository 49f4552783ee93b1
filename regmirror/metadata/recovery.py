"""Recovery of a database that was lost or damaged: detect, quarantine, build a new one.

The rows of blobs are rebuilt from their files; tags and manifests are fetched from their upstreams
again. A database in which SQLite finds no damage is never moved. An exclusive ``flock`` lets one
process recover; the others notice that the file has changed and connect to the new one.
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

BATCH: Final = 1000  # rows in one statement
#: Seconds until a collection checks blobs whose manifests were lost with the database. The manifest of
#: an image that is pulled before then references them again; the others may be removed.
RELEARN: Final = 7 * 86_400.0
NEEDED: Final = 1024 * 1024  # bytes of free space that SQLite needs to open a database
BUSY: Final = 5.0  # seconds to wait for a lock of SQLite's during an examination
_COMPANIONS: Final = ("", "-wal", "-shm")
_MESSAGES: Final = ("malformed", "not a database", "no such table", "no such column", "readonly_dbmoved")

Scan = Callable[[], Iterable[tuple[Digest, int, float]]]
Log = Callable[[str], None]


class RecoveryFailed(RegmirrorError):
    """The database is lost or damaged, and no new one can be created."""


class DatabaseRecovery:
    """Recovery of the database at ``path``.

    ``scan`` lists the stored blobs: digest, size, time of storing. ``log`` logs one line for each
    recovery. The methods block on the disk and belong into a thread.
    """

    def __init__(self, path: Path, quarantine: Path, scan: Scan, log: Log) -> None:
        self.path = path
        self._quarantine, self._scan, self._log = quarantine, scan, log

    def prepare(self) -> None:
        """Create, migrate or replace the database, before anything opens it.

        Raises ConfigError if it cannot be used, or was written by a newer version. On a full disk it
        stays as it is: pulls continue without it, and ``repair`` completes the work later.
        """
        with locked(_beside(self.path, ".lock"), wait=True):
            try:
                self._prepare()
            except (ConfigError, sqlite3.Error) as error:
                if not _is_full(self.path.parent):
                    if isinstance(error, ConfigError):
                        raise
                    reason = f"no new database can be created at {self.path}: {error}"
                    raise ConfigError("storage.path", str(self.path.parent), reason) from None
                self._log(f"the disk is full: the database {self.path} is not used until there is room")

    def _prepare(self) -> None:
        for suffix in _COMPANIONS:
            tighten(_beside(self.path, suffix))
        if not self.path.exists() or not self.path.stat().st_size:
            self._restore("was lost")
            return
        try:
            if old := upgrade(self.path):
                self._log(f"the database {self.path} was migrated from schema {old}")
        except DatabaseDamaged:
            if not (damage := find_damage(self.path)):
                raise
            self._restore(f"was damaged ({damage})")

    def repair(self) -> None:
        """Replace the database, which may be in use, if it is lost or damaged.

        Does nothing while another process does this.
        """
        with locked(_beside(self.path, ".lock"), wait=False) as is_mine:
            if not is_mine:
                return
            if not self.path.exists():
                self._restore("was lost")
            elif damage := find_damage(self.path):
                self._restore(f"was damaged ({damage})")
            elif is_older(self.path):  # ``prepare`` does not migrate on a full disk
                upgrade(self.path)

    def _restore(self, what: str) -> None:
        """Build a new database beside the old one, and then replace that."""
        new = self.path.with_name(f"{self.path.name}.new")
        for suffix in _COMPANIONS:
            _beside(new, suffix).unlink(missing_ok=True)
        upgrade(new)
        count = write_rows(new, self._scan())
        moved = self._quarantine_files()
        new.replace(self.path)
        if count or moved:
            kept = f" and is kept in {self._quarantine}" if moved else ""
            self._log(f"the database {self.path} {what}{kept}; a new one knows the {count} stored blobs")

    def _quarantine_files(self) -> bool:
        """Move the database and its companions, which SQLite would apply to the new one."""
        stamp, moved = time.time_ns(), False
        for suffix in _COMPANIONS:
            old = _beside(self.path, suffix)
            if old.exists():
                make_directory(self._quarantine)
                old.replace(_beside(self._quarantine / f"{self.path.name}.{stamp}", suffix))
                moved = moved or not suffix
        return moved


class DatabaseMonitor:
    """Notices that the database was lost, damaged or replaced, and has it recovered."""

    def __init__(self, database: Database, recovery: DatabaseRecovery) -> None:
        self._database, self._recovery = database, recovery
        self._known = _identity(recovery.path)

    async def check(self, *, is_suspect: bool = False) -> bool:
        """Recover the database if it is lost or, with ``is_suspect``, damaged; reconnect if needed.

        Return whether another database has taken its place. Unless it is lost or suspect, this is one
        ``stat``. Raises RecoveryFailed.
        """
        found = await asyncio.to_thread(_identity, self._recovery.path)
        if is_suspect or found is None:
            try:
                await asyncio.to_thread(self._recovery.repair)
            except (OSError, sqlite3.Error, ConfigError) as error:
                raise RecoveryFailed(
                    f"the database {self._recovery.path} cannot be recovered: {error}"
                ) from error
            found = await asyncio.to_thread(_identity, self._recovery.path)
        if found is None or (found == self._known and not is_suspect):
            return False
        is_another, self._known = found != self._known, found
        await self._database.reconnect()
        return is_another


def looks_damaged(message: str) -> bool:
    """Whether this error message of SQLite is a reason to examine the database."""
    return any(words in message.lower() for words in _MESSAGES)


def find_damage(path: Path) -> str:
    """Return the damage that SQLite finds, in its words; empty if it finds none or cannot examine it.

    Reads the whole file.
    """
    try:
        with closing(_connect(path)) as opened:
            tables = opened.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if not tables:
                return "it is empty"
            verdict = str(opened.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:  # locked, unreadable or out of memory, but not damaged
        return ""
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if verdict == "ok" else " ".join(verdict.split())[:200]


def is_older(path: Path) -> bool:
    """Whether the schema is older than that of this version; False if it cannot be read."""
    try:
        with closing(_connect(path)) as opened:
            found = opened.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error:
        return False
    return found is not None and str(found[0]) < REVISION


def write_rows(path: Path, stored: Iterable[tuple[Digest, int, float]]) -> int:
    """Add a row for each stored blob to a database that nothing else uses; return the number of rows.

    Blobs are read and written in batches: a million take a few seconds and little memory.
    """
    count, now, found = 0, time.time(), iter(stored)
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.execute("PRAGMA journal_mode=DELETE")  # WAL would write every row twice
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
        opened.execute("PRAGMA journal_mode=WAL")  # while there is no reader to wait for
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
