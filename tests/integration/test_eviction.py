"""Room (B40): the limits of the file system, what pins leave, and what cannot be purged yet."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from regmirror.maintenance.toolkit import open_toolkit
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path
from regmirror.telemetry.events import BlobRemoved, NotStored
from tests.fake_registry import random_bytes
from tests.integration.test_commands import run
from tests.integration.test_maintenance import command, rows
from tests.mirror_fixture import NAME, run_mirror, wait_until

APP = "/v2/team/app"
SIZE = 10_000


async def pull(mirror: Any, digest: Any) -> Any:
    response = await mirror.get(f"{APP}/blobs/{digest}")
    assert response.status == 200
    return response


async def fill(mirror: Any, upstream: Any, count: Any) -> Any:
    """Blobs that are pulled one after the other, and stored."""
    digests = [upstream.add_blob("team/app", random_bytes(SIZE, seed=number)) for number in range(count)]
    for digest in digests:
        await pull(mirror, digest)
        mirror.clock.advance(10)
        await wait_until(lambda digest=digest: digest in mirror.stored(), "it is stored")
    return digests


def pretend_free(monkeypatch: pytest.MonkeyPatch, mirror: Any, space: Any) -> None:
    """The file system has ``space`` bytes, of which stored blobs take their size."""
    real = os.statvfs

    def statvfs(path: Any) -> Any:
        if str(path) != str(mirror.root):
            return real(path)
        used = sum(item.stat().st_size for item in (mirror.root / "blobs").glob("*/*"))
        return SimpleNamespace(f_bavail=space - used, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)


async def test_room_on_the_file_system_is_made_by_eviction(
    start_mirror: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B40: min_free, least recently pulled first."""
    mirror = await start_mirror(storage={"min_free": str(2 * SIZE), "max_size": "0"})
    first, _, third = await fill(mirror, upstream, 3)
    pretend_free(monkeypatch, mirror, 5 * SIZE)
    last = upstream.add_blob("team/app", random_bytes(SIZE, seed=99))
    assert (await pull(mirror, last)).headers["Cache-Status"] == "regmirror; fwd=miss; stored"
    await wait_until(lambda: last in mirror.stored(), "it is stored")
    assert first not in mirror.stored()
    assert third in mirror.stored()
    assert {event.reason for event in mirror.events.of(BlobRemoved)} == {"evicted"}


async def test_without_room_on_the_file_system_a_blob_is_passed_on(
    start_mirror: Any, upstream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B40, B44: nothing is evicted if that would not be enough."""
    mirror = await start_mirror(storage={"min_free": str(100 * SIZE), "max_size": "0"})
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=SIZE, f_frsize=1))
    digest = upstream.add_blob("team/app", random_bytes(SIZE, seed=1))
    response = await pull(mirror, digest)
    assert response.body == random_bytes(SIZE, seed=1)
    assert response.headers["Cache-Status"] == "regmirror; fwd=miss"
    assert [event.reason for event in mirror.events.of(NotStored)] == ["disk"]
    assert mirror.stored() == set()


async def test_a_store_over_its_limit_gives_what_it_can(start_mirror: Any, upstream: Any) -> None:
    """B40: a limit that was lowered below what is pinned takes all the rest, and not nothing."""
    mirror = await start_mirror()
    pinned, *others = await fill(mirror, upstream, 3)
    image = upstream.add_image("team/app", "1", [random_bytes(SIZE, seed=0)])
    assert image.layer_digests[0] == pinned
    await mirror.get(f"{APP}/manifests/1")
    metadata = MetadataStore(database_path(mirror.root))
    toolkit = open_toolkit(mirror.root, metadata, lambda event: None, mirror.clock.now)
    try:
        await toolkit.pins.add("registry.test/team/app:1")
        config = mirror.config.model_copy(
            update={"storage": mirror.config.storage.model_copy(update={"max_size": SIZE // 2})}
        )
        await toolkit.capacity(config, lambda: asyncio.sleep(0)).enforce()
    finally:
        await metadata.close()
    assert mirror.stored() == {pinned}
    assert set(others).isdisjoint(mirror.stored())


async def test_a_purged_digest_that_is_being_read_is_told(start_mirror: Any, upstream: Any) -> None:
    """It stays until nobody reads it: that is what the command says, and not that there is none."""
    mirror = await start_mirror()
    (digest,) = await fill(mirror, upstream, 1)
    with mirror.blob_path(digest).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        values = {"REGMIRROR_STORAGE__PATH": str(mirror.root)}
        refused = await asyncio.to_thread(run, "purge", digest, cwd=mirror.root.parent, **values)
    assert refused.returncode == 1
    assert "is reading it" in refused.stderr
    assert [item["digest"] for item in (await command(mirror, "purge", digest))["removed"]] == [digest]


async def test_a_purge_is_seen_by_a_running_server_at_once(start_mirror: Any, upstream: Any) -> None:
    """What the server has in its memory goes as well: offline there is nothing left to answer."""
    image = upstream.add_image("team/app", "1", [random_bytes(SIZE, seed=5)])
    mirror = await start_mirror()
    for _ in range(2):
        assert (await mirror.get(f"{APP}/manifests/1")).status == 200
    asked = upstream.count(kind="manifest")
    await command(mirror, "purge", "team/app:1")
    assert (await mirror.get(f"{APP}/manifests/{image.digest}")).status == 200
    assert upstream.count(kind="manifest") > asked


@asynccontextmanager
async def full_of_everything(start_mirror: Any, upstream: Any) -> AsyncIterator[Any]:
    """A moved tag, a shared layer, an index and a child, a referrer, a pin, a manifest pulled by its
    digest, a blob that nothing names, and one that is being read.
    """
    mirror = await start_mirror(freshness={"tag_max_age": "0"})
    shared = random_bytes(SIZE, seed=1)
    children = [
        upstream.add_image("team/app", None, [shared, data], platform=name)
        for name, data in (("linux/amd64", b"amd"), ("linux/arm64", b"arm"))
    ]
    index = upstream.add_index("team/app", "index", children)
    referrer = upstream.add_referrer("team/app", children[0].digest)
    moved = upstream.add_image("team/app", "moved", [shared, b"before"])
    pinned = upstream.add_image("team/app", "pinned", [random_bytes(SIZE, seed=2)])
    by_digest = upstream.add_image("team/app", None, [b"by digest"])
    for reference in ("index", children[0].digest, referrer, "moved", "pinned", by_digest.digest):
        assert (await mirror.get(f"{APP}/manifests/{reference}")).status == 200
    blobs = {digest for image in (children[0], moved, pinned, by_digest) for digest in image.blob_digests}
    unnamed, read = (upstream.add_blob("team/app", random_bytes(SIZE, seed=number)) for number in (7, 8))
    for digest in [*sorted(blobs), unnamed, read]:
        await pull(mirror, digest)
    upstream.add_image("team/app", "moved", [shared, b"after"])
    assert (await mirror.get(f"{APP}/manifests/moved")).status == 200
    wanted = {*blobs, unnamed, read}
    await wait_until(lambda: wanted <= mirror.stored(), "everything is stored")
    await wait_until(lambda: len(rows(mirror, "SELECT digest FROM blobs")) == len(wanted), "with its row")
    async with run_mirror(mirror.root, {NAME: upstream}, clock=mirror.clock) as other:
        # As it ends it writes the times of its pulls, which else takes some seconds.
        assert (await other.get(f"{APP}/manifests/{by_digest.digest}")).status == 200
    await command(mirror, "pin", "team/app:pinned")
    with mirror.blob_path(read).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        yield SimpleNamespace(
            mirror=mirror, index=index, moved=moved, pinned=pinned, by_digest=by_digest, unnamed=unnamed,
            read=read, child=children[0], referrer=referrer,
        )  # fmt: skip


async def test_a_dry_run_of_a_collection_lists_what_the_real_one_removes(
    start_mirror: Any, upstream: Any
) -> None:
    """B8, B43, B45: of everything only the moved tag's old image and the blob that nothing names."""
    async with full_of_everything(start_mirror, upstream) as store:
        before = store.mirror.stored()
        planned = await command(store.mirror, "gc", "--dry-run")
        assert store.mirror.stored() == before
        done = await command(store.mirror, "gc")
        assert {**planned, "dry_run": False} == done
        gone = {item["digest"] for item in done["removed"]}
        assert gone == {store.moved.digest, store.moved.layer_digests[1], store.unnamed}
        assert before - store.mirror.stored() == gone - {store.moved.digest}
        assert done["count"] == 3


async def test_a_dry_run_of_an_eviction_lists_what_the_real_one_removes(
    start_mirror: Any, upstream: Any
) -> None:
    """B40, B45: everything but what is pinned or being read."""
    async with full_of_everything(start_mirror, upstream) as store:
        before = store.mirror.stored()
        planned = await command(store.mirror, "evict", "--to", "0", "--dry-run")
        assert store.mirror.stored() == before
        done = await command(store.mirror, "evict", "--to", "0")
        assert {**planned, "dry_run": False} == done
        assert store.mirror.stored() == {*store.pinned.blob_digests, store.read}
        gone = {item["digest"] for item in done["removed"]}
        assert gone & before == before - store.mirror.stored()
        assert store.moved.digest in gone
        assert store.pinned.digest not in gone
