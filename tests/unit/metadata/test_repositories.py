"""Rows of repositories are found by both parts of their name, and inserted once."""

from __future__ import annotations

from pathlib import Path

from regmirror.metadata.database import Database
from regmirror.metadata.repositories import find_repository_id, get_repository_id
from regmirror.metadata.sqlite import SqliteFile
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.names import Repository

APP = Repository("registry.test", "team/app")


async def test_a_row_is_inserted_once_and_found_by_upstream_and_name(tmp_path: Path) -> None:
    upgrade(database_path(tmp_path))
    database = Database(SqliteFile(database_path(tmp_path)).open_engines)
    try:
        async with database.write_shared() as connection:
            assert await find_repository_id(connection, APP) is None
            first = await get_repository_id(connection, APP)
            assert await get_repository_id(connection, APP) == first
            assert await find_repository_id(connection, APP) == first
            for other in (Repository("other.test", APP.name), Repository(APP.upstream, "team")):
                assert await find_repository_id(connection, other) is None
                assert await get_repository_id(connection, other) != first
    finally:
        await database.close()
