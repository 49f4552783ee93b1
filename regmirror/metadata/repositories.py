"""Rows of repositories: conditions and lookups that several modules need."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from regmirror.metadata import schema as t
from regmirror.metadata.dialect import insert
from regmirror.oci.names import Repository


def is_repository(repository: Repository) -> sa.ColumnElement[bool]:
    """Whether a row of ``repositories`` is the row of this repository."""
    row = t.repositories.c
    return sa.and_(row.upstream == repository.upstream, row.name == repository.name)


async def find_repository_id(connection: AsyncConnection, repository: Repository) -> int | None:
    """Return the id of the repository's row, or None if there is no row."""
    query = sa.select(t.repositories.c.id).where(is_repository(repository))
    found: int | None = (await connection.execute(query)).scalar()
    return found


async def get_repository_id(connection: AsyncConnection, repository: Repository) -> int:
    """Return the id of the repository's row, which is inserted if there is none."""
    found = await find_repository_id(connection, repository)
    if found is None:
        new = insert(t.repositories).values(upstream=repository.upstream, name=repository.name)
        found = (await connection.execute(new.returning(t.repositories.c.id))).scalar_one()
    return int(found)
