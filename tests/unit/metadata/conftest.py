"""A migrated database for the tests of one module."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from regmirror.metadata.database import Database
from regmirror.metadata.sqlite import SqliteFile
from regmirror.metadata.upgrade import database_path, upgrade


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    upgrade(database_path(tmp_path))
    opened = Database(SqliteFile(database_path(tmp_path)).open_engines)
    yield opened
    await opened.close()
