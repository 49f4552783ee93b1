"""Pulls go on when the database fails (B44), and what it knew comes back (B46)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DatabaseError

from regmirror.metadata.database_health import EXAMINATION_INTERVAL
from regmirror.oci.names import Repository, Tag
from regmirror.telemetry.events import NotStored
from tests.conftest import StartMirror
from tests.fake_registry import FakeRegistry, Image, random_bytes
from tests.mirror_fixture import NAME, InProcessMirror, run_mirror, run_program, wait_until

APP = "/v2/team/app"
TAG = f"{APP}/manifests/1"
LAYER = random_bytes(100_000)
NO_LIMITS = {"min_free": "0"}


@pytest.fixture
async def image(upstream: FakeRegistry) -> Any:
    return upstream.add_image("team/app", "1", [LAYER])


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> Any:
    return await start_mirror(storage=NO_LIMITS)


@pytest.fixture
async def path(image: Image) -> Any:
    return f"{APP}/blobs/{image.layer_digests[0]}"


def database(mirror: InProcessMirror) -> Any:
    return mirror.root / "regmirror.db"


def rows(mirror: InProcessMirror, query: Any) -> Any:
    with closing(sqlite3.connect(database(mirror))) as connection:
        return connection.execute(query).fetchall()


def metadata_cache(mirror: InProcessMirror) -> Any:
    return mirror.worker._resources.metadata_cache


async def pull(mirror: InProcessMirror, path: str) -> Any:
    """The manifest, its config and the layer; fails unless they are right."""
    manifest = await mirror.get(TAG)
    assert manifest.status == 200
    config = manifest.json()["config"]["digest"]
    assert (await mirror.get(f"{APP}/blobs/{config}")).status == 200
    blob = await mirror.get(path)
    assert blob.body == LAYER
    await mirror.worker._resources.downloads.drain()
    return manifest, blob


async def drain(mirror: InProcessMirror) -> None:
    """Until everything that was told to the database has been written or given up."""
    await wait_until(lambda: not metadata_cache(mirror)._writes.is_late, "no write is late", timeout=30)


def details(mirror: InProcessMirror) -> Any:
    return {event.detail for event in mirror.events.of(NotStored) if event.reason == "database"}


# --- locked, full, read-only ---


async def test_another_process_holds_the_write_lock(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, path: str
) -> None:
    """B44: cold and warm pulls go on; what they taught is written when the lock is free."""
    with closing(sqlite3.connect(database(mirror), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await pull(mirror, path)
        manifest, blob = await pull(mirror, path)
        assert manifest.body == image.manifest
        assert {got.headers["Cache-Status"] for got in (manifest, blob)} == {"regmirror; hit"}
        other.execute("ROLLBACK")
    await drain(mirror)
    assert rows(mirror, "SELECT name FROM tags") == [("1",)]
    assert rows(mirror, "SELECT count(*) FROM blobs") == [(2,)]
    assert details(mirror) == set()
    assert upstream.count("blob", "GET") == 2


async def test_many_pulls_wait_for_the_lock_no_longer_than_one(
    mirror: InProcessMirror, upstream: FakeRegistry
) -> None:
    """B44: the writes of all of them together are late, so that none is waited for."""
    for number in range(30):
        upstream.add_image("team/app", f"t{number}", [b"%d" % number])
    with closing(sqlite3.connect(database(mirror), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await mirror.get(f"{APP}/manifests/t0")
        assert metadata_cache(mirror)._writes.is_late
        metadata_cache(mirror)._writes._deadline = 1_000  # nobody is to wait by now
        responses = [await mirror.get(f"{APP}/manifests/t{number}") for number in range(1, 30)]
        assert {got.status for got in responses} == {200}
        other.execute("ROLLBACK")
    await drain(mirror)
    assert rows(mirror, "SELECT count(*) FROM tags") == [(30,)]


async def test_a_database_that_cannot_grow(mirror: InProcessMirror, image: Image, path: str) -> None:
    """B44: what cannot be written is counted, and is written again once it can."""
    store = mirror.worker._resources.metadata
    async with store.database.write_shared() as connection:
        pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
        await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    big = [b"%d" % number for number in range(3)]
    for number in range(40):
        response = await mirror.get(f"{APP}/manifests/1")
        assert response.body == image.manifest
        if not number:
            await pull(mirror, path)
        for data in big:
            await metadata_cache(mirror).save_tag(*_odd_tag(number, data))
    assert details(mirror) == {"database or disk is full"}
    assert (await mirror.get(path)).headers["Cache-Status"] == "regmirror; hit"
    async with store.database.write_shared() as connection:
        await connection.exec_driver_sql("PRAGMA max_page_count=100000")
    mirror.clock.advance(3_600)
    assert (await mirror.get(TAG)).body == image.manifest
    assert rows(mirror, "SELECT count(*) FROM tags WHERE name = '1'") == [(1,)]


def _odd_tag(number: Any, data: Any) -> Any:
    from regmirror.metadata.records import TagRecord
    from regmirror.oci.names import Digest

    record = TagRecord(Digest.of(data), "x/y", 1, 1.0)
    return Repository(NAME, f"{'n' * 200}/{number}"), Tag(f"{'t' * 100}{data.decode()}"), record


async def test_a_database_that_does_not_answer(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: it is waited for once, and everybody else goes on without it."""
    await pull(mirror, path)
    await drain(mirror)
    gate = asyncio.Event()
    store = mirror.worker._resources.metadata
    real = store.database._first

    async def hang(query: Any) -> Any:
        await gate.wait()
        return await real(query)

    monkeypatch.setattr("regmirror.metadata.bounded_access.READ_DEADLINE", 0.05)
    monkeypatch.setattr("regmirror.metadata.bounded_access.PING_DEADLINE", 0)
    monkeypatch.setattr(store.database, "_first", hang)
    mirror.clock.advance(3_600)
    assert (await mirror.get(TAG)).body == image.manifest
    assert details(mirror) == {"the database does not answer"}
    monkeypatch.setattr("regmirror.metadata.bounded_access.READ_DEADLINE", 1_000)  # nobody is to wait by now
    mirror.clock.advance(3_600)
    assert (await mirror.get(TAG)).body == image.manifest
    gate.set()
    await wait_until(lambda: not len(metadata_cache(mirror)._reads), "it has answered")
    monkeypatch.undo()
    assert await metadata_cache(mirror).list_tags(*_app()) == ["1"]


def _app() -> Any:
    return (Repository(NAME, "team/app"),)


# --- lost and damaged, while running ---


def garbage(path: str) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def empty(path: str) -> None:
    path.write_bytes(b"")


def delete(path: str) -> None:
    path.unlink()


def replace(path: str) -> None:
    """By one that is good and knows nothing."""
    other = path.with_name("other")
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(other)) as copy:
        connection.backup(copy)
        for table in ("tags", "repository_manifests", "manifest_references", "manifests", "blobs"):
            copy.execute(f"DELETE FROM {table}")
        copy.commit()
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    other.replace(path)


@pytest.mark.parametrize("fault", [garbage, empty, delete, replace])
async def test_a_database_that_goes_wrong_is_replaced(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, path: str, fault: Any, storage: Path
) -> None:
    """B44, B46: pulls go on, the new one knows blobs, tags and manifests, also after a restart."""
    await pull(mirror, path)
    await drain(mirror)
    fault(database(mirror))
    manifest, _ = await pull(mirror, path)
    assert manifest.body == image.manifest
    mirror.clock.advance(3_600)  # past the tag's age, so that the database is asked
    await pull(mirror, path)
    await metadata_cache(mirror).health.check()
    await wait_until(lambda: _is_known(mirror), "the new one knows the tag")
    await drain(mirror)
    assert rows(mirror, "PRAGMA integrity_check") == [("ok",)]
    kept = [
        file.name for file in (mirror.root / "quarantine").glob("regmirror.db.*") if file.suffix != ".db-shm"
    ]
    assert bool([name for name in kept if "-" not in name]) is (fault in (garbage, empty))
    await pull(mirror, path)
    assert upstream.count("blob", "GET") == 2
    if fault is not replace:  # files without rows are found by the sweep
        assert rows(mirror, "SELECT count(*) FROM blobs") == [(2,)]
    await upstream.stop()
    async with run_mirror(storage, {NAME: upstream}, storage=NO_LIMITS) as restarted:
        assert (await restarted.get(TAG)).body == image.manifest


def _is_known(mirror: InProcessMirror) -> Any:
    try:
        return rows(mirror, "SELECT t.name FROM tags t JOIN manifests m ON m.digest = t.digest") == [("1",)]
    except sqlite3.Error:
        return False


async def test_of_several_processes_one_repairs(
    start_mirror: StartMirror,
    upstream: FakeRegistry,
    image: Image,
    path: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """B13, B46: the others go over to the new database."""
    mirrors = [await start_mirror(storage=NO_LIMITS) for _ in range(3)]
    for mirror in mirrors:
        await pull(mirror, path)
    garbage(database(mirrors[0]))
    for mirror in mirrors:
        mirror.clock.advance(3_600)
    responses = await asyncio.gather(*(mirror.get(TAG) for mirror in mirrors * 3))
    assert {got.body for got in responses} == {image.manifest}
    for _ in range(2):
        await asyncio.gather(*(metadata_cache(mirror).health.check() for mirror in mirrors))
    await wait_until(lambda: _is_known(mirrors[0]), "the new one is there")
    for mirror in mirrors:
        mirror.clock.advance(3_600)
        assert (await mirror.get(TAG)).status == 200
        assert (await mirror.get("/readyz")).status == 200
    assert len(list((mirrors[0].root / "quarantine").glob("regmirror.db.*[0-9]"))) == 1
    assert capfd.readouterr().err.count("a new one knows the 2 stored blobs") == 1


async def test_a_damaged_database_is_not_examined_for_each_error(
    mirror: InProcessMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: a check reads all of it."""
    examined = []

    async def check(*, is_suspect: bool = False) -> Any:
        examined.append(is_suspect)
        return False

    async def fail() -> None:
        raise DatabaseError("SELECT", {}, Exception("database disk image is malformed"))

    monkeypatch.setattr(metadata_cache(mirror).health._monitor, "check", check)
    app, tag = *_app(), Tag("1")
    monkeypatch.setattr(metadata_cache(mirror)._catalogue, "find_tag", lambda *_: fail())
    for _ in range(5):
        assert await metadata_cache(mirror).find_tag(app, tag) is None
    await wait_until(lambda: examined == [True], "it is examined")
    mirror.clock.advance(EXAMINATION_INTERVAL)
    await metadata_cache(mirror).find_tag(app, tag)
    await wait_until(lambda: examined == [True, True], "it is examined again")


async def test_ready_tells_that_the_database_cannot_be_read(
    mirror: InProcessMirror, image: Image, path: str
) -> None:
    """B44: nothing that is stored could be found by its tag."""
    await pull(mirror, path)
    garbage(database(mirror))
    metadata_cache(mirror).health._monitor = None
    await mirror.worker._resources.metadata.database.reconnect()
    got = await mirror.get("/readyz")
    assert got.status == 503
    assert b"the database cannot be read" in got.body


# --- at the start ---


async def test_a_lost_database_is_made_anew_at_the_start(
    upstream: FakeRegistry, image: Image, path: str, storage: Path
) -> None:
    """B46: says so in one line, and what is stored is not fetched again: its upstream proves that it
    has it (B67).
    """
    async with run_mirror(storage, {NAME: upstream}, storage=NO_LIMITS) as mirror:
        await pull(mirror, path)
    for file in storage.glob("regmirror.db*"):
        file.unlink()
    async with run_program(storage, {NAME: upstream}, storage=NO_LIMITS) as program:
        assert len(program.messages("the database")) == 1
        assert "was lost; a new one knows the 2 stored blobs" in program.log
        assert (await program.get(TAG)).body == image.manifest
        for _ in range(2):
            assert (await program.get(path)).headers["Cache-Status"] == "regmirror; hit"
    assert [request.headers.get("Range") is None for request in upstream.find("blob", "GET")] == [
        True,
        True,
        False,
    ]


async def test_a_damaged_database_does_not_keep_it_from_starting(
    upstream: FakeRegistry, image: Image, path: str, storage: Path
) -> None:
    """B46: it is kept in quarantine."""
    async with run_mirror(storage, {NAME: upstream}, storage=NO_LIMITS) as mirror:
        await pull(mirror, path)
    (storage / "regmirror.db").write_bytes(b"no database " * 1_000)
    async with run_program(storage, {NAME: upstream}, storage=NO_LIMITS) as program:
        assert len(program.messages("the database")) == 1
        assert "was damaged (file is not a database)" in program.log
        assert (await program.get(path)).body == LAYER
    (kept,) = (storage / "quarantine").iterdir()
    assert kept.read_bytes() == b"no database " * 1_000


async def test_rows_whose_files_are_lost_heal_by_fetching(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, path: str
) -> None:
    """B46: a row without its file is a miss."""
    await pull(mirror, path)
    mirror.blob_path(image.layer_digests[0]).unlink()
    _, blob = await pull(mirror, path)
    assert blob.headers["Cache-Status"] == "regmirror; fwd=miss; stored"
    assert upstream.count("blob", "GET") == 3
    assert mirror.blob_path(image.layer_digests[0]).read_bytes() == LAYER
    assert rows(mirror, "SELECT count(*) FROM blobs") == [(2,)]
