"""Bytes on their way into a file, and what readers get when the disk fails in the middle (B44)."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from regmirror.blobs.staging import StagedFile
from regmirror.downloads.download import Download
from regmirror.downloads.file_sink import FileSink
from regmirror.downloads.growing_file import GrowingFile
from regmirror.downloads.transfer import Transfer
from regmirror.errors import (
    RegistryError,
    Unavailable,
    UpstreamContentInvalid,
)
from regmirror.telemetry.events import DownloadEnded
from tests.mirror_fixture import list_open_files, wait_until
from tests.unit.downloads.scripted import (
    DATA,
    DIGEST,
    Bench,
    OpenDownloads,
    PlannedResponse,
    Script,
    assert_nothing_stored,
    broken,
    read_all,
)

SIZE = len(DATA)


sizes = pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])


@sizes
async def test_written_bytes_are_read_and_the_following_ones_pass_through(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None], size: int | None
) -> None:
    """B44: from the connection that is open, nothing is fetched twice; the file goes at once."""
    full_after(4_321)
    script = Script([PlannedResponse(size=size)])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob) == DATA
    assert blob.descriptor is None
    blob.close()
    assert script.requested == [0]
    assert_nothing_stored(bench)


async def test_each_further_reader_continues_by_its_own_request(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: one request for each client at most, from where the file ended."""
    full_after(4_000)
    gate = asyncio.Event()

    downloads, script = open_downloads(bench), Script([PlannedResponse()], gate=gate)
    joins = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    blobs = [(await join)[0] for join in joins]
    assert await asyncio.gather(*map(read_all, blobs)) == [DATA] * 5
    for blob in blobs:
        blob.close()
    assert script.requested == [0, *[4_000] * 4]
    assert_nothing_stored(bench, count=5)


async def test_a_part_that_begins_elsewhere_passes_unverified(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: the client asked for a part, and has the digest of the whole."""
    full_after(4_000)
    script = Script([PlannedResponse()])
    blob, _ = await open_downloads(bench).join(DIGEST, script.source)
    assert await read_all(blob, start=9_000) == DATA[9_000:]
    assert await read_all(blob, start=2_000) == DATA[2_000:]
    blob.close()
    assert script.requested == [0, 9_000, 2_000]


async def test_a_reader_that_comes_later_tries_the_disk_again(
    bench: Bench,
    open_downloads: OpenDownloads,
    full_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B44: and what he starts is not disturbed by the end of theirs."""
    full_after(4_000)
    first_gate, second_gate = asyncio.Event(), asyncio.Event()
    script = Script([PlannedResponse(gate=first_gate), PlannedResponse(gate=second_gate)])
    downloads = open_downloads(bench)
    first, _ = await downloads.join(DIGEST, script.source)
    await wait_until(lambda: first.is_passed_through, "the disk has failed")
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
    assert script.requested == [0, 0]
    assert bench.stored() == DATA


async def test_a_reader_that_begins_elsewhere_ends_the_fetch_in_progress(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: it may be the connection that he is waiting for."""
    full_after(4_000)
    response = PlannedResponse(stop=6_000, gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([response, PlannedResponse()]).source)
    assert await read_all(blob, start=9_000) == DATA[9_000:]
    (ended,) = await bench.events.wait_for(DownloadEnded)
    assert "No space left on device" in ended.error
    blob.close()


async def test_without_a_reader_the_fetch_ends(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B16, B17: a reader that leaves ends its fetching, and leaves no task and no file behind."""
    full_after(4_000)
    response = PlannedResponse(stop=6_000, gate=asyncio.Event())
    downloads = open_downloads(bench)
    blob, _ = await downloads.join(DIGEST, Script([response]).source)
    await wait_until(lambda: blob.is_passed_through, "the disk has failed")
    assert await blob.wait_until_readable(0) == 4_000
    blob.close()
    await bench.events.wait_for(DownloadEnded)
    await wait_until(lambda: not downloads._tasks, "the tasks have ended")
    assert [name for name in list_open_files() if name.startswith(str(bench.store.root))] == []
    assert "No space left on device" in bench.events.of(DownloadEnded)[0].error


async def test_the_file_is_closed_when_its_readers_are_past_it(
    bench: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B44: a file without a name frees its bytes when it is closed."""

    def ours() -> list[str]:
        return [name for name in list_open_files() if name.startswith(str(bench.store.root))]

    full_after(4_000)
    response = PlannedResponse(gate=asyncio.Event())
    blob, _ = await open_downloads(bench).join(DIGEST, Script([response]).source)
    limit = 0
    while (limit := await blob.wait_until_readable(limit)) <= 4_000:
        pass
    assert ours() == []
    response.release()
    blob.close()


# --- two processes ---


async def test_another_process_meets_the_same_fault(
    bench: Bench, other: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B13, B44: it has what was written, and goes on from there by its own request."""
    full_after(6_000)
    gate = asyncio.Event()

    first, second = Script([PlannedResponse(gate=gate)]), Script([PlannedResponse()])
    mine, _ = await open_downloads(bench).join(DIGEST, first.source)
    theirs, _ = await open_downloads(other).join(DIGEST, second.source)
    gate.set()
    bodies = await asyncio.gather(read_all(mine), read_all(theirs))
    assert [*bodies] == [DATA, DATA]
    mine.close()
    theirs.close()
    assert first.requested == [0]
    assert second.requested in ([0], [6_000])
    assert other.staged() == []
    assert other.stored() is None


async def test_another_process_hashes_the_written_bytes(
    bench: Bench, other: Bench, open_downloads: OpenDownloads, full_after: Callable[[int], None]
) -> None:
    """B2, B44: wrong bytes that are in the file already do not pass as a whole."""
    gate = asyncio.Event()
    wrong = b"?" + DATA[1:]
    response = PlannedResponse(wrong, stop=6_000, size=SIZE, gate=gate, error=broken)
    mine, _ = await open_downloads(bench).join(DIGEST, Script([response, PlannedResponse(wrong)]).source)
    downloads = open_downloads(other)
    theirs, _ = await downloads.join(DIGEST, Script([PlannedResponse()]).source)
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


class SlowHash(GrowingFile):
    """A file whose hash thread does not end before ``may_end`` is set."""

    may_end = threading.Event()

    def _hash(self) -> None:
        self.may_end.wait(10)


async def open_slowly(
    sink: FileSink, staged: StagedFile, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> threading.Event:
    """Attach ``staged``, whose bytes a thread is reading now; return the event that ends the thread."""
    monkeypatch.setattr(SlowHash, "may_end", threading.Event())
    sink.attach(staged)
    file = SlowHash(staged.descriptor, DIGEST.hasher(), bench.context.bulk)
    file.offset = SIZE
    file._continue_hashing()
    sink._file = file
    return SlowHash.may_end


@pytest.fixture
def staged(bench: Bench) -> Iterator[StagedFile]:
    staged = bench.staging.open(DIGEST)
    staged.try_lock()
    staged.open_bytes(create=True)
    yield staged
    staged.close()


async def assert_open_until(may_end: threading.Event, staged: StagedFile, task: asyncio.Task[Any]) -> None:
    """The file stays open while the thread runs, and is closed after it."""
    await asyncio.wait([task], timeout=0.05)
    was_open = staged.descriptor >= 0
    may_end.set()
    await asyncio.wait([task], timeout=10)
    assert was_open
    assert staged.descriptor == -1


async def test_a_detached_file_is_closed_after_its_threads(
    bench: Bench, staged: StagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread would read from a descriptor that may name another file by then."""
    sink = FileSink(bench.context, Download(DIGEST, Script([PlannedResponse()]).source))
    may_end = await open_slowly(sink, staged, bench, monkeypatch)
    task = asyncio.create_task(sink.detach("disk", "it is full"))
    await assert_open_until(may_end, staged, task)
    with pytest.raises(Unavailable):
        await task


async def test_a_file_of_a_failed_attempt_is_closed_after_its_threads(
    bench: Bench, staged: StagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = Transfer(bench.context, Download(DIGEST, Script([PlannedResponse()]).source))
    may_end = await open_slowly(transfer._sink, staged, bench, monkeypatch)

    async def fail(_: StagedFile) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(transfer, "_follow", fail)
    monkeypatch.setattr(bench.staging, "open", lambda digest: staged)
    monkeypatch.setattr(staged, "try_lock", lambda: False)
    task = asyncio.create_task(transfer._attempt())
    await assert_open_until(may_end, staged, task)
    with pytest.raises(OSError, match="Input/output"):
        await task
