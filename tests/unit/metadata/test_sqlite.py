"""Space in the database file that nothing needs any more."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from regmirror.metadata.sqlite import reclaim_space
from regmirror.metadata.upgrade import upgrade
from tests.unit.metadata.test_upgrade import make

SPARE = 100_000


def fill_and_empty(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.execute("CREATE TABLE something (content BLOB)")
        opened.execute("BEGIN")
        opened.executemany("INSERT INTO something VALUES (?)", [(bytes(4_000),)] * 1_500)
        opened.execute("COMMIT")
        opened.execute("DELETE FROM something")


@pytest.mark.parametrize("revision", [None, "0002"])
def test_a_database_shrinks_when_its_rows_are_gone(tmp_path: Path, revision: str | None) -> None:
    """B100: a new one, and one of a version that did not keep track of its pages."""
    path = tmp_path / "regmirror.db"
    if revision is not None:
        make(path, revision)
    upgrade(path)
    before = path.stat().st_size
    fill_and_empty(path)
    assert path.stat().st_size > 6_000_000
    reclaim_space(path, SPARE)
    assert path.stat().st_size <= before + 2 * SPARE
    with closing(sqlite3.connect(path)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_database_that_cannot_shrink_stays_as_it_is(tmp_path: Path) -> None:
    """B44: as one whose disk had no room to write it once more."""
    path = tmp_path / "other.db"
    fill_and_empty(path)
    before = path.stat().st_size
    reclaim_space(path, SPARE)
    assert path.stat().st_size == before


def test_a_database_that_is_gone_is_not_made(tmp_path: Path) -> None:
    """B44: it may be about to be restored."""
    reclaim_space(tmp_path / "absent.db", SPARE)
    assert list(tmp_path.iterdir()) == []
