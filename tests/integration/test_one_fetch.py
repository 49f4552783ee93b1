"""One fetch for many clients, as a counting upstream sees it (B12 to B23)."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Literal

import aiohttp
import pytest

from regmirror.telemetry.events import DownloadEnded, FollowersChanged, RequestServed
from tests.conftest import StartMirror
from tests.fake_registry import (
    Chunked,
    FakeRegistry,
    FakeStorage,
    Hold,
    IgnoreRange,
    Pause,
    Reset,
    Status,
    WrongContentRange,
    random_bytes,
)
from tests.fake_registry.content import Image
from tests.fake_registry.faults import Action
from tests.mirror_fixture import NAME, InProcessMirror, list_open_files, run_mirror, run_program, wait_until

SIZE = 4_000_000
BLOB = random_bytes(SIZE)
APP, OTHER = "/v2/team/app", "/v2/team/other"


@pytest.fixture
async def image(upstream: FakeRegistry) -> Image:
    return upstream.add_image("team/app", "1", [BLOB])


@pytest.fixture
async def path(mirror: InProcessMirror, image: Image) -> str:
    """A cold blob of a linked repository: a GET starts the download at once.

    Two requests have been made for that, one of each kind.
    """
    await mirror.get(f"{APP}/manifests/1")
    path = f"{APP}/blobs/{image.layer_digests[0]}"
    await mirror.head(path)
    return path


PREPARED = 2


def blob_gets(upstream: FakeRegistry) -> int:
    return upstream.count("blob", "GET")


def assert_fetched_once(upstream: FakeRegistry, most: float = 1.01) -> None:
    """One request, and hardly more bytes than the blob has."""
    assert blob_gets(upstream) == 1
    assert upstream.sent_bytes("blob") <= most * SIZE


# --- many clients ---


async def test_many_clients_cause_one_fetch_and_read_before_it_has_ended(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B12: each of 50 has its first bytes while the upstream has not sent the remaining ones."""
    pause = upstream.pause(after=1_000_000)

    async def pull() -> bytes:
        async with mirror.open(path) as response:
            first = await response.content.readexactly(100_000)
            begun.release()
            return first + await response.read()

    begun = asyncio.Semaphore(0)
    pulls = [asyncio.create_task(pull()) for _ in range(50)]
    for _ in pulls:
        await begun.acquire()
    assert not pause.is_open
    pause.release()
    for body in await asyncio.gather(*pulls):
        assert body == BLOB
    assert_fetched_once(upstream)
    results = [event.result for event in mirror.events.of(RequestServed) if event.method == "GET"]
    assert sorted(results) == ["coalesced"] * 49 + ["miss"] * 2  # one of them the manifest's


@pytest.mark.parametrize("workers", [1, 2])
async def test_two_repositories_and_several_workers_share_one_fetch(
    start_mirror: StartMirror, upstream: FakeRegistry, image: Image, workers: int
) -> None:
    """B13, B67: over workers on one storage, plus one proof that the other repository has the blob."""
    upstream.add_blob("team/other", BLOB)
    mirrors = [await start_mirror() for _ in range(workers)]
    pause = upstream.pause(after=1_000_000)
    paths = [f"{name}/blobs/{image.layer_digests[0]}" for name in (APP, OTHER)]
    pulls = [asyncio.create_task(mirror.get(path)) for mirror in mirrors for path in paths * 5]
    await pause.wait_for_arrivals()
    for mirror in mirrors:
        await wait_until(partial(_has_followers, mirror, 10), "all ten follow")
    pause.release()
    for got in await asyncio.gather(*pulls):
        assert got.body == BLOB
    proofs = [request for request in upstream.find("blob", "GET") if "Range" in request.headers]
    assert blob_gets(upstream) - len(proofs) == 1
    assert 1 <= len(proofs) <= 2 * workers  # of what arrives, and of what is stored
    assert upstream.sent_bytes("blob") <= 1.02 * SIZE
    assert upstream.count("blob", "HEAD") == 0


async def test_many_cold_pulls_of_a_tag_cause_one_request(start_mirror: StartMirror) -> None:
    """B14: with one token for all."""
    async with FakeRegistry(auth="bearer") as upstream:
        image = upstream.add_image("team/app", "1")
        mirror = await start_mirror({NAME: upstream})
        hold = upstream.hold(kind="manifest")
        pulls = [asyncio.create_task(mirror.get(f"{APP}/manifests/1")) for _ in range(50)]
        await mirror.wait_for_started(50)
        hold.release()
        for got in await asyncio.gather(*pulls):
            assert got.body == image.manifest
        assert upstream.count("manifest", status=200) == 1
        assert upstream.count("manifest") <= 2  # the first is answered by a challenge
        assert upstream.count("token") == 1


async def test_a_late_joiner_gets_the_present_bytes_and_ends_with_the_others(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B15: from the file, while the upstream pauses at one half."""
    pause = upstream.pause(after=SIZE // 2)
    async with mirror.open(path) as first, AsyncExitStack() as stack:
        await first.content.readexactly(SIZE // 2)
        late = await stack.enter_async_context(mirror.open(path))
        assert await late.content.readexactly(SIZE // 2) == BLOB[: SIZE // 2]
        assert "collapsed" in late.headers["Cache-Status"]
        pause.release()
        assert await first.read() == await late.read() == BLOB[SIZE // 2 :]
    assert_fetched_once(upstream)


@pytest.mark.parametrize("chunked", [False, True], ids=["known length", "unknown length"])
async def test_headers_come_with_those_of_the_upstream(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, chunked: bool
) -> None:
    """B23: before the first byte of the body."""
    if chunked:
        upstream.fault(Chunked(), kind="blob")
    pause = upstream.pause(after=0)
    async with mirror.open(path) as response:
        assert response.status == 200
        assert not pause.is_open
        pause.release()
        assert await response.read() == BLOB


# --- clients that leave ---


async def test_the_first_client_may_leave(mirror: InProcessMirror, upstream: FakeRegistry, path: str) -> None:
    """B16: the download belongs to the mirror."""
    pause = upstream.pause(after=SIZE // 10)
    first = await mirror.http.get(mirror.url + path)
    await first.content.readexactly(SIZE // 20)
    second = asyncio.create_task(mirror.get(path))
    await mirror.wait_for_started(PREPARED + 2)
    first.close()
    pause.release()
    assert (await second).body == BLOB
    assert_fetched_once(upstream)


async def test_a_download_ends_without_any_client(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, image: Image
) -> None:
    """B16: the next pull finds it stored."""
    pause = upstream.pause(after=SIZE // 10)
    async with mirror.open(path) as response:
        await response.content.readexactly(SIZE // 20)
    pause.release()
    (ended,) = (event for event in await mirror.events.wait_for(DownloadEnded) if event.size == SIZE)
    assert ended.error == ""
    assert mirror.blob_path(image.layer_digests[0]).read_bytes() == BLOB
    got = await mirror.get(path)
    assert got.body == BLOB
    assert got.headers["Cache-Status"] == "regmirror; hit"
    assert_fetched_once(upstream)


async def test_a_slow_client_slows_neither_the_download_nor_others(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B17: and gets every byte in the end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.connect(("127.0.0.1", mirror.port))
        slow.setblocking(False)
        await loop.sock_sendall(slow, f"GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n".encode())
        received = await loop.sock_recv(slow, 1_000)
        assert (await mirror.get(path)).body == BLOB
        await mirror.events.wait_for(DownloadEnded)
        while piece := await loop.sock_recv(slow, 65_536):
            received += piece
    assert received.partition(b"\r\n\r\n")[2] == BLOB
    assert_fetched_once(upstream)


@pytest.mark.parametrize("temperature", ["cold", "warm"])
async def test_clients_that_close_early_leave_nothing_behind(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    path: str,
    caplog: pytest.LogCaptureFixture,
    temperature: str,
) -> None:
    """B17: no task, no descriptor, no error in the log, after a hundred of them."""
    pause = upstream.pause(after=SIZE // 2, skip=temperature == "warm")
    await _pull_and_leave(mirror, path)
    if temperature == "warm":
        await mirror.events.wait_for(DownloadEnded)
    tasks, files = len(asyncio.all_tasks()), len(list_open_files())
    await asyncio.gather(*(_pull_and_leave(mirror, path) for _ in range(100)))
    pause.release()
    assert (await mirror.get(path)).body == BLOB
    await wait_until(lambda: _count_served(mirror) == PREPARED + 102, "all have ended")
    await wait_until(lambda: len(asyncio.all_tasks()) <= tasks, "their tasks are gone")
    await wait_until(
        lambda: len(list_open_files()) <= files + 2, "their files are closed"
    )  # of the last pull's connection
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []
    assert sum(event.delta for event in mirror.events.of(FollowersChanged)) == 0
    assert_fetched_once(upstream)


async def _pull_and_leave(mirror: InProcessMirror, path: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_connection(("127.0.0.1", mirror.port)) as connection:
        connection.setblocking(False)
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        assert await loop.sock_recv(connection, 1_000)


def _count_served(mirror: InProcessMirror) -> int:
    return len(mirror.events.of(RequestServed))


async def test_memory_does_not_grow_with_the_bytes(upstream: FakeRegistry, storage: Path) -> None:
    """B18: twenty big blobs at once; scaled down, but far more than the memory they may take."""
    size = 16 * 2**20
    digests = [upstream.add_big_blob("team/app", size, seed) for seed in range(20)]
    small = upstream.add_blob("team/app", BLOB)
    async with run_program(storage, {NAME: upstream}) as program:
        memory = []

        async def pull(digest: str) -> int:
            count = 0
            async with program.open(f"{APP}/blobs/{digest}") as response:
                async for piece in response.content.iter_chunked(2**20):
                    count += len(piece)
                    memory.append(program.memory())
            return count

        await pull(small)
        before = memory[-1]
        assert await asyncio.gather(*map(pull, digests)) == [size] * 20
        assert max(memory) - before < 64 * 2**20


# --- upstreams that break off ---


@pytest.mark.parametrize("ranges", [None, IgnoreRange(), WrongContentRange()], ids=["", "ignored", "wrong"])
async def test_a_download_that_breaks_twice_is_one_clean_body(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, ranges: Action | None
) -> None:
    """B19: resumed by Range; an upstream that ignores it is skipped through, never appended."""
    breaks = [(SIZE * 3 // 10, SIZE * 3 // 10), (SIZE * 7 // 10, SIZE * 4 // 10)]
    pauses = [Pause(after) for _, after in breaks]
    for number, pause in enumerate(pauses):
        upstream.fault(pause, Reset(pause.after), kind="blob", method="GET", skip=number)
    if ranges:
        upstream.fault(ranges, kind="blob", method="GET", skip=1, times=None)
    pull = asyncio.create_task(mirror.get(path))
    for (stop, _), pause in zip(breaks, pauses, strict=True):
        await pause.wait_for_arrivals()
        if ranges is None:
            await wait_until(partial(_has_staged, mirror, stop), "all sent bytes are on disk")
        pause.release()
    assert (await pull).body == BLOB
    requested = [request.headers.get("Range") for request in upstream.find("blob", "GET")]
    assert requested[0] is None
    if ranges is None:
        assert requested[1:] == [f"bytes={SIZE * 3 // 10}-", f"bytes={SIZE * 7 // 10}-"]
        assert upstream.sent_bytes("blob") <= 1.02 * SIZE
    await mirror.events.wait_for(DownloadEnded)
    assert mirror.events.of(DownloadEnded)[-1].resumed >= 2


async def test_a_download_is_resumed_after_a_restart(
    upstream: FakeRegistry, storage: Path, image: Image
) -> None:
    """B16, B19: by Range, from the bytes on disk."""
    path = f"{APP}/blobs/{image.layer_digests[0]}"
    pause = upstream.pause(after=SIZE // 2, times=1)
    async with run_mirror(storage, {NAME: upstream}) as mirror, mirror.open(path) as response:
        await response.content.readexactly(SIZE // 4)
        await wait_until(lambda: _staged_bytes(mirror) == SIZE // 2, "one half is on disk")
    await pause.wait_until_empty()
    async with run_mirror(storage, {NAME: upstream}) as mirror:
        assert (await mirror.get(path)).body == BLOB
    assert upstream.find("blob", "GET")[-1].headers["Range"] == f"bytes={SIZE // 2}-"
    assert upstream.sent_bytes("blob") <= 1.02 * SIZE


def _has_followers(mirror: InProcessMirror, count: int) -> bool:
    return len(mirror.events.of(FollowersChanged)) == count


def _has_staged(mirror: InProcessMirror, count: int) -> bool:
    return _staged_bytes(mirror) == count


def _staged_bytes(mirror: InProcessMirror) -> int:
    return sum(path.stat().st_size for path in (mirror.root / "staging").glob("sha256-*[!e]"))


async def test_a_failed_download_reaches_all_waiting_clients_and_is_retried_once(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B20: one retry, not one for each of them."""
    for round_ in (1, 2):
        hold = Hold()
        upstream.fault(hold, Status(503), kind="blob", method="GET")
        pulls = [asyncio.create_task(mirror.get(path)) for _ in range(20)]
        await mirror.wait_for_started(PREPARED + 20 * round_)
        hold.release()
        assert [got.status for got in await asyncio.gather(*pulls)] == [502] * 20
        assert blob_gets(upstream) == round_
    assert (await mirror.get(path)).body == BLOB


async def test_a_download_that_breaks_in_the_middle_breaks_for_all(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B5, B20: no client waits for ever or gets a complete response, and the next pull resumes."""
    pause = upstream.pause(after=SIZE // 2)
    upstream.fault(Reset(SIZE // 2 + 1), kind="blob", method="GET")
    gone = upstream.fault(Status(404), kind="blob", method="GET", skip=1, times=None)
    pulls = [asyncio.create_task(mirror.get(path)) for _ in range(10)]
    await mirror.wait_for_started(PREPARED + 10)
    pause.release()
    results = await asyncio.gather(*pulls, return_exceptions=True)
    assert {type(result) for result in results} == {aiohttp.ClientPayloadError}
    assert blob_gets(upstream) == 2
    gone.remove()
    assert (await mirror.get(path)).body == BLOB


# --- parts of a cold blob ---


async def test_parallel_ranges_of_a_cold_blob_are_served_from_one_fetch(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B21: in any order."""
    part = SIZE // 20
    pause = upstream.pause(after=part)
    spans = [(number * part, (number + 1) * part) for number in reversed(range(20))]
    headers = [{"Range": f"bytes={start}-{stop - 1}"} for start, stop in spans]
    pulls = [asyncio.create_task(mirror.get(path, header)) for header in headers]
    await mirror.wait_for_started(PREPARED + 20)
    pause.release()
    for (start, stop), got in zip(spans, await asyncio.gather(*pulls), strict=True):
        assert got.status == 206
        assert got.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert got.body == BLOB[start:stop]
    assert_fetched_once(upstream)


async def test_a_small_range_at_the_end_has_its_headers_at_once(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B21: containerd gives up on headers that take as long as the whole blob."""
    pause = upstream.pause(after=1_000)
    async with mirror.open(path, headers={"Range": "bytes=-100"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"] == f"bytes {SIZE - 100}-{SIZE - 1}/{SIZE}"
        assert not pause.is_open
        pause.release()
        assert await response.read() == BLOB[-100:]
    assert_fetched_once(upstream)


async def test_a_range_at_the_start_ends_before_the_download_does(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B21: the bytes on disk are enough."""
    pause = upstream.pause(after=100_000)
    got = await mirror.get(path, {"Range": "bytes=10-99"})
    assert got.body == BLOB[10:100]
    assert not pause.is_open
    pause.release()


async def test_the_end_of_a_wrong_blob_is_never_a_whole_part(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B2, B21: the last byte is withheld from ranges as well."""
    upstream.fault(Reset(SIZE - 1), kind="blob", method="GET")
    upstream.fault(Status(404), kind="blob", method="GET", skip=1, times=None)
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(path, {"Range": "bytes=-100"})


# --- HEAD ---


@pytest.mark.parametrize("what", ["blob", "manifest"])
async def test_head_of_cold_content_fetches_nothing(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image, what: Literal["blob", "manifest"]
) -> None:
    """B22: a HEAD request goes to the upstream."""
    reference = image.layer_digests[0] if what == "blob" else "1"
    got = await mirror.head(f"{APP}/{what}s/{reference}")
    assert got.status == 200
    assert got.headers["Content-Length"] == str(SIZE if what == "blob" else len(image.manifest))
    assert upstream.count(what, "HEAD") == 1
    assert upstream.count(method="GET") == 0
    assert mirror.staged() == []


async def test_head_does_not_follow_a_redirect_into_storage(
    mirror: InProcessMirror, upstream: FakeRegistry, image: Image
) -> None:
    """B22: a signed URL is valid for GET only; the size comes with a GET of one byte."""
    await mirror.get(f"{APP}/manifests/1")
    async with FakeStorage(upstream) as store:
        got = await mirror.head(f"{APP}/blobs/{image.layer_digests[0]}")
        assert got.headers["Content-Length"] == str(SIZE)
        assert store.count(method="HEAD") == 0
        assert store.count(method="GET") == 1
        assert store.sent_bytes() == 1
    assert mirror.staged() == []
