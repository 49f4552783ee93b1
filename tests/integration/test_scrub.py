"""Scrub (B47): everything is verified, at a bounded rate, and what is said to be healed is stored."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regmirror.blobs.local import LocalBlobStore
from regmirror.cli import scrub as scrubbing
from regmirror.cli.context import Context
from regmirror.errors import BlobUnknown
from regmirror.maintenance.news import InvalidationMarker
from regmirror.maintenance.scrub import PIECE, TASK, Finding, Pacer, Scrubber, ScrubSummary
from regmirror.maintenance.toolkit import open_toolkit
from regmirror.metadata.inventory import MaintenanceRun
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.manifests import Manifest
from regmirror.oci.names import Digest, Repository
from regmirror.server.generation import Generation
from regmirror.telemetry.events import BlobRemoved, BlobRepaired, VerificationFailed
from tests.fake_registry import random_bytes

APP = Repository("registry.test", "team/app")
BLOBS = sorted((random_bytes(1_000, seed=number) for number in range(4)), key=Digest.of)


class Timer:
    """A monotonic clock that moves only by sleeping, or by ``work`` seconds of reading."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def __call__(self) -> Any:
        return self.time

    async def sleep(self, seconds: Any) -> None:
        self.slept.append(seconds)
        self.time += seconds


class Store:
    """Stored blobs that ``APP`` has a right to, and a way to heal them."""

    def __init__(self, toolkit: Any, root: Path) -> None:
        self.root = root
        self.toolkit, self.timer = toolkit, Timer()
        self.events: list[Any] = []
        self.requested: list[Any] = []

    async def add(self, data: bytes) -> Any:
        digest = Digest.of(data)
        self.toolkit.store.path(digest).write_bytes(data)
        await self.toolkit.metadata.save_blob(digest, len(data))
        await self.toolkit.metadata.link(APP, digest)
        return digest

    def spoil(self, digest: Any) -> None:
        path = self.toolkit.store.path(digest)
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])

    async def repair(self, repository: Any, digest: Any) -> None:
        self.requested.append((repository, digest))
        await self.add(next(data for data in BLOBS if Digest.of(data) == digest))

    async def scrub(self, repair: Any = None, rate: Any = 0, **options: Any) -> Any:
        findings: list[Finding] = []
        scrubber = Scrubber(
            inventory=self.toolkit.inventory,
            store=self.toolkit.store,
            emit=self.events.append,
            repair=repair or self.repair,
            rate=rate,
            now=lambda: 5_000.0,
            clock=self.timer,
            sleep=self.timer.sleep,
            **options,
        )
        return await scrubber.scrub(findings.append), findings


@asynccontextmanager
async def open_store(root: Path) -> AsyncIterator[Any]:
    upgrade(database_path(root))
    metadata = MetadataStore(database_path(root))
    try:
        toolkit = open_toolkit(root, metadata, lambda event: None)
        toolkit.store.prepare()
        yield Store(toolkit, root)
    finally:
        await metadata.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Any]:
    async with open_store(tmp_path) as store:
        for data in BLOBS:
            await store.add(data)
        yield store


async def test_a_flipped_byte_is_put_aside_and_fetched_anew(store: Any) -> None:
    """B47: the size is the same, the bytes are not."""
    rotten = Digest.of(BLOBS[2])
    store.spoil(rotten)
    done, findings = await store.scrub()
    assert (done.checked, done.bytes, done.corrupt, done.repaired) == (4, 4_000, 1, 1)
    assert [(item.digest, item.is_repaired) for item in findings] == [(rotten, True)]
    assert store.requested == [(APP, rotten)]
    assert store.toolkit.store.path(rotten).read_bytes() == BLOBS[2]
    assert [type(event) for event in store.events] == [VerificationFailed, BlobRemoved, BlobRepaired]
    assert (await store.scrub())[1] == []


@pytest.mark.parametrize("spoil", ["short", "missing"])
async def test_a_blob_that_is_short_or_missing(store: Any, spoil: Any) -> None:
    """B47."""
    path = store.toolkit.store.path(Digest.of(BLOBS[0]))
    path.unlink() if spoil == "missing" else path.write_bytes(BLOBS[0][:-1])
    done, _ = await store.scrub()
    assert (done.corrupt, done.repaired) == (1, 1)
    assert path.read_bytes() == BLOBS[0]


async def test_what_cannot_be_had_stays_away(store: Any) -> None:
    """B47: a wrong blob is not served for want of a right one."""
    rotten = Digest.of(BLOBS[1])
    store.spoil(rotten)

    async def refuse(repository: Any, digest: Any) -> None:
        raise BlobUnknown("it has gone")

    done, (finding,) = await store.scrub(refuse)
    assert (done.corrupt, done.repaired, finding.is_repaired) == (1, 0, False)
    assert not store.toolkit.store.exists(rotten)


async def test_what_came_but_was_not_kept_is_not_healed(store: Any) -> None:
    """B47: a blob for which there is no room is passed on to whoever fetches it, and not stored."""
    store.spoil(Digest.of(BLOBS[1]))

    async def run_pass_through(repository: Any, digest: Any) -> None:
        """All bytes come, none stay."""

    done, (finding,) = await store.scrub(run_pass_through)
    assert (done.repaired, finding.is_repaired) == (0, False)
    assert not [event for event in store.events if isinstance(event, BlobRepaired)]


async def test_a_run_goes_on_where_the_last_one_was_broken_off(store: Any) -> None:
    """B47: at its cursor, and ends with the time when everything was verified."""
    await store.toolkit.inventory.save_run(TASK, MaintenanceRun(1_000.0, 500.0, Digest.of(BLOBS[1])))
    done, _ = await store.scrub()
    assert done.checked == 2
    assert await store.toolkit.inventory.get_run(TASK) == MaintenanceRun(1_000.0, 5_000.0, "")


async def test_a_run_by_hand_verifies_everything_and_leaves_the_cursor_alone(store: Any) -> None:
    """B47: whoever asks for a scrub wants all of it, also while a server is in the middle of one."""
    rotten = Digest.of(BLOBS[0])
    store.spoil(rotten)
    broken_off = MaintenanceRun(1_000.0, 500.0, Digest.of(BLOBS[1]))
    await store.toolkit.inventory.save_run(TASK, broken_off)
    done, findings = await store.scrub(is_resumable=False)
    assert done.checked == 4
    assert [item.digest for item in findings] == [rotten]
    assert await store.toolkit.inventory.get_run(TASK) == broken_off


async def test_reading_is_held_to_the_rate(store: Any) -> None:
    """B47: 4000 bytes at 1000 bytes a second."""
    await store.scrub(rate=1_000)
    assert sum(store.timer.slept) == pytest.approx(4.0)


async def test_a_big_blob_is_read_in_pieces_with_pauses_between_them(store: Any) -> None:
    """B47: the pause is after each piece and not after the blob."""
    await store.add(random_bytes(3 * PIECE, seed=9))
    await store.scrub(rate=PIECE)
    assert max(store.timer.slept) <= 1.0 + 1e-9


async def test_time_that_was_not_used_is_not_made_up_for() -> None:
    """B47: after a slow spell reading goes on at the rate, not in a burst."""
    timer = Timer()
    pacer = Pacer(100, timer, timer.sleep)
    await pacer.spend(100)
    timer.time += 60
    for _ in range(3):
        await pacer.spend(100)
    assert timer.slept == [pytest.approx(1.0)] * 4


async def test_without_a_rate_nobody_waits(store: Any) -> None:
    """B47."""
    await store.scrub(rate=0)
    assert store.timer.slept == []


async def test_what_is_healed_is_stored_before_that_is_said(
    mirror: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B47: the last byte of a blob may be read before its file has its final name."""
    image = upstream.add_image("team/app", "1", [BLOBS[0]])
    await mirror.get("/v2/team/app/manifests/1")
    digest, is_read = Digest(image.layer_digests[0]), asyncio.Event()
    commit, repair = LocalBlobStore.commit, Generation.repair

    async def adopt_late(self: Any, staged: Any, name: Any) -> None:
        await is_read.wait()
        await commit(self, staged, name)

    async def heal_and_tell(self: Any, repository: Any, name: Any) -> None:
        await repair(self, repository, name)
        is_read.set()

    monkeypatch.setattr(LocalBlobStore, "commit", adopt_late)
    monkeypatch.setattr(Generation, "repair", heal_and_tell)
    await mirror.worker.repair(APP, digest)
    assert digest in mirror.stored()


def test_a_scrub_by_hand_does_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """B47: neither a collection nor the scheduled scrub begins in the command's own process."""
    opened = []

    @asynccontextmanager
    async def remember(config: Any) -> AsyncIterator[Any]:
        opened.append(config)
        yield SimpleNamespace(scrub=lambda rate, tell: asyncio.sleep(0, ScrubSummary()))

    upgrade(database_path(tmp_path))
    monkeypatch.setenv("REGMIRROR_STORAGE__PATH", str(tmp_path))
    monkeypatch.setattr(scrubbing, "open_worker", remember)
    scrubbing.scrub_store(Context(None, json=True), None)
    assert [(item.gc.interval, item.scrub.interval) for item in opened] == [(0, 0)]


async def test_a_scrub_tells_every_worker_to_forget_what_it_has_dropped(store: Any) -> None:
    """B47, B99: a manifest that is corrupt in the database is also in the memory of workers."""
    toolkit, payload = store.toolkit, b'{"schemaVersion": 2}'
    manifest = Manifest(Digest.of(payload), "application/vnd.oci.image.manifest.v1+json", payload)
    await toolkit.metadata.save_manifest(APP, manifest, [])
    connection = sqlite3.connect(toolkit.metadata.path)
    connection.execute("UPDATE manifests SET payload = x'00'")
    connection.commit()
    connection.close()
    news = InvalidationMarker(store.root)
    done = await toolkit.scrubber(store.events.append, store.repair, 0).scrub(lambda finding: None)
    assert (done.corrupt, news.has_changed()) == (1, True)
    assert await toolkit.metadata.find_manifest(APP, manifest.digest) is None


async def test_a_scrub_that_finds_nothing_leaves_memories_alone(store: Any) -> None:
    """B47."""
    news = InvalidationMarker(store.root)
    await store.toolkit.scrubber(store.events.append, store.repair, 0).scrub(lambda finding: None)
    assert not news.has_changed()


async def test_a_good_blob_that_took_the_place_of_a_corrupt_one_stays(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B47: another process stores it while the scrub reads the corrupt one."""
    digest = Digest.of(BLOBS[0])
    store.spoil(digest)
    path, find_fault = store.toolkit.store.path(digest), Scrubber._find_fault

    async def replace_then(self: Any, row: Any, *args: Any) -> Any:
        why = await find_fault(self, row, *args)
        if row.digest == digest:
            path.with_name("new").write_bytes(BLOBS[0])
            path.with_name("new").replace(path)
        return why

    monkeypatch.setattr(Scrubber, "_find_fault", replace_then)
    assert (await store.scrub())[1] == []
    assert path.read_bytes() == BLOBS[0]
    assert list((store.root / "quarantine").iterdir()) == []
