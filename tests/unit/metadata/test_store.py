"""The database: its schema, what is written and read again, and who has a right to bytes."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from regmirror.errors import ConfigError
from regmirror.metadata import schema
from regmirror.metadata.reachability import REFERENCE_BYTES
from regmirror.metadata.records import TagRecord
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.totals import Totals
from regmirror.metadata.upgrade import REVISION, database_path, upgrade
from regmirror.oci.manifests import OCI_MANIFEST, Descriptor, Manifest
from regmirror.oci.names import Digest, Repository, Tag
from tests.mirror_fixture import wait_until

APP, OTHER = Repository("registry.test", "team/app"), Repository("registry.test", "team/other")
ELSEWHERE = Repository("elsewhere.test", "team/app")
TAG = Tag("1.0")
MANIFEST = Manifest(Digest.of(b"{}"), OCI_MANIFEST, b"{}")
LAYER, CONFIG, FOREIGN = Digest.of(b"layer"), Digest.of(b"config"), Digest.of(b"foreign")
SUBJECT = Digest.of(b"subject")
REFERENCES = [
    Descriptor(CONFIG, 6, "application/json", "config", fetchable=True),
    Descriptor(LAYER, 5, "application/octet-stream", "layer", fetchable=True),
    Descriptor(FOREIGN, 7, "application/octet-stream", "layer", fetchable=False),
    Descriptor(SUBJECT, -1, OCI_MANIFEST, "subject", fetchable=False),
]


class Now:
    """A wall clock that stands still."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> Any:
        return self.time


@pytest.fixture
def now() -> Any:
    return Now()


@pytest.fixture
def path(tmp_path: Path) -> Any:
    path = database_path(tmp_path)
    upgrade(path)
    return path


@pytest.fixture
async def store(path: str, now: Any) -> AsyncIterator[Any]:
    store = MetadataStore(path, now)
    yield store
    await store.close()


def rows(path: str, query: Any) -> Any:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


# --- schema ---


def test_the_migrations_lead_to_the_schema(path: str) -> None:
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


def test_the_newest_migration_is_the_one_that_this_version_wants() -> None:
    scripts = ScriptDirectory("regmirror/metadata/migrations")
    assert scripts.get_current_head() == REVISION


def test_upgrading_again_changes_nothing(path: str) -> None:
    upgrade(path)
    assert rows(path, "SELECT version_num FROM alembic_version") == [(REVISION,)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


def test_a_database_of_a_newer_version_is_refused(path: str) -> None:
    """B80: with the way out, and untouched."""
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(ConfigError, match=r"newer version \(schema 9999\)"):
        upgrade(path)
    assert rows(path, "SELECT version_num FROM alembic_version") == [("9999",)]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """B80: with the way out."""
    path = database_path(tmp_path)
    path.write_bytes(b"something else" * 1_000)
    with pytest.raises(ConfigError, match="move it away"):
        upgrade(path)


# --- manifests and tags ---


async def test_a_manifest_is_kept_byte_for_byte_with_its_media_type(store: Any) -> None:
    """B1: also one that is not UTF-8."""
    odd = Manifest(Digest.of(b"\xff\x00{}", "sha512"), "application/x-unknown", b"\xff\x00{}")
    await store.save_manifest(APP, odd, [])
    assert await store.find_manifest(APP, odd.digest) == odd
    assert await store.find_manifest(APP, MANIFEST.digest) is None
    assert await store.find_manifest(OTHER, odd.digest) is None


async def test_each_repository_has_its_own_media_type_of_the_same_bytes(store: Any) -> None:
    """B1: what another repository or upstream calls them changes nothing here, now or later."""
    other = replace(MANIFEST, media_type="application/x-unknown")
    await store.save_manifest(ELSEWHERE, other, [])
    await store.save_manifest(APP, MANIFEST, [])
    assert await store.find_manifest(APP, MANIFEST.digest) == MANIFEST
    assert await store.find_manifest(ELSEWHERE, MANIFEST.digest) == other
    await store.save_manifest(ELSEWHERE, MANIFEST, [])
    assert await store.find_manifest(ELSEWHERE, MANIFEST.digest) == MANIFEST


async def test_a_corrupt_manifest_is_deleted_and_can_be_saved_again(store: Any) -> None:
    """B99: wherever it was held."""
    for repository in (APP, OTHER):
        await store.save_manifest(repository, MANIFEST, REFERENCES)
    await store.delete_manifest(MANIFEST.digest)
    assert await store.find_manifest(APP, MANIFEST.digest) is None
    await store.save_manifest(APP, MANIFEST, REFERENCES)
    assert await store.find_manifest(APP, MANIFEST.digest) == MANIFEST
    assert await store.find_manifest(OTHER, MANIFEST.digest) is None


async def test_a_manifest_saved_with_its_tag_is_what_the_tag_means_now(store: Any, now: Any) -> None:
    await store.save_manifest(APP, MANIFEST, REFERENCES, TAG)
    assert await store.find_tag(APP, TAG) == TagRecord(MANIFEST.digest, OCI_MANIFEST, 2, now.time)
    assert await store.find_tag(OTHER, TAG) is None
    assert await store.find_tag(ELSEWHERE, TAG) is None


async def test_a_manifest_may_be_saved_again_and_in_other_repositories(store: Any) -> None:
    for repository in (APP, APP, OTHER):
        await store.save_manifest(repository, MANIFEST, REFERENCES, TAG)
    size = MANIFEST.size + len(REFERENCES) * REFERENCE_BYTES
    assert await store.totals() == Totals(0, 0, manifests=1, tags=2, repositories=2, manifest_bytes=size)
    assert await store.content_totals() == Totals(
        0, 0, manifests=1, tags=0, repositories=0, manifest_bytes=size
    )


@pytest.mark.parametrize(("digest", "changed_at"), [(MANIFEST.digest, 1_000.0), (LAYER, 1_050.0)])
async def test_when_a_tag_moved_is_remembered(
    store: Any, path: str, now: Any, digest: Any, changed_at: float
) -> None:
    await store.save_manifest(APP, MANIFEST, [], TAG)
    record = TagRecord(digest, OCI_MANIFEST, 2, 1_050.0)
    previous = None if digest == MANIFEST.digest else MANIFEST.digest
    assert await store.save_tag(APP, TAG, record) == replace(record, previous=previous)
    assert await store.find_tag(APP, TAG) == replace(record, previous=previous)
    assert rows(path, "SELECT checked_at, changed_at FROM tags") == [(1_050.0, changed_at)]


async def test_a_forgotten_tag_is_gone_and_its_manifest_stays(store: Any) -> None:
    await store.save_manifest(APP, MANIFEST, [], TAG)
    await store.delete_tag(APP, TAG)
    assert await store.find_tag(APP, TAG) is None
    assert await store.find_manifest(APP, MANIFEST.digest) == MANIFEST


async def test_tags_and_repositories_are_listed_in_order(store: Any) -> None:
    for name in ("b", "A", "c"):
        await store.save_manifest(OTHER, MANIFEST, [], Tag(name))
    await store.save_manifest(ELSEWHERE, MANIFEST, [])
    await store.link(APP, LAYER)
    assert await store.list_tags(OTHER) == ["A", "b", "c"]
    assert await store.list_tags(APP) == []
    assert await store.list_repositories() == [ELSEWHERE, OTHER]


async def test_referrers_are_the_manifests_of_the_repository_with_this_subject(store: Any) -> None:
    await store.save_manifest(APP, MANIFEST, REFERENCES)
    assert await store.list_referrers(APP, SUBJECT) == [MANIFEST]
    assert await store.list_referrers(APP, LAYER) == []
    assert await store.list_referrers(OTHER, SUBJECT) == []


# --- the right to bytes ---


@pytest.mark.parametrize("digest", [MANIFEST.digest, CONFIG, LAYER, FOREIGN, SUBJECT])
async def test_a_manifest_opens_no_blob_to_its_repository(store: Any, digest: Any) -> None:
    """B67: its author may name anything."""
    await store.save_manifest(APP, MANIFEST, REFERENCES)
    assert await store.is_linked(APP, digest) is False


async def test_a_blob_is_open_to_the_repository_whose_upstream_sent_it(store: Any) -> None:
    """B67: and to no other one."""
    await store.save_blob(LAYER, 5, [APP])
    await store.save_blob(CONFIG, 6)
    assert await store.is_linked(APP, LAYER) is True
    assert await store.is_linked(APP, CONFIG) is False
    assert await store.is_linked(OTHER, LAYER) is False


async def test_a_repository_may_serve_what_its_upstream_has_proven(store: Any) -> None:
    """B67: for that one blob in that one repository."""
    await store.link(APP, LAYER)
    await store.link(APP, LAYER)
    assert await store.is_linked(APP, LAYER) is True
    assert await store.is_linked(APP, CONFIG) is False
    assert await store.is_linked(ELSEWHERE, LAYER) is False


async def test_the_index_is_used_to_prove_a_right(path: str) -> None:
    """Every question of the hot path is answered by an index, however much is stored."""
    confirmed = "SELECT 1 FROM repository_blobs WHERE repository_id = 1 AND digest = 'x'"
    tag = """SELECT digest FROM tags t JOIN repositories r ON r.id = t.repository_id
        WHERE r.upstream = 'x' AND r.name = 'y' AND t.name = 'z'"""
    for query in (confirmed, tag):
        steps = [row[3] for row in rows(path, f"EXPLAIN QUERY PLAN {query}")]
        assert [step for step in steps if step.startswith("SCAN")] == []


# --- blobs ---


async def test_only_a_stored_blob_has_a_size(store: Any) -> None:
    """B48: a manifest's claim is none."""
    await store.save_manifest(APP, MANIFEST, REFERENCES)
    assert await store.find_size(LAYER) is None
    await store.save_blob(LAYER, 99)
    assert await store.find_size(LAYER) == 99


async def test_a_blob_stored_again_has_its_new_size_and_a_forgotten_one_none(store: Any) -> None:
    await store.save_blob(LAYER, 1)
    await store.save_blob(LAYER, 2)
    await store.save_blob(CONFIG, 10)
    assert await store.totals() == Totals(blobs=2, blob_bytes=12, manifests=0, tags=0, repositories=0)
    await store.delete_blob(LAYER)
    await store.delete_blob(LAYER)
    assert await store.find_size(LAYER) is None


async def test_last_pulls_are_written_in_one_batch(store: Any, path: str) -> None:
    """B41: what is unknown by then is passed over."""
    await store.save_manifest(APP, MANIFEST, [], TAG)
    await store.save_manifest(OTHER, MANIFEST, [], TAG)
    await store.save_blob(LAYER, 5)
    await store.save_pulls(
        {(APP, TAG): 2_000.0, (ELSEWHERE, TAG): 1.0},
        {(APP, MANIFEST.digest): 4_000.0, (APP, LAYER): 1.0},
        {LAYER: 3_000.0, CONFIG: 1.0},
    )
    held = "SELECT pulled_at FROM repository_manifests ORDER BY repository_id"
    assert rows(path, held) == [(4_000.0,), (1_000.0,)]
    assert rows(path, "SELECT pulled_at FROM tags ORDER BY repository_id") == [(2_000.0,), (1_000.0,)]
    assert rows(path, "SELECT digest, pulled_at FROM blobs") == [(LAYER, 3_000.0)]


# --- many at once ---


async def test_writers_of_several_processes_take_turns(store: Any, path: str) -> None:
    """B13, B44: nobody is told that the database is locked."""
    other = MetadataStore(path)
    digests = [Digest.of(b"%d" % number) for number in range(40)]
    stores = [(store, other)[number % 2] for number in range(40)]
    await asyncio.gather(*(each.save_blob(d, 1) for each, d in zip(stores, digests, strict=True)))
    assert (await store.totals()).blobs == 40
    await other.close()


async def test_a_cancelled_write_leaves_the_database_usable(store: Any) -> None:
    tasks = [asyncio.create_task(store.save_blob(Digest.of(b"%d" % number), 1)) for number in range(5)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.save_blob(LAYER, 5)
    assert await store.find_size(LAYER) == 5


async def test_ping_tells_whether_the_database_can_be_read(store: Any, path: str) -> None:
    await store.ping()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE repositories")
    connection.close()
    with pytest.raises(sa.exc.DatabaseError):
        await store.ping()


async def test_what_runs_while_the_file_is_replaced_leaves_no_connection_open(store: Any) -> None:
    """B46: each connection has a thread."""
    database, goes_on = store.database, asyncio.Event()
    before = threading.active_count()

    async def hold() -> None:
        async with database._engines.reader.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            await goes_on.wait()

    holding = asyncio.create_task(database.run(hold()))
    await wait_until(lambda: threading.active_count() > before, "it is connected")
    await database.reconnect()
    assert await store.list_repositories() == []
    goes_on.set()
    await holding
    await database.close()
    gc.collect()
    assert threading.active_count() == before


# --- from older versions ---


async def test_what_older_versions_wrote_for_a_claim_opens_nothing(tmp_path: Path) -> None:
    """B67: every repository proves once again what it has; nothing is collected for it."""
    path = database_path(tmp_path)
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        config = Config()
        config.set_main_option("script_location", "regmirror/metadata/migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.commit()
    engine.dispose()
    with closing(sqlite3.connect(path)) as old, old:
        old.execute("INSERT INTO repositories VALUES (1, ?, ?)", (APP.upstream, APP.name))
        old.execute(
            "INSERT INTO manifests VALUES (?, ?, ?, 1)",
            (str(MANIFEST.digest), MANIFEST.media_type, MANIFEST.payload),
        )
        old.execute("INSERT INTO repository_manifests VALUES (1, ?, 1, 1)", (str(MANIFEST.digest),))
        old.execute("INSERT INTO repository_blobs VALUES (1, ?, 1)", (str(LAYER),))
    upgrade(path)
    store = MetadataStore(path)
    try:
        assert await store.is_linked(APP, LAYER) is False
        assert await store.find_manifest(APP, MANIFEST.digest) is None
        assert await store.list_referrers(APP, SUBJECT) == []
        assert rows(path, "SELECT count(*) FROM repository_manifests") == [(1,)]
        await store.save_manifest(APP, MANIFEST, REFERENCES)
        assert await store.find_manifest(APP, MANIFEST.digest) == MANIFEST
    finally:
        await store.close()


async def test_the_log_of_the_database_is_cut_when_it_has_been_written_back(store: Any, path: str) -> None:
    """B40, B100: else it keeps the size of the largest burst of writes."""
    payload = bytes(20_000_000)
    await store.save_manifest(APP, Manifest(Digest.of(payload), OCI_MANIFEST, payload), [])
    for number in range(3):
        await store.save_blob(Digest.of(b"%d" % number), 1)
    assert path.with_name(f"{path.name}-wal").stat().st_size <= 2**23
