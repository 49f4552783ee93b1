"""Migrations: each is one transaction, however it ends."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from regmirror.metadata import upgrade as module
from regmirror.metadata.upgrade import REVISION, upgrade

SCRIPTS = Path(module.__file__).parent / "migrations"
OLDER = [script.revision for script in ScriptDirectory(str(SCRIPTS)).walk_revisions()][1:]


class Killed(BaseException):
    """The process ends here."""


def make(path: str, revision: Any) -> None:
    """A database of an older version, with a row in most tables."""
    config, engine = Config(), sa.create_engine(f"sqlite:///{path}")
    config.set_main_option("script_location", str(SCRIPTS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        digest = "sha256:" + "a" * 64
        for statement in (
            "INSERT INTO repositories VALUES (1, 'docker.io', 'team/app')",
            f"INSERT INTO manifests VALUES ('{digest}', 'type', 'payload', 1)",
            (
                "INSERT INTO repository_manifests (repository_id, digest, stored_at, pulled_at) "
                f"VALUES (1, '{digest}', 1, 1)"
            ),
            f"INSERT INTO manifest_references VALUES ('{digest}', 0, 'sha256:{'b' * 64}', 'layer', 5, 1)",
            f"INSERT INTO blobs VALUES ('sha256:{'b' * 64}', 5, 1, 1)",
            f"INSERT INTO repository_blobs VALUES (1, 'sha256:{'b' * 64}', 1)",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()


@contextmanager
def killed_before(number: Any) -> Iterator[Any]:
    """Raise before the statement of this number; yields how many statements there were."""
    seen = []

    def count(*args: Any) -> None:
        seen.append(args[2])
        if len(seen) == number:
            raise Killed

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)


def content(path: str) -> Any:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(connection.iterdump())
    finally:
        connection.close()


@pytest.mark.parametrize("revision", OLDER)
def test_a_migration_that_is_killed_at_any_statement_is_done_at_the_next_start(
    tmp_path: Path, revision: Any
) -> None:
    """B7, B46: nothing of it is there before all of it is."""
    uncancellable = tmp_path / "whole.db"
    make(uncancellable, revision)
    before = content(uncancellable)
    with killed_before(0) as statements:
        assert upgrade(uncancellable) == revision
    after = content(uncancellable)
    assert REVISION in "".join(after)
    for number in range(1, len(statements) + 1):
        path = tmp_path / f"{number}.db"
        make(path, revision)
        with killed_before(number), pytest.raises(Killed):
            upgrade(path)
        assert content(path) == before
        assert upgrade(path) == revision
        assert content(path) == after


def test_a_process_that_is_killed_while_it_migrates_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    """B7: by SIGKILL, in the middle."""
    path = tmp_path / "regmirror.db"
    make(path, "0001")
    before = content(path)
    code = f"""
import os, signal, sqlalchemy as sa
from pathlib import Path
from regmirror.metadata.upgrade import upgrade
def kill(connection, cursor, statement, *rest):
    if "CREATE TABLE pins" in statement: os.kill(os.getpid(), signal.SIGKILL)
sa.event.listen(sa.Engine, "before_cursor_execute", kill)
upgrade(Path({str(path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=Path.cwd())
    assert ended.returncode == -signal.SIGKILL
    assert content(path) == before
    assert upgrade(path) == "0001"


def test_two_processes_that_migrate_take_turns(tmp_path: Path) -> None:
    """B46: the one that comes second finds it done."""
    path = tmp_path / "regmirror.db"
    make(path, "0001")
    done = []

    def migrate_first(*args: Any) -> None:
        if args[2] == "BEGIN IMMEDIATE" and not done:
            done.append(True)
            upgrade(path)

    sa.event.listen(sa.Engine, "before_cursor_execute", migrate_first)
    try:
        assert upgrade(path) is None
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", migrate_first)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == REVISION
    engine.dispose()
