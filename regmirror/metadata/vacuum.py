"""Vacuum: return the space of deleted rows to the file system, which SQLite alone does not do."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

SPARE: Final = 4 * 1024 * 1024  # free bytes that stay in the file for new rows
STEP: Final = 1000  # pages in one transaction, during which other writers wait
BUSY: Final = 5.0  # seconds to wait for another writer


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
    with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(name, uri=True, timeout=BUSY)) as opened:
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
