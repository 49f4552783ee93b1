"""Statements that differ between databases."""

from __future__ import annotations

import sqlalchemy as sa

from regmirror.metadata import schema as t
from regmirror.metadata.database import Database
from regmirror.metadata.dialect import greatest, insert, values_of


async def test_any_number_of_values_is_one_parameter(database: Database) -> None:
    texts = [f"sha256:{number}" for number in range(40_000)]
    query = sa.select(sa.func.count()).select_from(values_of(texts).subquery())
    assert await database.first(query) == (40_000,)


async def test_no_values_select_no_row(database: Database) -> None:
    assert await database.all(values_of([])) == []


async def test_the_greatest_of_the_values_of_a_row_is_selected(database: Database) -> None:
    query = sa.select(greatest(sa.literal(1.5), sa.literal(2.5)), greatest(sa.literal(3), sa.literal(2)))
    assert await database.first(query) == (2.5, 3)


async def test_a_row_that_exists_stays_as_it_is(database: Database) -> None:
    row = {"digest": "sha256:1", "size": 1, "stored_at": 1.0, "pulled_at": 1.0}
    async with database.write_shared() as connection:
        for size in (1, 2):
            await connection.execute(insert(t.blobs).on_conflict_do_nothing(), [row | {"size": size}])
    assert await database.all(sa.select(t.blobs.c.size)) == [(1,)]
