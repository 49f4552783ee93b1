"""Schema: the tables of the code are those that the migrations create."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from regmirror.metadata import schema
from regmirror.metadata.database import Database


async def test_the_migrations_create_every_table(database: Database) -> None:
    query = sa.text("SELECT name FROM sqlite_master WHERE type = 'table'")
    created = {name for (name,) in await database.all(query)} - {"alembic_version"}
    assert created == {*schema.metadata.tables}


@pytest.mark.parametrize("table", schema.metadata.sorted_tables, ids=lambda table: table.name)
async def test_the_migrations_create_every_column(database: Database, table: sa.Table) -> None:
    query = sa.text("SELECT name, pk FROM pragma_table_info(:table)").bindparams(table=table.name)
    rows = await database.all(query)
    assert {name for name, _ in rows} == {column.name for column in table.columns}
    assert {name for name, pk in rows if pk} == {column.name for column in table.primary_key}


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (schema.gc_queue, "reviews"),
        (schema.pending_removals, "removals"),
        (schema.maintenance_runs, "chores"),
    ],
)
def test_tables_keep_the_names_that_older_versions_know(table: sa.Table, name: str) -> None:
    """Otherwise a database could not be used by the version before."""
    assert table.name == name
