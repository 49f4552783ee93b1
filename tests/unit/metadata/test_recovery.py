"""A database that is lost, damaged or replaced (B46): what is moved, what is made anew, what is spared."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from regmirror.errors import ConfigError
from regmirror.metadata.recovery import DatabaseMonitor, DatabaseRecovery, find_damage, looks_damaged
from regmirror.metadata.store import MetadataStore
from regmirror.oci.names import Digest
from tests.mirror_fixture import wait_until

BLOBS = [(Digest.of(b"%d" % number), number, 1_000.0 + number) for number in range(2_500)]


@pytest.fixture
def path(tmp_path: Path) -> Any:
    return tmp_path / "regmirror.db"


@pytest.fixture
def quarantine(tmp_path: Path) -> Any:
    return tmp_path / "quarantine"


@pytest.fixture
def said() -> Any:
    return []


@pytest.fixture
def keeper(path: str, quarantine: Any, said: Any) -> Any:
    return DatabaseRecovery(path, quarantine, lambda: iter(BLOBS), said.append)


@pytest.fixture
def good(path: str, said: Any) -> Any:
    """A database that was made where nothing was stored yet, with one row."""
    DatabaseRecovery(path, path.parent / "quarantine", list, said.append).prepare()
    execute(path, "INSERT INTO repositories (upstream, name) VALUES ('docker.io', 'team/app')")
    return path


def execute(path: str, statement: Any) -> Any:
    connection = sqlite3.connect(path)
    with connection:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def count(path: str, table: str = "blobs") -> Any:
    return execute(path, f"SELECT count(*) FROM {table}")[0][0]


def spoil(path: str) -> None:
    """Overwrite the pages in the middle, as a broken disk does."""
    for number in range(200):
        execute(path, f"INSERT INTO repositories (upstream, name) VALUES ('x', '{'y' * 500}{number}')")
    execute(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4_096)
        file.write(os.urandom(size - 8_192))


def test_a_first_start_says_nothing(good: Any, said: Any) -> None:
    assert said == []
    assert count(good) == 0


def test_a_lost_database_is_made_anew_from_the_files(keeper: Any, path: str, said: Any) -> None:
    """B46: every blob has its row, with size and time, and it says so in one line."""
    keeper.prepare()
    assert execute(path, "PRAGMA journal_mode") == [("wal",)]
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, f"{path.name}.lock"]
    rows = execute(path, "SELECT digest, size, stored_at, pulled_at FROM blobs")
    assert sorted(rows) == sorted((str(digest), size, at, at) for digest, size, at in BLOBS)
    assert said == [f"the database {path} was lost; a new one knows the 2500 stored blobs"]
    totals = execute(path, "SELECT count, bytes FROM totals WHERE what = 'blobs'")
    assert totals == [(2_500, sum(range(2_500)))]


def test_what_a_lost_database_knew_is_not_collected_at_once(keeper: Any, path: str) -> None:
    """B46: nothing names the blobs until their manifests are pulled again."""
    keeper.prepare()
    ahead = execute(path, "SELECT min(due_at - since), max(due_at - since), count(*) FROM reviews")
    assert ahead == [(7 * 86_400.0, 7 * 86_400.0, 2_500)]


def test_a_good_database_is_left_alone(keeper: Any, good: Any, quarantine: Any, said: Any) -> None:
    """B46: whether it is asked at the start or while running."""
    number = good.stat().st_ino
    keeper.prepare()
    keeper.repair()
    assert good.stat().st_ino == number
    assert count(good, "repositories") == 1
    assert not quarantine.exists()
    assert said == []


@pytest.mark.parametrize("how", ["prepare", "repair"])
@pytest.mark.parametrize("content", ["pages", "garbage", "empty"])
def test_a_damaged_database_is_kept_for_the_operator(
    keeper: Any, good: Any, quarantine: Any, said: Any, how: str, content: str
) -> None:
    """B46: moved to quarantine as it is, and replaced."""
    match content:
        case "pages":
            spoil(good)
        case "garbage":
            good.write_bytes(b"no database " * 1_000)
        case "empty":
            execute(good, "PRAGMA wal_checkpoint(TRUNCATE)")
            good.write_bytes(b"")
    before = good.read_bytes()
    getattr(keeper, how)()
    assert count(good) == 2_500
    kept = [file for file in quarantine.iterdir() if not file.name.endswith(("-wal", "-shm"))]
    assert [file.read_bytes() for file in kept] == [before]
    assert len(said) == 1
    assert str(quarantine) in said[0]


def test_a_log_that_was_left_is_not_taken_for_the_new_databases(
    keeper: Any, good: Any, quarantine: Any
) -> None:
    """B46: SQLite would replay it."""
    connection = sqlite3.connect(good)
    connection.execute("INSERT INTO repositories (upstream, name) VALUES ('docker.io', 'team/other')")
    connection.commit()
    assert good.with_name(f"{good.name}-wal").stat().st_size > 0
    good.unlink()
    keeper.repair()
    assert count(good) == 2_500
    assert count(good, "repositories") == 0
    assert [file.suffix for file in quarantine.iterdir() if file.name.endswith("-wal")] != []
    connection.close()
    assert find_damage(good) == ""


def test_an_older_database_is_migrated_and_that_is_said(
    keeper: Any, good: Any, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B46."""
    monkeypatch.setattr("regmirror.metadata.recovery.upgrade", lambda path: "0001")
    keeper.prepare()
    assert said == [f"the database {good} was migrated from schema 0001"]


def test_a_migration_that_the_start_left_undone_is_done(
    keeper: Any, good: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44, B46: as soon as something is missing."""
    migrated = []
    monkeypatch.setattr("regmirror.metadata.recovery.upgrade", migrated.append)
    keeper.repair()
    assert migrated == []
    execute(good, "UPDATE alembic_version SET version_num = '0001'")
    keeper.repair()
    assert migrated == [good]


def test_a_newer_database_is_refused(keeper: Any, good: Any) -> None:
    """B80: it is good, and not ours to touch."""
    execute(good, "UPDATE alembic_version SET version_num = '9999'")
    number = good.stat().st_ino
    with pytest.raises(ConfigError, match="newer version"):
        keeper.prepare()
    keeper.repair()
    assert good.stat().st_ino == number


def test_a_locked_database_is_not_damaged(
    keeper: Any, good: Any, quarantine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: nor is one that cannot be read at the moment."""
    monkeypatch.setattr("regmirror.metadata.recovery.BUSY", 0.05)
    execute(good, "PRAGMA journal_mode=DELETE")
    connection = sqlite3.connect(good)
    connection.execute("BEGIN EXCLUSIVE")
    assert find_damage(good) == ""
    keeper.repair()
    connection.close()
    assert not quarantine.exists()


def test_a_restore_that_was_killed_is_begun_anew(keeper: Any, path: str) -> None:
    """B7, B46: the new database takes its place when it is whole."""
    path.with_name("regmirror.db.new").write_bytes(b"half of it")
    path.with_name("regmirror.db.new-wal").write_bytes(b"and more")
    keeper.prepare()
    assert count(path) == 2_500
    assert sorted(file.name for file in path.parent.glob("*.new*")) == []


@pytest.mark.parametrize("is_full", [True, False])
def test_a_full_disk_is_no_reason_not_to_start(
    keeper: Any, path: str, said: Any, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """B44: the database is made once there is room; any other obstacle is the operator's (B80)."""

    def fail(path: str) -> None:
        raise ConfigError("storage.path", str(path), "cannot be used: database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("regmirror.metadata.recovery.upgrade", fail)
        patched.setattr("regmirror.metadata.recovery._is_full", lambda directory: is_full)
        if not is_full:
            with pytest.raises(ConfigError, match="cannot be used"):
                keeper.prepare()
            return
        keeper.prepare()
    assert said == [f"the disk is full: the database {path} is not used until there is room"]
    keeper.repair()
    assert count(path) == 2_500


def test_one_process_repairs(keeper: Any, path: str, said: Any) -> None:
    """B46: the others leave it alone meanwhile."""
    with path.with_name("regmirror.db.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        keeper.repair()
        assert not path.exists()
    threads = [threading.Thread(target=keeper.repair) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count(path) == 2_500
    assert len(said) == 1


@pytest.mark.parametrize(
    ("message", "is_damaged"),
    [
        ("database disk image is malformed", True),
        ("file is not a database", True),
        ("no such table: tags", True),
        ("database is locked", False),
        ("database or disk is full", False),
        ("disk I/O error", False),
    ],
)
def test_only_some_errors_are_a_reason_to_look(message: str, is_damaged: bool) -> None:
    """B44: a check reads the whole database."""
    assert looks_damaged(message) is is_damaged


# --- while it is used ---


@pytest.fixture
async def store(good: Any) -> AsyncIterator[Any]:
    store = MetadataStore(good)
    await store.ping()
    yield store
    await store.close()


async def test_nothing_happens_while_it_is_the_same(
    store: Any, keeper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = DatabaseMonitor(store.database, keeper)
    monkeypatch.setattr(keeper, "repair", lambda: pytest.fail("examined"))
    assert not await watch.check()


async def test_a_deleted_database_is_replaced_and_connected_to(store: Any, keeper: Any, path: str) -> None:
    """B46: what is written from then on is in the new file."""
    watch = DatabaseMonitor(store.database, keeper)
    path.unlink()
    assert await watch.check()
    assert not await watch.check()
    digest = Digest.of(b"new")
    await store.save_blob(digest, 3)
    assert count(path) == 2_501


async def test_what_another_process_has_repaired_is_connected_to(
    store: Any, keeper: Any, path: str, said: Any
) -> None:
    """B46."""
    watch, other = DatabaseMonitor(store.database, keeper), MetadataStore(path)
    others_watch = DatabaseMonitor(other.database, keeper)
    path.unlink()
    assert await others_watch.check()
    assert await watch.check()
    await store.save_blob(Digest.of(b"new"), 3)
    assert await other.find_size(Digest.of(b"new")) == 3
    assert len(said) == 1
    await other.close()


async def test_a_suspect_that_is_good_stays(store: Any, keeper: Any, path: str, said: Any) -> None:
    """B46."""
    watch = DatabaseMonitor(store.database, keeper)
    assert not await watch.check(is_suspect=True)
    assert said == []
    assert count(path, "repositories") == 1


async def test_a_missing_database_is_not_created_empty_by_a_question(store: Any, path: str) -> None:
    """B46: it would be taken for the one that is being restored."""
    await store.database.reconnect()
    for name in ("", "-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    with pytest.raises(Exception, match="unable to open"):
        await store.ping()
    assert not path.exists()
    # The driver's thread outlives the failure for a moment, and must not outlive the loop.
    await wait_until(
        lambda: not [thread for thread in threading.enumerate() if "_worker" in thread.name], "it ends"
    )
