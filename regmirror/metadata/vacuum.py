"""Giving space back that deleted rows had: SQLite uses it again, but keeps it in the file."""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

SPARE: Final = 4 * 1024 * 1024  # bytes left in the file for rows to come
STEP: Final = 1000  # pages in one transaction, for which other writers wait
BUSY: Final = 5.0  # seconds to wait for another writer


def enable_incremental_vacuum(connection: sqlite3.Connection) -> None:
    """Have SQLite keep track of its pages, so that ``reclaim_space`` can work.

    A new database gets that for nothing. One that was made without is written once more, if the disk
    has room for it and nobody else uses it; otherwise SQLite only reuses the space.
    """
    if _value(connection, "auto_vacuum"):
        return
    is_new = not _value(connection, "page_count")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    if not is_new:
        with suppress(sqlite3.Error):
            connection.execute("VACUUM")


def reclaim_space(path: Path, spare: int = SPARE) -> None:
    """Give free pages back to the file system, all but ``spare`` bytes; best effort."""
    name = f"file:{quote(str(path))}?mode=rw"
    with suppress(sqlite3.Error, OSError), closing(sqlite3.connect(name, uri=True, timeout=BUSY)) as opened:
        page_size = _value(opened, "page_size")
        kept, free, before = spare // page_size, _value(opened, "freelist_count"), None
        while free > kept and free != before:  # no progress without auto_vacuum
            # ``execute`` would make one step, which is one page.
            opened.executescript(f"PRAGMA incremental_vacuum({min(free - kept, STEP)})")
            before, free = free, _value(opened, "freelist_count")
        # The file itself shrinks when all of the log is written back.
        if path.stat().st_size > _value(opened, "page_count") * page_size:
            opened.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _value(opened: sqlite3.Connection, pragma: str) -> int:
    return int(opened.execute(f"PRAGMA {pragma}").fetchone()[0])
