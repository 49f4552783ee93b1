"""Blobs that cannot be kept: what their readers get, and what the upstream is asked for them (B44)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from regmirror.blobs.base import PIECE, Blob, InsufficientSpace
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.downloads.registry import Downloads
from regmirror.errors import (
    RegistryError,
    Unavailable,
    UpstreamContentInvalid,
    UpstreamFailed,
    UpstreamNotFound,
)
from regmirror.oci.names import Digest
from regmirror.telemetry.events import DownloadEnded, NotStored, VerificationFailed
from tests.mirror_fixture import list_open_files, wait_until
from tests.unit.downloads.scripted import DATA, DIGEST, Bench, Says, Script, ScriptedBody, broken

SIZE = len(DATA)
OpenDownloads = Callable[..., Downloads]
FULL = OSError(28, "No space left on device")


@pytest.fixture
def bulk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def bench(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    return Bench(tmp_path, bulk)


@pytest.fixture
def other(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    """What another process has on the same storage."""
    return Bench(tmp_path, bulk)


@pytest.fixture
async def open_downloads() -> AsyncIterator[OpenDownloads]:
    opened: list[Downloads] = []

    def open_one(bench: Bench, **changes: Any) -> Downloads:
        bench.context = replace(bench.context, **changes)
        opened.append(Downloads(bench.context))
        return opened[-1]

    yield open_one
    for downloads in opened:
        await downloads.close()


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that lets so many bytes be written, and nothing more until it is called again."""
    real = os.pwrite

    def let(allowed: int) -> None:
        left = [allowed]

        def pwrite(descriptor: int, data: bytes, offset: int) -> int:
            data = bytes(data)
            if data[:1] == b"{":  # a note
                return real(descriptor, data, offset)
            if not left[0]:
                raise FULL
            count = real(descriptor, data[: left[0]], offset)
            left[0] -= count
            return count

        monkeypatch.setattr(os, "pwrite", pwrite)

    return let


def no_staging(monkeypatch: pytest.MonkeyPatch, bench: Bench, error: OSError = FULL) -> None:
    def refuse(digest: Digest) -> None:
        raise error

    monkeypatch.setattr(bench.staging, "open", refuse)


async def refuse_room(digest: Digest, size: int | None) -> None:
    raise InsufficientSpace("quota", "storage.max_size is reached")


async def read_all(blob: Blob, start: int = 0, into: bytearray | None = None) -> bytes:
    """Everything from ``start``, as it comes; ``into`` keeps what came before a failure."""
    position, received = start, bytearray() if into is None else into
    while (limit := await blob.wait_until_readable(position)) > position:
        pieces = [piece async for piece in blob.read(position, limit)]
        assert all(0 < len(piece) <= PIECE for piece in pieces)
        received += b"".join(pieces)
        position = limit
        if position == blob.size:
            break
    return bytes(received)


def assert_nothing_kept(bench: Bench, reason: str = "disk", count: int = 1) -> None:
    assert bench.staged() == []
    assert bench.stored() is None
    assert bench.recorded == []
    assert [event.reason for event in bench.events.of(NotStored)] == [reason] * count


sizes = pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])


# --- when nothing can be stored from the start ---


@sizes
async def test_a_blob_reaches_its_reader_without_the_disk(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    """B44: by the one request that would have stored it."""
    no_staging(monkeypatch, bench)
    script = Script([Says(size=size)])
    blob, joined = await open_downloads(bench).join(DIGEST, script.source)
    assert (blob.size, blob.descriptor) == (None if size is None else SIZE, None)
    assert blob.is_passing
    assert not joined
    assert await read_all(blob) == DATA
    blob.close()
    assert script.asked == [0]
    assert_nothing_kept(bench)


@sizes
async def test_without_room_nothing_is_written(
    bench: Bench, open_downloads: OpenDownloads, size: int | None
) -> None:
    """B40, B44: the size is known before the first byte is written, and so is what is left."""
    asked = []

    async def refuse(digest: Digest, size: int | None) -> None:
        written = bench.staging.open(digest)
        asked.append((digest, size, written.size))
        written.close()
        await refuse_room(digest, size)

    script = Script([Says(size=size)])
    blob, _ = await open_downloads(bench, reserve=refuse).join(DIGEST, script.source)
    assert blob.is_passing
    assert await read_all(blob) == DATA
    blob.close()
    assert asked == [(DIGEST, None if size is None else SIZE, 0)]
    assert script.asked == [0]
    assert_nothing_kept(bench, "quota")


async def test_what_arrives_while_room_is_made_is_not_lost(
    bench: Bench, open_downloads: OpenDownloads
) -> None:
    """B5, B40: should the connection break meanwhile, its bytes have been read already."""
    asked = asyncio.Event()

    class Broken(ScriptedBody):
        async def read(self) -> bytes:
            piece = await super().read() if not asked.is_set() else b""
            asked.set()
            return piece

    @asynccontextmanager
    async def answer(offset: int) -> AsyncIterator[ScriptedBody]:
        yield Broken(Says(stop=1_000), offset)

    async def reserve(digest: Digest, size: int | None) -> None:
        await asked.wait()

    source = replace(Script([]).source, open=answer)
    blob, _ = await open_downloads(bench, reserve=reserve).join(DIGEST, source)
    assert await blob.wait_until_readable(0) == 1_000
    blob.close()


async def test_room_is_asked_for_once(bench: Bench, open_downloads: OpenDownloads) -> None:
    asked = []

    async def reserve(digest: Digest, size: int | None) -> None:
        asked.append(size)

    script = Script([Says(stop=3_000, error=broken), Says()])
    blob, _ = await open_downloads(bench, reserve=reserve).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    blob.close()
    await bench.events.wait_for(DownloadEnded)
    assert asked == [SIZE]
    assert bench.stored() == DATA


async def test_the_next_pull_stores_once_the_disk_works_again(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: without a restart."""
    downloads, script = open_downloads(bench), Script([Says()])
    with monkeypatch.context() as patched:
        no_staging(patched, bench)
        blob, _ = await downloads.join(DIGEST, script.source)
        assert await read_all(blob) == DATA
        blob.close()
    blob, _ = await downloads.join(DIGEST, script.source)
    assert not blob.is_passing
    assert await read_all(blob) == DATA
    blob.close()
    await bench.events.wait_for(DownloadEnded, 2)
    assert bench.stored() == DATA


@sizes
@pytest.mark.parametrize("written", [0, 4_000])
async def test_wrong_bytes_never_pass_as_a_whole(
    bench: Bench,
    open_downloads: OpenDownloads,
    full_after: Callable[[int], None],
    size: int | None,
    written: int,
) -> None:
    """B2: also when nothing is kept."""
    full_after(written)
    script = Script([Says(DATA[:-1] + b"?", size=size)])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    received = bytearray()
    with pytest.raises(UpstreamContentInvalid):
        await read_all(blob, into=received)
    assert received == DATA[:-1]
    blob.close()
    assert len(bench.events.of(VerificationFailed)) == 1
    assert_nothing_kept(bench)


async def test_the_last_byte_waits_for_the_end_of_the_body(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2: and all others do not."""
    no_staging(monkeypatch, bench)
    says = Says(gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([says]).source)
    limit = 0
    while limit < SIZE - 1:
        limit = await blob.wait_until_readable(limit)
    waiting = asyncio.create_task(blob.wait_until_readable(limit))
    await asyncio.sleep(0)
    assert (limit, waiting.done()) == (SIZE - 1, False)
    says.release()
    assert await waiting == SIZE
    blob.close()


async def test_an_empty_blob_passes_after_it_has_been_verified(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2, B48: nothing could be held back of an empty answer."""
    no_staging(monkeypatch, bench)
    downloads = open_downloads(bench)
    with pytest.raises(UpstreamContentInvalid):
        await downloads.join(DIGEST, Script([Says(b"")]).source)
    blob, _ = await downloads.join(Digest.of(b""), Script([Says(b"")]).source)
    assert blob.size == 0
    assert await read_all(blob) == b""
    blob.close()


async def test_an_upstream_that_has_no_such_blob_is_no_fault_of_the_disk(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B34, B86: said before the headers."""
    no_staging(monkeypatch, bench)
    absent = UpstreamNotFound("registry.test", "no")
    with pytest.raises(UpstreamNotFound):
        await open_downloads(bench).join(DIGEST, Script([Says(error=absent, refuses=True)]).source)


async def test_what_breaks_off_is_resumed_where_it_stands(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B19, B44: by Range, without the disk."""
    no_staging(monkeypatch, bench)
    script = Script([Says(stop=3_000, error=broken), Says(stop=7_000, error=broken), Says()])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    blob.close()
    assert script.asked == [0, 3_000, 7_000]


async def test_what_stays_broken_is_told_to_the_reader(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: never a clean end."""
    no_staging(monkeypatch, bench)
    blob, _ = await open_downloads(bench).join(DIGEST, Script([Says(stop=3_000, error=broken)]).source)
    received = bytearray()
    with pytest.raises(UpstreamFailed, match="broke off"):
        await read_all(blob, into=received)
    assert received == DATA[:3_000]
    blob.close()


# --- when it fails in the middle ---


@sizes
async def test_what_was_written_is_read_and_the_rest_passes(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None], size: int | None
) -> None:
    """B44: from the connection that is open, nothing is fetched twice; the file goes at once."""
    full_after(4_321)
    script = Script([Says(size=size)])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    assert blob.descriptor is None
    blob.close()
    assert script.asked == [0]
    assert_nothing_kept(bench)


async def test_each_further_reader_goes_on_by_a_request_of_its_own(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: one request for each client at most, from where the file ended."""
    full_after(4_000)
    gate = asyncio.Event()

    downloads, script = open_downloads(bench), Script([Says()], gate=gate)
    joins = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    blobs = [(await join)[0] for join in joins]
    assert await asyncio.gather(*map(read_all, blobs)) == [DATA] * 5
    for blob in blobs:
        blob.close()
    assert script.asked == [0, *[4_000] * 4]
    assert_nothing_kept(bench, count=5)


async def test_a_part_that_begins_elsewhere_passes_unverified(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: the client asked for a part, and has the digest of the whole."""
    full_after(4_000)
    script = Script([Says()])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob, start=9_000) == DATA[9_000:]
    assert await read_all(blob, start=2_000) == DATA[2_000:]
    blob.close()
    assert script.asked == [0, 9_000, 2_000]


async def test_a_reader_that_takes_its_time_holds_no_more_than_a_piece(bulk: ThreadPoolExecutor) -> None:
    """B18, B44: memory does not grow with the blob."""
    detach_point = DetachPoint(DIGEST, Script([Says()]).source, 0, b"", DIGEST.hasher())
    pass_through = PassThrough(detach_point, 7, None, threads=bulk, emit=lambda event: None)
    await pass_through.append(bytes(PIECE - 1))
    appending = asyncio.create_task(pass_through.append(b"one more"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not appending.done()
    assert sum([len(piece) async for piece in pass_through.read(7, 7 + PIECE - 1)]) == PIECE - 1
    await appending
    assert await pass_through.wait_until_readable(7) == 7 + PIECE + 7


async def test_whoever_comes_while_others_are_passed_to_tries_the_disk_anew(
    bench: Bench,
    open_downloads: OpenDownloads,
    full_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B44: and what he starts is not disturbed by the end of theirs."""
    full_after(4_000)
    first_gate, second_gate = asyncio.Event(), asyncio.Event()
    script = Script([Says(gate=first_gate), Says(gate=second_gate)])
    downloads = open_downloads(bench)
    first, _ = await downloads.join(DIGEST, script.source)
    await wait_until(lambda: first.is_passing, "the disk has failed")
    monkeypatch.undo()
    second, joined = await downloads.join(DIGEST, script.source)
    assert not joined
    first_gate.set()
    assert await read_all(first) == DATA
    first.close()
    await bench.events.wait_for(DownloadEnded)
    third, joined = await downloads.join(DIGEST, script.source)
    assert joined
    second_gate.set()
    assert [*await asyncio.gather(read_all(second), read_all(third))] == [DATA, DATA]
    second.close()
    third.close()
    await bench.events.wait_for(DownloadEnded, 2)
    assert script.asked == [0, 0]
    assert bench.stored() == DATA


async def test_a_reader_that_begins_elsewhere_frees_what_nobody_takes(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: it may be the connection that he is waiting for."""
    full_after(4_000)
    says = Says(stop=6_000, gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([says, Says()]).source)
    assert await read_all(blob, start=9_000) == DATA[9_000:]
    (ended,) = await bench.events.wait_for(DownloadEnded)
    assert "No space left on device" in ended.error
    blob.close()


async def test_nobody_is_left_to_pass_bytes_to(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B16, B17: a reader that leaves ends its fetching, and leaves no task and no file behind."""
    full_after(4_000)
    says = Says(stop=6_000, gate=asyncio.Event())
    downloads = open_downloads(bench)
    blob, _ = await downloads.join(DIGEST, Script([says]).source)
    await wait_until(lambda: blob.is_passing, "the disk has failed")
    assert await blob.wait_until_readable(0) == 4_000
    blob.close()
    await bench.events.wait_for(DownloadEnded)
    await wait_until(lambda: not downloads._tasks, "the tasks have ended")
    assert [name for name in list_open_files() if name.startswith(str(bench.store.root))] == []
    assert "No space left on device" in bench.events.of(DownloadEnded)[0].error


async def test_the_file_is_closed_once_its_readers_are_past_it(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: a file without a name frees its bytes when it is closed."""

    def ours() -> list[str]:
        return [name for name in list_open_files() if name.startswith(str(bench.store.root))]

    full_after(4_000)
    says = Says(gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([says]).source)
    limit = 0
    while (limit := await blob.wait_until_readable(limit)) <= 4_000:
        pass
    assert ours() == []
    says.release()
    blob.close()


async def test_stopping_ends_what_passes(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_staging(monkeypatch, bench)
    downloads = open_downloads(bench)
    blob, _ = await downloads.join(DIGEST, Script([Says(stop=500, gate=asyncio.Event())]).source)
    assert await blob.wait_until_readable(0) == 500
    await downloads.close()
    with pytest.raises(Unavailable, match="interrupted"):
        await blob.wait_until_readable(500)
    blob.close()


# --- two processes ---


async def test_a_follower_meets_the_same_fault_by_itself(
    bench: Bench, other: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B13, B44: it has what was written, and goes on from there by its own request."""
    full_after(6_000)
    gate = asyncio.Event()

    first, second = Script([Says(gate=gate)]), Script([Says()])
    mine, _ = await open_downloads(bench).join(DIGEST, first.source)
    theirs, _ = await open_downloads(other).join(DIGEST, second.source)
    gate.set()
    bodies = await asyncio.gather(read_all(mine), read_all(theirs))
    assert [*bodies] == [DATA, DATA]
    mine.close()
    theirs.close()
    assert first.asked == [0]
    assert second.asked in ([0], [6_000])
    assert other.staged() == []
    assert other.stored() is None


async def test_a_follower_hashes_what_the_other_had_written(
    bench: Bench, other: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B2, B44: wrong bytes that are in the file already do not pass as a whole."""
    gate = asyncio.Event()
    wrong = b"?" + DATA[1:]
    says = Says(wrong, stop=6_000, size=SIZE, gate=gate, error=broken)
    mine, _ = await open_downloads(bench).join(DIGEST, Script([says, Says(wrong)]).source)
    downloads = open_downloads(other)
    theirs, _ = await downloads.join(DIGEST, Script([Says()]).source)
    limit = 0
    while limit < 6_000:
        limit = await theirs.wait_until_readable(limit)
    full_after(0)
    gate.set()
    with pytest.raises(RegistryError):
        await read_all(mine)
    received = bytearray()
    with pytest.raises(UpstreamContentInvalid):
        await read_all(theirs, into=received)
    assert len(received) == SIZE - 1
    mine.close()
    theirs.close()
