"""One blob that several repositories want: what one of them is refused is no answer for the others."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from regmirror.metadata.upgrade import database_path
from regmirror.oci.names import Digest
from regmirror.telemetry.events import NotStored
from tests.conftest import StartMirror
from tests.fake_registry import Chunked, Corrupt, FakeRegistry, Hold, Html, Status, random_bytes
from tests.mirror_fixture import NAME, list_open_files, run_mirror, run_program, wait_until

SIZE = 400_000
BLOB = random_bytes(SIZE, seed=11)
OTHER = "other.test"
UNKNOWN = 200  # digests that nobody has


@pytest.fixture
async def other() -> AsyncIterator[Any]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def digest(upstream: FakeRegistry, other: Any) -> Any:
    assert other.add_blob("team/app", BLOB) == upstream.add_blob("team/app", BLOB)
    return upstream.add_blob("team/app", BLOB)


@pytest.fixture
def path(digest: str) -> Any:
    return f"/v2/team/app/blobs/{digest}"


def invented(digest: str, count: int) -> Any:
    return [f"/v2/invented/name{number}/blobs/{digest}" for number in range(count)]


def rights(storage: Path) -> Any:
    """The repositories that may have a blob, by the database."""
    query = "SELECT name FROM repositories JOIN repository_blobs ON id = repository_id ORDER BY name"
    with closing(sqlite3.connect(database_path(storage))) as connection:
        return [row[0] for row in connection.execute(query)]


# --- names that do not exist ---


async def test_a_cold_blob_can_be_pulled_beside_requests_under_invented_names(
    start_mirror: StartMirror, upstream: FakeRegistry, digest: str, path: str
) -> None:
    """B20, B67: each repository has the answer of its own upstream, and each is requested once."""
    mirror = await start_mirror()
    hold = upstream.hold(kind="blob", times=1)
    bogus = [asyncio.create_task(mirror.get(name)) for name in invented(digest, 12)]
    await hold.wait_for_arrivals()
    await mirror.wait_for_started(12)
    pulls = [asyncio.create_task(mirror.get(path)) for _ in range(10)]
    await mirror.wait_for_started(22)
    hold.release()
    assert [got.status for got in await asyncio.gather(*pulls)] == [200] * 10
    assert {got.status for got in await asyncio.gather(*bogus)} == {404}
    assert upstream.count("blob", "GET", status=200) == 1


async def test_an_invented_name_at_one_worker_fails_no_pull_at_another(
    start_mirror: StartMirror, upstream: FakeRegistry, digest: str, path: str
) -> None:
    """B13, B20: a note about a failure is about one repository."""
    one, two = await start_mirror(), await start_mirror()
    hold = upstream.hold(kind="blob", times=1)
    bogus = asyncio.create_task(one.get(invented(digest, 1)[0]))
    await hold.wait_for_arrivals()
    pulls = [asyncio.create_task(two.get(path)) for _ in range(5)]
    await two.wait_for_started(5)
    hold.release()
    assert (await bogus).status == 404
    assert [got.status for got in await asyncio.gather(*pulls)] == [200] * 5
    assert upstream.count("blob", "GET", status=200) == 1


@pytest.mark.parametrize(
    ("fault", "status"),
    [(Status(404), 404), (Status(401), 404), (Status(429), 429), (Status(503), 502), (Html(), 502)],
    ids=["absent", "denied", "limited", "failing", "login page"],
)
async def test_what_one_upstream_rejects_is_had_from_another(
    tmp_path: Path, upstream: FakeRegistry, other: Any, digest: str, path: str, fault: Any, status: int
) -> None:
    """B34, B35: of two upstreams that are asked for one blob each answers its own clients."""
    hold = Hold()
    upstream.fault(hold, fault, kind="blob")
    async with run_mirror(tmp_path / "data", {NAME: upstream, OTHER: other}) as mirror:
        first = asyncio.create_task(mirror.get(path))
        await hold.wait_for_arrivals()
        second = asyncio.create_task(mirror.get(f"{path}?ns={OTHER}"))
        await mirror.wait_for_started(2)
        hold.release()
        response = await second
        assert (response.status, response.body) == (200, BLOB)
        assert (await first).status == status
        assert other.count("blob", "GET") == 1


async def test_wrong_bytes_from_one_upstream_are_fetched_again_from_another(
    tmp_path: Path, upstream: FakeRegistry, other: Any, digest: str, path: str
) -> None:
    """B2: as long as the client of the other one has none of them; and later pulls go on with it."""
    upstream.fault(Corrupt(), kind="blob", times=None)
    pause = upstream.pause(after=SIZE // 4, kind="blob")
    async with run_mirror(tmp_path / "data", {NAME: upstream, OTHER: other}) as mirror:
        first = asyncio.create_task(mirror.get(path))
        await pause.wait_for_arrivals()
        last_byte = {"Range": f"bytes={SIZE - 1}-"}
        second = asyncio.create_task(mirror.get(f"{path}?ns={OTHER}", last_byte))
        await wait_until(lambda: other.count("blob") >= 1, "the other one is known to have it")
        pause.release()
        assert (await second).body == BLOB[-1:]
        with pytest.raises(aiohttp.ClientPayloadError):
            await first
        assert (await mirror.get(f"{path}?ns={OTHER}")).body == BLOB
        assert other.count("blob", "GET", status=200) == 2  # one beside the other upstream's, one stored


# --- rights ---


async def test_wrong_bytes_leave_no_right_behind(
    start_mirror: StartMirror, upstream: FakeRegistry, digest: str, path: str
) -> None:
    """B67: a repository has a right to what its upstream has sent, when all of it has been verified."""
    mirror = await start_mirror()
    fault = upstream.fault(Corrupt(), kind="blob", times=None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(path)
    await mirror.worker._resources.downloads.drain()
    assert rights(mirror.root) == []
    fault.remove()
    assert (await mirror.get(path)).body == BLOB
    await mirror.worker._resources.downloads.drain()
    assert rights(mirror.root) == ["team/app"]


# --- what strangers can make it hold ---


async def test_requests_for_unknown_digests_hold_few_files_and_end_with_their_clients(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """B100: a note and a descriptor for each download that waits, and so many of them at most."""
    mirror = await start_mirror(upstreams={NAME: {"max_connections": 300}})
    hold = upstream.hold(kind="blob", times=None)
    before = len(staging_descriptors())
    digests = [Digest.of(b"%d" % number) for number in range(UNKNOWN)]
    tasks = [asyncio.create_task(mirror.get(f"/v2/team/app/blobs/{digest}")) for digest in digests]
    await mirror.wait_for_started(UNKNOWN)
    await hold.wait_for_arrivals()
    assert len(mirror.staged()) <= 64
    assert len(staging_descriptors()) - before <= 64
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await wait_until(lambda: mirror.staged() == [], "nothing is held for clients that have left")
    assert staging_descriptors() == []


def staging_descriptors() -> Any:
    return [name for name in list_open_files() if "/staging/" in name]


async def test_a_blob_of_unknown_size_is_written_within_the_limit_only(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """B40: room is made while it grows; what does not fit is passed on."""
    large = random_bytes(3_000_000, seed=12)
    digest = upstream.add_blob("team/app", large)
    upstream.fault(Chunked(), kind="blob", times=None)
    pause = upstream.pause(after=2_900_000)
    mirror = await start_mirror(storage={"max_size": "1000000", "min_free": "0"})
    pull = asyncio.create_task(mirror.get(f"/v2/team/app/blobs/{digest}"))
    await pause.wait_for_arrivals()
    await wait_until(lambda: mirror.events.of(NotStored) != [], "it is not kept")
    assert sum(file.stat().st_size for file in (mirror.root / "staging").iterdir()) <= 1_000_000
    pause.release()
    assert (await pull).body == large
    assert mirror.stored() == set()
    assert {event.reason for event in mirror.events.of(NotStored)} == {"quota"}


# --- processes that stand still ---


@pytest.mark.parametrize("after", [None, SIZE // 2], ids=["before the headers", "in the middle"])
async def test_a_writer_that_stands_still_holds_nobody_else(
    upstream: FakeRegistry, storage: Path, digest: str, path: str, after: Any
) -> None:
    """B35: a process that is stopped keeps its lock; the others go on without it."""
    gate = upstream.hold(kind="blob", times=1) if after is None else upstream.pause(after=after, times=1)
    limits = {"upstreams": {NAME: {"read_timeout": "1s"}}}
    async with (
        run_program(storage, {NAME: upstream}, **limits) as writer,
        run_program(storage, {NAME: upstream}, **limits) as follower,
    ):
        first = asyncio.create_task(writer.get(path))
        await gate.wait_for_arrivals()
        if after is not None:
            file = storage / "staging" / digest.replace(":", "-")
            await wait_until(lambda: file.exists() and file.stat().st_size == after, "half of it is there")
        os.kill(writer.process.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(15):
                assert (await follower.get(path)).body == BLOB
        finally:
            os.kill(writer.process.pid, signal.SIGCONT)
            gate.release()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
