"""Bringing a database to the schema of this version, before anything else opens it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final, cast

import sqlalchemy as sa

from regmirror.errors import ConfigError
from regmirror.files import create
from regmirror.metadata.vacuum import enable_incremental_vacuum

REVISION: Final = "0004"  # the newest script in migrations/versions
FILE_NAME: Final = "regmirror.db"


class DatabaseDamaged(ConfigError):
    """The file is no database, or its pages contradict each other."""


def database_path(storage: Path) -> Path:
    """Where SQLite keeps its file below ``storage.path``."""
    return storage / FILE_NAME


def upgrade(path: Path) -> str | None:
    """Create or migrate the database at ``path``; the schema it had if that was an older one.

    Raises DatabaseDamaged, or another ConfigError if it cannot be used.
    """
    # No isolation level: the driver else begins late, and runs DDL outside of its transactions.
    arguments = {"timeout": 30, "isolation_level": None}
    engine = sa.create_engine(f"sqlite:///{path}", connect_args=arguments)
    try:
        _create(path)
        with engine.connect() as connection:
            if not path.stat().st_size:
                enable_incremental_vacuum(_driver(connection))  # before anything is written
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            if _revision(connection) == REVISION:
                enable_incremental_vacuum(_driver(connection))  # an upgrade may have been killed before that
                return None
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # all or nothing, and one process at a time
            if (found := _revision(connection)) == REVISION:
                return None
            _migrate(connection, path)
            connection.commit()
            enable_incremental_vacuum(_driver(connection))
            return found
    except OSError as error:
        reason = f"{path} cannot be used: {(error.strerror or str(error)).lower()}"
        raise ConfigError("storage.path", str(path.parent), reason) from None
    except sa.exc.OperationalError as error:  # locked, read-only, in a directory of somebody else
        reason = f"{path} cannot be used: {error.orig}; see who owns it and who else uses it"
        raise ConfigError("storage.path", str(path.parent), reason) from None
    except sa.exc.DatabaseError as error:
        reason = f"{path} is damaged: {error.orig}; move it away to start with a new one"
        raise DatabaseDamaged("storage.path", str(path.parent), reason) from None
    finally:
        engine.dispose()


def _driver(connection: sa.Connection) -> sqlite3.Connection:
    return cast("sqlite3.Connection", connection.connection.driver_connection)


def _create(path: Path) -> None:
    """SQLite would let others read it; what it creates beside it has the modes of the file."""
    if not path.exists():
        os.close(create(path, os.O_RDWR))


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)


def _migrate(connection: sa.Connection, path: Path) -> None:
    from alembic import command  # slow to import, and needed once in a version's life
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        found = _revision(connection)
        reason = f"{path} was written by a newer version (schema {found}); install that version"
        raise ConfigError("storage.path", str(path.parent), reason) from None
