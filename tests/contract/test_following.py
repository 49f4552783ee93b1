"""The contract of ``Downloads.follow``: bytes of a download in any process, without any request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regmirror.blobs.staging import DownloadState
from regmirror.downloads import transfer
from regmirror.downloads.registry import Downloads
from regmirror.downloads.source import Source
from regmirror.errors import Unavailable, UpstreamFailed
from regmirror.telemetry.events import DownloadEnded, FollowersChanged
from tests.mirror_fixture import list_open_files, wait_until
from tests.unit.downloads.scripted import (
    DATA,
    DIGEST,
    REPOSITORY,
    Bench,
    PlannedResponse,
    Script,
    broken,
    read_all,
)


@pytest.fixture
def bulk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def bench(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    return Bench(tmp_path, bulk)


@pytest.fixture
def other_bench(tmp_path: Path, bulk: ThreadPoolExecutor) -> Bench:
    return Bench(tmp_path, bulk)


@pytest.fixture
async def writing(bench: Bench) -> AsyncIterator[Downloads]:
    """The process that fetches."""
    downloads = Downloads(bench.context)
    yield downloads
    await downloads.close()


@pytest.fixture
async def elsewhere(other_bench: Bench) -> AsyncIterator[Downloads]:
    """Another process on the same storage."""
    downloads = Downloads(other_bench.context)
    yield downloads
    await downloads.close()


@pytest.fixture(params=["same process", "other process"])
def following(request: pytest.FixtureRequest, writing: Downloads, elsewhere: Downloads) -> Downloads:
    return writing if request.param == "same process" else elsewhere


async def test_without_a_download_there_is_nothing_to_follow(following: Downloads, bench: Bench) -> None:
    assert await following.follow(DIGEST) is None
    assert bench.staged() == []


async def test_bytes_that_a_dead_writer_left_are_no_download(following: Downloads, bench: Bench) -> None:
    bench.leave(DATA[:6_000], flowing=True, size=len(DATA), upstream="registry.test")
    assert await following.follow(DIGEST) is None
    assert len(following) == 0


async def test_a_follower_reads_all_bytes_by_no_request(
    writing: Downloads, following: Downloads, bench: Bench
) -> None:
    gate = asyncio.Event()
    script = Script([PlannedResponse(gate=gate)])
    reader, _ = await writing.join(DIGEST, script.source)
    follower = await following.follow(DIGEST)
    assert follower is not None
    assert follower.size == len(DATA)
    assert follower.descriptor is not None
    assert await follower.wait_until_readable(0) > 0
    gate.set()
    assert await read_all(follower) == DATA
    follower.close()
    reader.close()
    assert script.requested == [0]
    await bench.events.wait_for(DownloadEnded)
    assert bench.recorded == [(DIGEST, len(DATA))]


async def test_a_follower_withholds_the_last_byte(writing: Downloads, following: Downloads) -> None:
    """B2."""
    gate = asyncio.Event()
    reader, _ = await writing.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    follower = await following.follow(DIGEST)
    assert follower is not None
    limit = 0
    while limit < len(DATA) - 1:
        limit = await follower.wait_until_readable(limit)
    assert (limit, follower.is_verified) == (len(DATA) - 1, False)
    gate.set()
    assert await follower.wait_until_readable(limit) == len(DATA)
    follower.close()
    reader.close()


async def test_the_writers_failure_reaches_the_follower(writing: Downloads, following: Downloads) -> None:
    """B5."""
    gate = asyncio.Event()
    script = Script([PlannedResponse(stop=3_000, gate=gate, error=broken), PlannedResponse(error=broken)])
    reader, _ = await writing.join(DIGEST, script.source)
    follower = await following.follow(DIGEST)
    assert follower is not None
    gate.set()
    with pytest.raises(UpstreamFailed):
        await read_all(follower)
    follower.close()
    reader.close()


async def test_a_follower_does_not_take_over_from_a_writer_that_ends(
    writing: Downloads, elsewhere: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TAKEOVER_MAX", 0.05)
    script = Script([PlannedResponse(stop=6_000, gate=asyncio.Event())])
    reader, _ = await writing.join(DIGEST, script.source)
    follower = await elsewhere.follow(DIGEST)
    assert follower is not None
    while await follower.wait_until_readable(5_999) < 6_000:
        pass
    await writing.close()
    with pytest.raises(Unavailable, match="no progress"):
        await follower.wait_until_readable(6_000)
    follower.close()
    reader.close()
    assert len(bench.staged()) == 2  # the next writer resumes
    assert script.requested == [0]


async def test_a_follower_goes_on_with_a_new_writer(
    writing: Downloads, elsewhere: Downloads, tmp_path: Path, bulk: ThreadPoolExecutor
) -> None:
    """B13."""
    reader, _ = await writing.join(DIGEST, Script([PlannedResponse(stop=6_000, gate=asyncio.Event())]).source)
    follower = await elsewhere.follow(DIGEST)
    assert follower is not None
    third = Downloads(Bench(tmp_path, bulk).context)
    second_script = Script([PlannedResponse()])
    second, _ = await third.join(DIGEST, second_script.source)
    while await second.wait_until_readable(5_999) < 6_000:
        pass
    await writing.close()
    assert await read_all(follower) == DATA
    assert second_script.requested == [6_000]
    for blob in (follower, reader, second):
        blob.close()
    await third.close()


async def test_a_follower_gives_no_right_and_leaves_no_file_open(
    writing: Downloads, elsewhere: Downloads, other_bench: Bench
) -> None:
    """B17, B67."""
    gate = asyncio.Event()
    reader, _ = await writing.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    follower = await elsewhere.follow(DIGEST)
    assert follower is not None
    follower.note_sample(0, DATA[:10])
    assert not elsewhere.is_proven(DIGEST, REPOSITORY)
    gate.set()
    assert await read_all(follower) == DATA
    follower.close()
    reader.close()
    assert sum(event.delta for event in other_bench.events.of(FollowersChanged)) == 0
    root = str(other_bench.store.root)
    await wait_until(
        lambda: not [name for name in list_open_files() if name.startswith(root)], "every file is closed"
    )


async def test_without_readers_nothing_is_watched(writing: Downloads, elsewhere: Downloads) -> None:
    """B17: no task and no descriptor is left while the writer continues."""
    reader, _ = await writing.join(DIGEST, Script([PlannedResponse(gate=asyncio.Event())]).source)
    follower = await elsewhere.follow(DIGEST)
    assert follower is not None
    follower.close()
    await wait_until(lambda: not elsewhere._tasks, "the watch has ended")
    reader.close()


async def test_a_writer_that_has_not_begun_is_no_download(elsewhere: Downloads, bench: Bench) -> None:
    writer = bench.staging.open(DIGEST)
    assert writer.try_lock()
    assert await elsewhere.follow(DIGEST) is None
    writer.close()


async def test_a_writer_that_stands_still_is_not_waited_for(
    elsewhere: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B35."""
    monkeypatch.setattr(Source.__init__, "__defaults__", (0.05, True))
    writer = bench.staging.open(DIGEST)
    assert writer.try_lock()
    writer.write_state(DownloadState(upstream="registry.test", repository=str(REPOSITORY)))
    with pytest.raises(Unavailable, match="no progress"):
        await elsewhere.follow(DIGEST)
    writer.close()


async def test_a_download_that_is_detached_ends_the_follower(
    writing: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: continuing by a pass-through would cause a request."""
    gate = asyncio.Event()
    script = Script([PlannedResponse(stop=6_000, gate=gate, error=broken), PlannedResponse()])
    reader, _ = await writing.join(DIGEST, script.source)
    follower = await writing.follow(DIGEST)
    assert follower is not None
    while await follower.wait_until_readable(5_999) < 6_000:
        pass

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", fail)
    gate.set()
    assert await read_all(reader) == DATA
    with pytest.raises(Unavailable, match="no longer stored"):
        await follower.wait_until_readable(6_000)
    assert script.requested == [0, 6_000]
    follower.close()
    reader.close()
