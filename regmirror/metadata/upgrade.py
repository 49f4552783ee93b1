"""Upgrade of the database to the schema of this version, before anything else opens it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final, cast

import sqlalchemy as sa

from regmirror.errors import ConfigError
from regmirror.files import create
from regmirror.metadata.sqlite import enable_incremental_vacuum

REVISION: Final = "0004"  # the newest script in migrations/versions
FILE_NAME: Final = "regmirror.db"


class DatabaseDamaged(ConfigError):
    """The file is not a database, or its pages are inconsistent."""


def database_path(storage: Path) -> Path:
    """Return the path of the database below ``storage.path``."""
    return storage / FILE_NAME


def upgrade(path: Path) -> str | None:
    """Create or migrate the database at ``path``.

    Return the revision of its schema before a migration, or None if it was new or up to date. Raises
    DatabaseDamaged, or another ConfigError if the database cannot be used.
    """
    # With an isolation level the driver would run DDL outside of the transaction.
    arguments = {"timeout": 30, "isolation_level": None}
    engine = sa.create_engine(f"sqlite:///{path}", connect_args=arguments)
    try:
        _create(path)
        with engine.connect() as connection:
            if not path.stat().st_size:
                enable_incremental_vacuum(_driver(connection))  # takes effect only before the first write
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if _revision(connection) == REVISION:
                enable_incremental_vacuum(_driver(connection))  # an earlier upgrade may have been killed here
                return None
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # one process migrates, all or nothing
            if (found := _revision(connection)) == REVISION:
                return None
            _migrate(connection, path)
            connection.commit()
            enable_incremental_vacuum(_driver(connection))
            return found
    except OSError as error:
        reason = f"the database {path} cannot be used: {(error.strerror or str(error)).lower()}"
        raise ConfigError("storage.path", str(path.parent), reason) from None
    except sa.exc.OperationalError as error:  # locked, read-only, or in another user's directory
        remedy = "check its owner, and which other process uses it"
        reason = f"the database {path} cannot be used: {error.orig}; {remedy}"
        raise ConfigError("storage.path", str(path.parent), reason) from None
    except sa.exc.DatabaseError as error:
        reason = f"the database {path} is damaged: {error.orig}; move it away to start with a new one"
        raise DatabaseDamaged("storage.path", str(path.parent), reason) from None
    finally:
        engine.dispose()


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _create(path: Path) -> None:
    """Create the file without access for others; SQLite gives its companions the same mode."""
    if not path.exists():
        os.close(create(path, os.O_RDWR))


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def _migrate(connection: sa.Connection, path: Path) -> None:
    from alembic import command  # slow to import, and needed for migrations only
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        found = _revision(connection)
        reason = f"the database {path} was written by a newer version (schema {found}); install that version"
        raise ConfigError("storage.path", str(path.parent), reason) from None
