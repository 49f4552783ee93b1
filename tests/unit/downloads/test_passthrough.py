"""Blobs that cannot be stored from the beginning, and the pass-through to their readers (B44)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from regmirror.blobs.base import PIECE, InsufficientSpace
from regmirror.downloads.passthrough import DetachPoint, PassThrough
from regmirror.errors import (
    Unavailable,
    UpstreamContentInvalid,
    UpstreamFailed,
    UpstreamNotFound,
)
from regmirror.oci.names import Digest
from regmirror.telemetry.events import DownloadEnded, VerificationFailed
from tests.unit.downloads.scripted import (
    DATA,
    DIGEST,
    Bench,
    OpenDownloads,
    PlannedResponse,
    Script,
    ScriptedBody,
    assert_nothing_stored,
    broken,
    read_all,
    refuse_staging,
)

SIZE = len(DATA)


async def refuse_room(digest: Digest, size: int | None) -> None:
    raise InsufficientSpace("quota", "storage.max_size is reached")


sizes = pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])


@sizes
async def test_a_blob_reaches_its_reader_without_the_disk(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    """B44: by the one request that would have stored it."""
    refuse_staging(monkeypatch, bench)
    script = Script([PlannedResponse(size=size)])
    blob, joined = await open_downloads(bench).join(DIGEST, script.source)
    assert (blob.size, blob.descriptor) == (None if size is None else SIZE, None)
    assert blob.is_passed_through
    assert not joined
    assert await read_all(blob) == DATA
    blob.close()
    assert script.requested == [0]
    assert_nothing_stored(bench)


@sizes
async def test_without_space_nothing_is_written(
    bench: Bench, open_downloads: OpenDownloads, size: int | None
) -> None:
    """B40, B44: the size is known before the first byte is written, and so is what is left."""
    requested = []

    async def refuse(digest: Digest, size: int | None) -> None:
        written = bench.staging.open(digest)
        requested.append((digest, size, written.size))
        written.close()
        await refuse_room(digest, size)

    script = Script([PlannedResponse(size=size)])
    blob, _ = await open_downloads(bench, reserve=refuse).join(DIGEST, script.source)
    assert blob.is_passed_through
    assert await read_all(blob) == DATA
    blob.close()
    assert requested == [(DIGEST, None if size is None else SIZE, 0)]
    assert script.requested == [0]
    assert_nothing_stored(bench, "quota")


async def test_bytes_that_arrive_during_the_reservation_are_not_lost(
    bench: Bench, open_downloads: OpenDownloads
) -> None:
    """B5, B40: should the connection break meanwhile, its bytes have been read already."""
    requested = asyncio.Event()

    class Broken(ScriptedBody):
        async def read(self) -> bytes:
            piece = await super().read() if not requested.is_set() else b""
            requested.set()
            return piece

    @asynccontextmanager
    async def answer(offset: int) -> AsyncIterator[ScriptedBody]:
        yield Broken(PlannedResponse(stop=1_000), offset)

    async def reserve(digest: Digest, size: int | None) -> None:
        await requested.wait()

    source = replace(Script([]).source, open=answer)
    blob, _ = await open_downloads(bench, reserve=reserve).join(DIGEST, source)
    assert await blob.wait_until_readable(0) == 1_000
    blob.close()


async def test_space_is_reserved_once(bench: Bench, open_downloads: OpenDownloads) -> None:
    requested = []

    async def reserve(digest: Digest, size: int | None) -> None:
        requested.append(size)

    script = Script([PlannedResponse(stop=3_000, error=broken), PlannedResponse()])
    blob, _ = await open_downloads(bench, reserve=reserve).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    blob.close()
    await bench.events.wait_for(DownloadEnded)
    assert requested == [SIZE]
    assert bench.stored() == DATA


async def test_the_next_pull_stores_once_the_disk_works_again(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: without a restart."""
    downloads, script = open_downloads(bench), Script([PlannedResponse()])
    with monkeypatch.context() as patched:
        refuse_staging(patched, bench)
        blob, _ = await downloads.join(DIGEST, script.source)
        assert await read_all(blob) == DATA
        blob.close()
    blob, _ = await downloads.join(DIGEST, script.source)
    assert not blob.is_passed_through
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
    script = Script([PlannedResponse(DATA[:-1] + b"?", size=size)])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    received = bytearray()
    with pytest.raises(UpstreamContentInvalid):
        await read_all(blob, into=received)
    assert received == DATA[:-1]
    blob.close()
    assert len(bench.events.of(VerificationFailed)) == 1
    assert_nothing_stored(bench)


async def test_the_last_byte_waits_for_the_end_of_the_body(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2: and all others do not."""
    refuse_staging(monkeypatch, bench)
    response = PlannedResponse(gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([response]).source)
    limit = 0
    while limit < SIZE - 1:
        limit = await blob.wait_until_readable(limit)
    waiting = asyncio.create_task(blob.wait_until_readable(limit))
    await asyncio.sleep(0)
    assert (limit, waiting.done()) == (SIZE - 1, False)
    response.release()
    assert await waiting == SIZE
    blob.close()


async def test_an_empty_blob_passes_after_it_has_been_verified(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2, B48: nothing could be held back of an empty answer."""
    refuse_staging(monkeypatch, bench)
    downloads = open_downloads(bench)
    with pytest.raises(UpstreamContentInvalid):
        await downloads.join(DIGEST, Script([PlannedResponse(b"")]).source)
    blob, _ = await downloads.join(Digest.of(b""), Script([PlannedResponse(b"")]).source)
    assert blob.size == 0
    assert await read_all(blob) == b""
    blob.close()


async def test_an_upstream_that_has_no_such_blob_is_no_fault_of_the_disk(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B34, B86: said before the headers."""
    refuse_staging(monkeypatch, bench)
    absent = UpstreamNotFound("registry.test", "no")
    with pytest.raises(UpstreamNotFound):
        await open_downloads(bench).join(DIGEST, Script([PlannedResponse(error=absent, refuses=True)]).source)


async def test_a_broken_body_is_resumed_by_range(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B19, B44: by Range, without the disk."""
    refuse_staging(monkeypatch, bench)
    script = Script(
        [
            PlannedResponse(stop=3_000, error=broken),
            PlannedResponse(stop=7_000, error=broken),
            PlannedResponse(),
        ]
    )
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    blob.close()
    assert script.requested == [0, 3_000, 7_000]


async def test_a_body_that_stays_broken_is_an_error_of_the_reader(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B5: never a clean end."""
    refuse_staging(monkeypatch, bench)
    blob, _ = await open_downloads(bench).join(
        DIGEST, Script([PlannedResponse(stop=3_000, error=broken)]).source
    )
    received = bytearray()
    with pytest.raises(UpstreamFailed, match="broke off"):
        await read_all(blob, into=received)
    assert received == DATA[:3_000]
    blob.close()


async def test_a_slow_reader_occupies_no_more_than_a_piece(bulk: ThreadPoolExecutor) -> None:
    """B18, B44: memory does not grow with the blob."""
    detach_point = DetachPoint(DIGEST, Script([PlannedResponse()]).source, 0, b"", DIGEST.hasher())
    pass_through = PassThrough(detach_point, 7, None, threads=bulk, emit=lambda event: None)
    await pass_through.append(bytes(PIECE - 1))
    appending = asyncio.create_task(pass_through.append(b"one more"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not appending.done()
    assert sum([len(piece) async for piece in pass_through.read(7, 7 + PIECE - 1)]) == PIECE - 1
    await appending
    assert await pass_through.wait_until_readable(7) == 7 + PIECE + 7


async def test_closing_ends_a_pass_through(
    bench: Bench, open_downloads: OpenDownloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_staging(monkeypatch, bench)
    downloads = open_downloads(bench)
    blob, _ = await downloads.join(DIGEST, Script([PlannedResponse(stop=500, gate=asyncio.Event())]).source)
    assert await blob.wait_until_readable(0) == 500
    await downloads.close()
    with pytest.raises(Unavailable, match="interrupted"):
        await blob.wait_until_readable(500)
    blob.close()
