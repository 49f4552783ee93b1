"""Which blob is opened for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.downloads.registry import Downloads
from regmirror.errors import BlobUnknown, Unavailable, UpstreamTimeout
from regmirror.metadata.bounded_access import tracking_reads
from regmirror.mirror.cache_status import COALESCED, HIT, MISS, STORED, CacheStatus
from regmirror.mirror.mirror import Mirror
from regmirror.oci.names import Digest
from regmirror.telemetry.events import BlobRemoved, VerificationFailed
from tests.fake_registry import random_bytes
from tests.unit.mirror.world import APP, OTHER, World

DATA = random_bytes(70_000)
DIGEST = Digest.of(DATA)


class NoDownloads:
    """Downloads that start nothing; ``fetch_alone`` never responds."""

    def __init__(self) -> None:
        self.alone: list[Digest] = []

    def find(self, digest: Digest) -> None:
        return None

    def is_proven(self, digest: Digest, repository: Any) -> bool:
        return False

    async def join(self, digest: Digest, source: Any) -> Any:
        raise BlobUnknown("nothing is downloaded here")

    async def fetch_alone(self, digest: Digest, source: Any) -> Any:
        self.alone.append(digest)
        await asyncio.get_running_loop().create_future()


class Setup:
    """A mirror over a real store, in which ``DATA`` is linked to ``APP``."""

    def __init__(self, root: Path) -> None:
        self.world, self.store, self.downloads = World(root), LocalBlobStore(root), NoDownloads()
        self.store.prepare()
        self.world.upstream.content = DATA
        self.mirror = Mirror(
            metadata_cache=self.world.cache,
            store=self.store,
            downloads=cast("Downloads", self.downloads),
            upstream_access=self.world.access,
            emit=self.world.events.append,
        )

    async def add(self, data: bytes = DATA) -> None:
        self.store.path(DIGEST).write_bytes(data)
        await self.world.cache.save_blob(DIGEST, len(DATA), [APP])


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.mirror.close()
    await setup.world.close()


async def test_a_stored_blob_with_a_link_is_a_hit(setup: Setup) -> None:
    await setup.add()
    result = await setup.mirror.get_blob(APP, DIGEST)
    assert (result.content.size, result.cache_status) == (len(DATA), HIT)
    result.content.close()
    head = await setup.mirror.head_blob(APP, DIGEST)
    assert (head.content, head.cache_status) == (len(DATA), HIT)
    assert setup.world.upstream.requests == []


async def test_a_stored_blob_of_another_repository_needs_one_proof(setup: Setup) -> None:
    """B67."""
    await setup.add()
    for _ in range(2):
        (await setup.mirror.get_blob(OTHER, DIGEST)).content.close()
    assert setup.world.upstream.requests == [("GET", DIGEST)]
    assert await setup.world.store.is_linked(OTHER, DIGEST)


async def test_an_upstream_with_other_bytes_has_no_access(setup: Setup) -> None:
    """B67: and the blob is closed, so that it can be removed."""
    await setup.add()
    setup.world.upstream.content = bytes(len(DATA))
    with pytest.raises(BlobUnknown, match="differ from the stored blob"):
        await setup.mirror.get_blob(OTHER, DIGEST)
    with pytest.raises(BlobUnknown):
        await setup.mirror.head_blob(OTHER, DIGEST)
    locked = setup.store.lock_for_removal(DIGEST)
    assert locked is not None
    locked.close()


async def test_a_blob_of_the_wrong_size_is_quarantined(setup: Setup) -> None:
    """B47: and requested upstream."""
    await setup.add(DATA[:-1])
    with pytest.raises(BlobUnknown):
        await setup.mirror.get_blob(APP, DIGEST)
    assert not setup.store.exists(DIGEST)
    assert [type(event) for event in setup.world.events] == [VerificationFailed, BlobRemoved]
    assert await setup.world.store.find_size(DIGEST) is None


async def test_a_blob_of_the_wrong_size_stays_while_the_database_does_not_respond(setup: Setup) -> None:
    """B44: its recorded size may be an old one."""
    await setup.add(DATA[:-1])
    with tracking_reads() as doubt:
        doubt.has_failed = True
        with pytest.raises(BlobUnknown):
            await setup.mirror.get_blob(APP, DIGEST)
    assert setup.store.exists(DIGEST)


async def test_a_blob_that_another_worker_replaced_is_served(setup: Setup) -> None:
    """Its size in memory is older than the one in the database."""
    await setup.add()
    await setup.world.cache.find_size(DIGEST)
    longer = DATA + b"x"
    setup.store.path(DIGEST).write_bytes(longer)
    await setup.world.store.delete_blob(DIGEST)
    await setup.world.store.save_blob(DIGEST, len(longer), [APP])
    result = await setup.mirror.get_blob(APP, DIGEST)
    assert (result.content.size, result.cache_status) == (len(longer), HIT)
    result.content.close()


async def test_a_file_without_a_row_gets_one(setup: Setup) -> None:
    """B46."""
    setup.store.path(DIGEST).write_bytes(DATA)
    (await setup.mirror.get_blob(APP, DIGEST)).content.close()
    assert await setup.world.store.find_size(DIGEST) == len(DATA)


async def test_a_file_that_cannot_be_opened_is_requested_upstream(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44."""
    await setup.add()

    def fail(digest: Digest, size: int = 0) -> None:
        raise OSError("broken")

    monkeypatch.setattr(setup.store, "open", fail)
    monkeypatch.setattr(setup.store, "read_cached", fail)
    with pytest.raises(BlobUnknown, match="nothing is downloaded here"):
        await setup.mirror.get_blob(APP, DIGEST)
    assert setup.mirror.read_cached_blob(APP, DIGEST, len(DATA)) is None


async def test_cached_bytes_need_a_link_in_memory(setup: Setup) -> None:
    await setup.add()
    assert setup.mirror.read_cached_blob(OTHER, DIGEST, len(DATA)) is None
    assert setup.mirror.read_cached_blob(APP, DIGEST, len(DATA) - 1) is None
    data = setup.mirror.read_cached_blob(APP, DIGEST, len(DATA))
    assert data is not None
    assert bytes(data) == DATA


@pytest.mark.parametrize(("stated", "size"), [(5, 5), (None, 7), (None, None)])
async def test_the_size_of_a_blob_that_is_not_stored_is_the_upstreams(
    setup: Setup, stated: int | None, size: int | None
) -> None:
    """By HEAD, else by the headers of a GET."""
    setup.world.upstream.blobs = {DIGEST: stated}
    setup.world.upstream.sizes = {} if size is None else {DIGEST: size}
    result = await setup.mirror.head_blob(APP, DIGEST)
    assert (result.content, result.cache_status) == (size, MISS)


async def test_a_blob_whose_bytes_cannot_be_read_is_unavailable(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: and says nothing of the other repository."""
    await setup.add()

    async def fail(upstream: str, digest: Digest, blob: Any) -> None:
        raise OSError("broken")

    monkeypatch.setattr(setup.mirror._possession._sampler, "take", fail)
    with pytest.raises(Unavailable, match="cannot be read"):
        await setup.mirror.get_blob(OTHER, DIGEST)


async def test_a_stored_blob_that_is_slow_to_read_is_fetched_without_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B67: its size is the upstream's, since nothing has proven that it has the stored one."""
    await setup.add()

    async def hang(upstream: str, digest: Digest, blob: Any) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(setup.mirror._possession._sampler, "take", hang)
    monkeypatch.setattr("regmirror.mirror.possession.SAMPLE_TIMEOUT", 0.01)
    monkeypatch.setattr("regmirror.mirror.mirror.RESPONSE_TIMEOUT", 0.01)
    setup.world.upstream.blobs = {DIGEST: 5}
    result = await setup.mirror.head_blob(OTHER, DIGEST)
    assert (result.content, result.cache_status) == (5, MISS)
    with pytest.raises(UpstreamTimeout):
        await setup.mirror.get_blob(OTHER, DIGEST)
    assert setup.downloads.alone == [DIGEST]


async def test_the_age_of_a_download_counts_for_its_own_upstream_alone(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B35."""
    assert setup.mirror._download_age(APP, DIGEST) == 0
    began = asyncio.get_running_loop().time() - 5
    download = SimpleNamespace(repository=OTHER, began=began)
    monkeypatch.setattr(setup.downloads, "find", lambda digest: download)
    assert setup.mirror._download_age(APP, DIGEST) >= 5
    download.repository = SimpleNamespace(upstream="elsewhere.test")
    assert setup.mirror._download_age(APP, DIGEST) == 0


@pytest.mark.parametrize(
    ("existed", "status"), [(False, STORED), (True, COALESCED)], ids=["its own download", "another one"]
)
async def test_a_client_that_waits_twice_has_not_joined_its_own_download(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, existed: bool, status: CacheStatus
) -> None:
    """The deadline is extended, so ``join`` is called again, and finds the download of the first call."""
    health, joins = setup.world.upstream.health, 0
    download = SimpleNamespace(repository=APP, began=asyncio.get_running_loop().time())
    follower = SimpleNamespace(is_passed_through=False)

    async def join(digest: Digest, source: Any) -> Any:
        nonlocal joins
        joins += 1
        if joins == 1:
            health.note_activity(APP.name, digest, is_upstream=True)
            await asyncio.get_running_loop().create_future()
        return follower, True

    monkeypatch.setattr(setup.world.access, "_cold_deadline", 0.05)
    monkeypatch.setattr(setup.downloads, "find", lambda digest: download if existed or joins else None)
    monkeypatch.setattr(setup.downloads, "join", join)
    monkeypatch.setattr(setup.mirror, "_may_serve", always)
    async with asyncio.timeout(10):
        result = await setup.mirror.get_blob(APP, DIGEST)
    assert joins == 2
    assert result.cache_status == status


async def always(repository: Any, digest: Digest, blob: Any) -> bool:
    return True
