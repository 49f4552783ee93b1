"""Pulls go on when the disk fails (B44): correct bytes, nothing stored, and stored again when it works."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.local import LocalBlobStore
from regmirror.oci.names import Digest
from regmirror.telemetry.events import DownloadEnded, NotStored, RequestServed
from tests.conftest import StartMirror
from tests.e2e.parts.faults import MIB, full_disk, small_ext4, small_tmpfs
from tests.fake_registry import Chunked, Corrupt, FakeRegistry, Reset, Status, random_bytes
from tests.mirror_fixture import NAME, InProcessMirror, list_open_files, run_mirror, run_program, wait_until

SIZE = 4_000_000
BreakWrites = Callable[..., None]
BLOB = random_bytes(SIZE)
APP = "/v2/team/app"
NO_LIMITS = {"min_free": "0"}

real_disk = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounts need root")
lengths = pytest.mark.parametrize("chunked", [False, True], ids=["known length", "unknown length"])


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> InProcessMirror:
    return await start_mirror(storage=NO_LIMITS)


@pytest.fixture
async def path(mirror: InProcessMirror, upstream: FakeRegistry) -> str:
    """A cold blob of a linked repository."""
    image = upstream.add_image("team/app", "1", [BLOB])
    await mirror.get(f"{APP}/manifests/1")
    return f"{APP}/blobs/{image.layer_digests[0]}"


@pytest.fixture
def break_writes(monkeypatch: pytest.MonkeyPatch) -> BreakWrites:
    """A function: so many bytes of content may be written, then the disk fails by this number."""
    real, splice = os.pwrite, os.splice

    def begin(allowed: int, number: int = 28) -> None:
        left = [allowed]

        def move(
            source: int, target: int, count: int, *, offset_dst: int | None = None, flags: int = 0
        ) -> int:
            if offset_dst is None:  # from the socket
                return splice(source, target, count, flags=flags)
            if not left[0]:
                raise OSError(number, os.strerror(number))
            count = splice(source, target, min(count, left[0]), offset_dst=offset_dst)
            left[0] -= count
            return count

        def pwrite(descriptor: int, data: bytes, offset: int) -> int:
            if bytes(data[:1]) == b"{" and len(data) < 4_096:  # a state file
                return real(descriptor, data, offset)
            if not left[0]:
                raise OSError(number, os.strerror(number))
            count = real(descriptor, data[: left[0]], offset)
            left[0] -= count
            return count

        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "splice", move)

    return begin


def blob_gets(upstream: FakeRegistry) -> list[str | None]:
    return [request.headers.get("Range") for request in upstream.find("blob", "GET")]


def reasons(mirror: InProcessMirror) -> list[str]:
    return [event.reason for event in mirror.events.of(NotStored)]


async def assert_stored_by_the_next_pull(mirror: InProcessMirror, upstream: FakeRegistry, path: str) -> None:
    before = len(blob_gets(upstream))
    got = await mirror.get(path)
    assert got.body == BLOB
    assert got.headers["Cache-Status"] == "regmirror; fwd=miss; stored"
    await wait_until(lambda: mirror.staged() == [], "it is committed")
    assert (await mirror.get(path)).headers["Cache-Status"] == "regmirror; hit"
    assert len(blob_gets(upstream)) == before + 1


# --- faults of one call ---


@lengths
@pytest.mark.parametrize("number", [28, 122, 30, 13, 5], ids=["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"])
async def test_staging_that_cannot_be_opened(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    chunked: bool,
) -> None:
    """B44: one request to the upstream, and the cache status says that nothing was stored."""
    if chunked:
        upstream.fault(Chunked(), kind="blob", times=None)
    real = os.open

    def fail(name: Any, flags: int, *mode: int, **more: Any) -> int:
        if flags & os.O_CREAT and "staging" in str(name):
            raise OSError(number, os.strerror(number))
        return real(name, flags, *mode, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        got = await mirror.get(path)
    assert got.status == 200
    assert got.body == BLOB
    assert got.headers["Cache-Status"] == "regmirror; fwd=miss"
    assert blob_gets(upstream) == [None]
    assert reasons(mirror) == ["disk"]
    assert mirror.stored() == set()
    assert mirror.staged() == []
    await assert_stored_by_the_next_pull(mirror, upstream, path)


@lengths
@pytest.mark.parametrize("written", [0, 1, 1_500_000, SIZE - 1])
async def test_writing_fails_in_the_middle(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    path: str,
    break_writes: BreakWrites,
    monkeypatch: pytest.MonkeyPatch,
    written: int,
    chunked: bool,
) -> None:
    """B44: by the same request, for any number of written bytes; the file is deleted."""
    if chunked:
        upstream.fault(Chunked(), kind="blob", times=None)
    break_writes(written)
    got = await mirror.get(path)
    assert got.body == BLOB
    assert blob_gets(upstream) == [None]
    assert reasons(mirror) == ["disk"]
    assert mirror.stored() == set()
    assert mirror.staged() == []
    monkeypatch.undo()
    await assert_stored_by_the_next_pull(mirror, upstream, path)


async def test_bytes_flow_while_the_upstream_still_sends(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B12, B44: a pass-through delays no more than the last byte."""
    break_writes(100_000)
    pause = upstream.pause(after=SIZE)
    async with mirror.open(path) as response:
        assert await response.content.readexactly(SIZE - 1) == BLOB[:-1]
        assert not pause.is_open
        pause.release()
        assert await response.read() == BLOB[-1:]


@pytest.mark.parametrize("written", [0, 1_500_000])
async def test_wrong_bytes_are_never_a_complete_response(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites, written: int
) -> None:
    """B2, B44."""
    break_writes(written)
    upstream.fault(Corrupt(SIZE - 10), kind="blob", method="GET")
    with pytest.raises(aiohttp.ClientPayloadError):
        await mirror.get(path)
    assert mirror.staged() == []
    assert (await mirror.get(path)).body == BLOB


async def test_an_upstream_that_breaks_off_is_resumed(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B19, B44: by Range, and the bytes are still verified."""
    break_writes(500_000)
    upstream.fault(Reset(2_000_000), kind="blob", method="GET")
    assert (await mirror.get(path)).body == BLOB
    first, second = blob_gets(upstream)
    assert first is None
    assert second is not None
    assert second.startswith("bytes=")


async def test_many_clients_cost_one_request_each_at_most(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B44: 20 of them read the written bytes and continue from there."""
    break_writes(1_000_000)
    pause = upstream.pause(after=500_000, times=1)
    pulls = [asyncio.create_task(mirror.get(path)) for _ in range(20)]
    await mirror.wait_for_started(1 + 20)
    pause.release()
    assert {got.body == BLOB for got in await asyncio.gather(*pulls)} == {True}
    assert len(blob_gets(upstream)) <= 20
    assert {requested for requested in blob_gets(upstream) if requested} == {"bytes=1000000-"}
    assert len(reasons(mirror)) == 20
    assert mirror.staged() == []
    await wait_until(
        lambda: not [name for name in list_open_files() if "/staging/" in name], "no file is open"
    )
    results = [event.result for event in mirror.events.of(RequestServed) if event.kind == "blob"]
    assert "error" not in results


@pytest.mark.parametrize("call", ["fsync", "replace"])
async def test_a_blob_that_cannot_be_committed_is_served(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """B44: nothing partial stays, not even a whole file that may be gone after a crash."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail) if call == "fsync" else patched.setattr(
            "pathlib.Path.replace", fail
        )
        assert (await mirror.get(path)).body == BLOB
        await mirror.events.wait_for(NotStored)
        await wait_until(lambda: mirror.staged() == [], "the file is gone")
    assert mirror.stored() == set()
    assert reasons(mirror) == ["disk"]
    assert mirror.events.of(DownloadEnded)[-1].error == "cannot be stored: Input/output error"
    await assert_stored_by_the_next_pull(mirror, upstream, path)


async def test_a_directory_that_cannot_be_synced_stores_nothing(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: the rename may be undone by a crash, so it is undone at once."""
    real = os.fsync

    def fail_there(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "sha256":
            raise OSError(5, "Input/output error")
        return real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail_there)
        assert (await mirror.get(path)).body == BLOB
        await mirror.events.wait_for(NotStored)
    await wait_until(lambda: mirror.staged() == [], "the state file is gone")
    assert mirror.stored() == set()


async def test_ranges_pass_through(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B21, B44: one, several, and the end."""
    break_writes(0)
    got = await mirror.get(path, {"Range": "bytes=1000-1999"})
    assert (got.status, got.body) == (206, BLOB[1000:2000])
    got = await mirror.get(path, {"Range": "bytes=-100"})
    assert (got.status, got.body) == (206, BLOB[-100:])
    got = await mirror.get(path, {"Range": "bytes=10-19,3000000-3000009,0-4"})
    assert got.status == 206
    for part in (BLOB[10:20], BLOB[3_000_000:3_000_010], BLOB[:5]):
        assert part in got.body
    assert mirror.staged() == []


async def test_http_1_0_without_a_size_fails_before_the_headers(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B44, B57: there is nothing to count the bytes with."""
    upstream.fault(Chunked(), kind="blob", times=None)
    upstream.fault(Chunked(), kind="manifest", times=None)
    blob = upstream.add_blob("team/other", random_bytes(600_000, 7))
    break_writes(0)
    response = await mirror.send_raw(f"GET /v2/team/other/blobs/{blob} HTTP/1.0\r\n\r\n".encode())
    assert response.split(b"\r\n")[0].endswith(b"503 Service Unavailable")
    assert b"HTTP/1.0 needs it" in response


async def test_a_rejection_by_the_upstream_comes_before_the_headers(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, break_writes: BreakWrites
) -> None:
    """B34, B44, B86: also when the disk fails."""
    break_writes(0)
    upstream.fault(Status(404), kind="blob", method="GET")
    got = await mirror.get(path)
    assert (got.status, got.code) == (404, "BLOB_UNKNOWN")


async def test_clients_that_leave_end_their_pass_through(
    mirror: InProcessMirror,
    upstream: FakeRegistry,
    path: str,
    break_writes: BreakWrites,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B17: no task, no file, no connection to the upstream is left."""
    break_writes(100_000)
    await mirror.get(path)
    tasks = len(asyncio.all_tasks())
    pause = upstream.pause(after=2_000_000, times=None)
    for _ in range(5):
        async with mirror.open(path) as response:
            await response.content.readexactly(200_000)
            response.close()
    await wait_until(lambda: len(asyncio.all_tasks()) <= tasks, "their tasks are gone")
    await wait_until(
        lambda: not [name for name in list_open_files() if "/staging/" in name], "their files are closed"
    )
    pause.release()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_stored_file_that_cannot_be_opened_is_replaced(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6, B44."""
    await mirror.get(path)
    await mirror.worker._resources.downloads.drain()
    old = mirror.blob_path(path.rpartition("/")[2]).open("rb")
    real, broken = os.open, [2]

    def fail(name: Any, flags: int, *mode: int, **more: Any) -> int:
        if "/blobs/sha256/" in str(name) and broken[0]:
            broken[0] -= 1
            raise OSError(5, "Input/output error")
        return real(name, flags, *mode, **more)

    monkeypatch.setattr(os, "open", fail)
    assert (await mirror.get(path)).body == BLOB
    await mirror.worker._resources.downloads.drain()
    got = await mirror.get(path)
    assert got.headers["Cache-Status"] == "regmirror; hit"
    assert not os.path.samestat(os.fstat(old.fileno()), mirror.blob_path(path.rpartition("/")[2]).stat())
    old.close()
    assert len(blob_gets(upstream)) == 2


async def test_without_space_a_pull_passes_through(
    mirror: InProcessMirror, upstream: FakeRegistry, path: str
) -> None:
    """B40, B44: counted as quota, and by one request."""
    context = mirror.worker._resources.downloads.context

    async def reserve(digest: Digest, size: int | None) -> None:
        raise InsufficientSpace("quota", "storage.max_size is reached")

    before = context.reserve
    object.__setattr__(context, "reserve", reserve)
    got = await mirror.get(path)
    assert got.body == BLOB
    assert got.headers["Cache-Status"] == "regmirror; fwd=miss"
    assert blob_gets(upstream) == [None]
    assert reasons(mirror) == ["quota"]
    assert mirror.staged() == []
    object.__setattr__(context, "reserve", before)
    await assert_stored_by_the_next_pull(mirror, upstream, path)


# --- what is being read ---


@pytest.mark.parametrize("last", [0, 1], ids=["writer", "follower"])
async def test_a_blob_that_is_being_read_cannot_be_removed(
    start_mirror: StartMirror, upstream: FakeRegistry, last: int
) -> None:
    """B40: cold or warm, in the process that fetched it or in one that followed."""
    mirrors = [await start_mirror(storage=NO_LIMITS) for _ in range(2)]
    size = 60 * MIB  # more than all buffers on the way to a client
    digest = upstream.add_big_blob("team/app", size)
    store, path = LocalBlobStore(mirrors[0].root), f"{APP}/blobs/{digest}"

    def may_remove() -> bool:
        removable = store.lock_for_removal(Digest(digest))
        if removable is not None:
            removable.close()
        return removable is not None

    for _ in ("cold", "warm"):
        responses = [await mirror.http.get(mirror.url + path) for mirror in mirrors]
        await wait_until(lambda: mirrors[0].stored() == {digest} and not mirrors[0].staged(), "it is stored")
        for mirror in mirrors:
            await mirror.worker._resources.downloads.drain()
        for response in (responses[1 - last], responses[last]):
            assert not may_remove()
            assert len(await response.read()) == size
        await wait_until(may_remove, "nobody reads it any more")


# --- whether it is ready ---


async def test_readyz_reports_that_nothing_can_be_stored(
    mirror: InProcessMirror, monkeypatch: pytest.MonkeyPatch, break_writes: BreakWrites
) -> None:
    """B44: pulls go on, so that it stays 200."""
    assert (await mirror.get("/readyz")).body == b"ready\n"
    break_writes(0)
    mirror.clock.advance(5)
    got = await mirror.get("/readyz")
    assert (got.status, got.body) == (200, b"ready\nnothing can be stored: no space left on device\n")
    monkeypatch.undo()
    shutil.rmtree(mirror.root / "blobs")
    got = await mirror.get("/readyz")
    assert got.status == 503
    assert b"cannot be read" in got.body


# --- real disks ---


@pytest.mark.e2e
@real_disk
async def test_a_disk_that_is_too_small(upstream: FakeRegistry, tmp_path: Path) -> None:
    """B44: a blob larger than the disk, then one that fits, then the disk full altogether."""
    image = upstream.add_image("team/app", "1", [random_bytes(6 * MIB, 1), random_bytes(300_000, 2)])
    large, small = (f"{APP}/blobs/{digest}" for digest in image.layer_digests)
    with small_tmpfs(tmp_path / "disk", 3 * MIB) as disk:
        async with run_mirror(disk / "data", {NAME: upstream}, storage=NO_LIMITS) as mirror:
            await mirror.get(f"{APP}/manifests/1")
            pulls = await asyncio.gather(*(mirror.get(large) for _ in range(5)))
            assert {got.body for got in pulls} == {random_bytes(6 * MIB, 1)}
            assert mirror.staged() == []
            assert mirror.stored() == set()
            with full_disk(disk):
                got = await mirror.get(small)
                assert got.body == random_bytes(300_000, 2)
                assert mirror.staged() == []
                assert mirror.stored() == set()
                assert (await mirror.get("/readyz")).status == 200
                assert b"no space left" in (await mirror.get("/readyz")).body
                assert (await mirror.get(f"{APP}/manifests/1")).body == image.manifest
            assert (await mirror.get(small)).body == random_bytes(300_000, 2)
            await wait_until(lambda: mirror.stored() == {image.layer_digests[1]}, "the small one is stored")
            assert (await mirror.get(small)).headers["Cache-Status"] == "regmirror; hit"


@pytest.mark.e2e
@real_disk
async def test_several_workers_on_a_disk_that_is_too_small(upstream: FakeRegistry, tmp_path: Path) -> None:
    """B13, B44: as writer and as follower, every client gets the correct bytes."""
    data = random_bytes(6 * MIB, 1)
    digest = upstream.add_blob("team/app", data)
    with small_tmpfs(tmp_path / "disk", 3 * MIB) as disk:
        async with run_program(disk / "data", {NAME: upstream}, workers=2, storage=NO_LIMITS) as program:
            pulls = await asyncio.gather(*(program.get(f"{APP}/blobs/{digest}") for _ in range(12)))
            assert {got.body == data for got in pulls} == {True}
            assert upstream.count("blob", "GET", reference=digest) <= 12 + 2
            await wait_until(lambda: not list((disk / "data/staging").iterdir()), "nothing is staged")
            assert list((disk / "data/blobs").glob("*/*")) == []


@pytest.mark.e2e
@real_disk
async def test_a_disk_that_goes_read_only(upstream: FakeRegistry, tmp_path: Path) -> None:
    """B44: stored blobs are served, others pass through, and are stored afterwards."""
    image = upstream.add_image("team/app", "1", [random_bytes(300_000, 1), random_bytes(300_000, 2)])
    first, second = (f"{APP}/blobs/{digest}" for digest in image.layer_digests)
    with small_ext4(tmp_path / "disk") as disk:
        async with run_mirror(disk.path / "data", {NAME: upstream}, storage=NO_LIMITS) as mirror:
            await mirror.get(f"{APP}/manifests/1")
            await mirror.get(first)
            await wait_until(lambda: mirror.staged() == [], "it is committed")
            disk.fail()
            assert not disk.is_writable()
            assert (await mirror.get(first)).headers["Cache-Status"] == "regmirror; hit"
            got = await mirror.get(second)
            assert got.body == random_bytes(300_000, 2)
            assert got.headers["Cache-Status"] == "regmirror; fwd=miss"
            assert (await mirror.get(f"{APP}/manifests/1")).body == image.manifest
            ready = await mirror.get("/readyz")
            assert (ready.status, b"read-only file system" in ready.body) == (200, True)
