"""Downloads of one process: started once, joined, drained and closed."""

from __future__ import annotations

import asyncio

import pytest

from regmirror.downloads import registry
from regmirror.downloads.registry import Downloads
from regmirror.errors import Unavailable, UpstreamContentInvalid, UpstreamFailed, UpstreamNotFound
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import DownloadEnded, DownloadStarted, FollowersChanged
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

SIZE = len(DATA)


async def test_the_first_starts_a_download_and_the_others_join_it(downloads: Downloads, bench: Bench) -> None:
    """B12: one fetch for many."""
    script = Script([PlannedResponse(gate=asyncio.Event())])
    joined = [await downloads.join(DIGEST, script.source) for _ in range(3)]
    assert [flag for _, flag in joined] == [False, True, True]
    assert len(downloads) == 1
    script.replies[0].release()
    assert [await read_all(follower) for follower, _ in joined] == [DATA] * 3
    assert script.requested == [0]
    for follower, _ in joined:
        follower.close()


@pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])
async def test_a_late_joiner_gets_what_is_there_at_once(
    downloads: Downloads, bench: Bench, size: int | None
) -> None:
    """B15: from the file on disk, then it goes on with the others."""
    gate = asyncio.Event()
    script = Script(
        [PlannedResponse(size=size, gate=gate, stop=5_000, error=broken), PlannedResponse(size=size)]
    )
    first, _ = await downloads.join(DIGEST, script.source)
    while await first.wait_until_readable(4_998) < 4_999:
        pass
    late, joined = await downloads.join(DIGEST, script.source)
    assert joined
    assert await late.wait_until_readable(0) == await first.wait_until_readable(0) >= 4_999
    gate.set()
    assert await read_all(late) == DATA
    first.close()
    late.close()


async def test_a_download_goes_on_when_everybody_has_left(downloads: Downloads, bench: Bench) -> None:
    """B16: it belongs to the process."""
    script = Script([PlannedResponse(gate=asyncio.Event())])
    follower, _ = await downloads.join(DIGEST, script.source)
    follower.close()
    script.replies[0].release()
    await bench.events.wait_for(DownloadEnded)
    assert bench.stored() == DATA


async def test_a_client_that_leaves_while_waiting_disturbs_no_other(
    downloads: Downloads, bench: Bench
) -> None:
    """B16: the one who caused the download included."""
    gate = asyncio.Event()
    script = Script([PlannedResponse()], gate=gate)
    tasks = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(2)]
    await wait_until(lambda: len(downloads) == 1, "the download has begun")
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    gate.set()
    follower, _ = await tasks[1]
    assert await read_all(follower) == DATA
    follower.close()


async def test_a_failure_reaches_every_waiting_client_and_is_not_remembered(
    downloads: Downloads, bench: Bench
) -> None:
    """B20: then one retry, not one per waiter."""
    script = Script([PlannedResponse(error=broken, refuses=True), PlannedResponse()])
    tasks = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(5)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results == [broken] * 5
    assert script.requested == [0]
    retries = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(5)]
    for follower, _ in await asyncio.gather(*retries):
        assert await read_all(follower) == DATA
        follower.close()
    assert script.requested == [0, 0]


async def test_a_failure_in_the_middle_reaches_every_reader(downloads: Downloads, bench: Bench) -> None:
    """B5, B20: nobody waits for ever."""
    script = Script([PlannedResponse(stop=5_000, error=broken)])
    followers = [(await downloads.join(DIGEST, script.source))[0] for _ in range(3)]
    results = await asyncio.gather(*map(read_all, followers), return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamFailed] * 3
    for follower in followers:
        follower.close()


async def test_readers_of_wrong_bytes_never_get_the_last_one(downloads: Downloads, bench: Bench) -> None:
    """B2: and the next download starts from nothing."""
    script = Script([PlannedResponse(b"?" + DATA[1:]), PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, script.source)
    with pytest.raises(UpstreamContentInvalid):
        await read_all(follower)
    follower.close()
    assert bench.stored() is None
    second, joined = await downloads.join(DIGEST, script.source)
    assert not joined
    assert await read_all(second) == DATA
    second.close()


async def test_an_empty_body_is_verified_before_the_response_starts(
    downloads: Downloads, bench: Bench
) -> None:
    """B2, B6: there is no last byte to hold back, and an empty 200 would be whole."""
    with pytest.raises(UpstreamContentInvalid):
        await downloads.join(DIGEST, Script([PlannedResponse(b"")]).source)
    follower, _ = await downloads.join(Digest.of(b""), Script([PlannedResponse(b"")]).source)
    assert follower.size == 0
    assert await read_all(follower) == b""
    follower.close()


async def test_a_process_without_descriptors_is_unavailable(
    downloads: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: that is no fault of the disk, and the upstream could not be requested either."""

    def refuse(digest: Digest) -> None:
        raise OSError(24, "Too many open files")

    script = Script([PlannedResponse()])
    monkeypatch.setattr(bench.staging, "open", refuse)
    with pytest.raises(Unavailable, match="Too many open files"):
        await downloads.join(DIGEST, script.source)
    (ended,) = await bench.events.wait_for(DownloadEnded)
    assert "Too many open files" in ended.error
    assert script.requested == []


async def test_the_file_is_closed_when_the_last_reader_has_left(downloads: Downloads, bench: Bench) -> None:
    """B17: no descriptor leaks, whichever order download and readers end in."""

    def ours() -> list[str]:
        return [name for name in list_open_files() if name.startswith(str(bench.store.root))]

    script = Script([PlannedResponse()])
    first, _ = await downloads.join(DIGEST, script.source)
    second, _ = await downloads.join(DIGEST, script.source)
    first.close()
    await bench.events.wait_for(DownloadEnded)
    assert await read_all(second) == DATA
    second.close()
    await wait_until(lambda: not ours(), "every file is closed")
    early, _ = await downloads.join(Digest.of(b"x"), Script([PlannedResponse(b"x")]).source)
    early.close()
    early.close()
    await bench.events.wait_for(DownloadEnded, 2)
    absent = Script([PlannedResponse(error=UpstreamNotFound("registry.test", "no"), refuses=True)])
    with pytest.raises(UpstreamNotFound):
        await downloads.join(Digest.of(b"y"), absent.source)
    await wait_until(lambda: not ours(), "every file is closed")


async def test_closing_stops_downloads_and_keeps_what_has_arrived(downloads: Downloads, bench: Bench) -> None:
    """B16: what is interrupted stays resumable."""
    script = Script([PlannedResponse(stop=5_000, gate=asyncio.Event()), PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, script.source)
    while await follower.wait_until_readable(4_999) < 5_000:
        pass
    await downloads.close()
    with pytest.raises(Unavailable, match="interrupted"):
        await follower.wait_until_readable(5_000)
    follower.close()
    again, _ = await downloads.join(DIGEST, script.source)
    assert await read_all(again) == DATA
    again.close()
    assert script.requested == [0, 5_000]


async def test_events_count_downloads_and_readers(downloads: Downloads, bench: Bench) -> None:
    script = Script([PlannedResponse(stop=5_000, error=broken), PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, script.source)
    await read_all(follower)
    follower.close()
    (ended,) = await bench.events.wait_for(DownloadEnded)
    assert len(bench.events.of(DownloadStarted)) == 1
    assert sum(event.delta for event in bench.events.of(FollowersChanged)) == 0
    assert (ended.digest, ended.size, ended.resumed, ended.error) == (DIGEST, SIZE, 1, "")
    assert (ended.upstream, ended.repository) == ("registry.test", "team/app")


async def test_a_download_whose_clients_have_all_left_is_ended_before_it_has_begun(
    downloads: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B100: nobody waits for the upstream's answer any more."""
    monkeypatch.setattr(registry, "ABANDONED", 0.0)
    script = Script([PlannedResponse()], gate=asyncio.Event())
    tasks = [asyncio.create_task(downloads.join(DIGEST, script.source)) for _ in range(2)]
    await wait_until(lambda: bench.staged() != [], "the download has begun")
    for task in tasks:
        task.cancel()
    await wait_until(lambda: len(downloads) == 0, "it has ended")
    assert bench.staged() == []


async def test_a_client_whose_deadline_is_extended_keeps_its_download(
    downloads: Downloads, bench: Bench
) -> None:
    """B20: whoever waits again in the same moment causes no second request."""
    gate = asyncio.Event()
    script = Script([PlannedResponse()], gate=gate)
    try:
        async with asyncio.timeout(0.02):
            await downloads.join(DIGEST, script.source)
    except TimeoutError:
        again = asyncio.create_task(downloads.join(DIGEST, script.source))
    await asyncio.sleep(0)
    gate.set()
    follower, joined = await again
    assert joined
    assert script.requested == [0]
    follower.close()


async def test_names_of_readers_that_have_left_are_forgotten(downloads: Downloads, bench: Bench) -> None:
    """B100: a long download does not grow with the names that were invented meanwhile."""
    gate = asyncio.Event()
    first, _ = await downloads.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    for number in range(50):
        follower, _ = await downloads.join(
            DIGEST,
            Script(
                [PlannedResponse()], repository=Repository("registry.test", f"invented/name{number}")
            ).source,
        )
        follower.close()
    download = downloads.find(DIGEST)
    assert download is not None
    assert [source.repository for source in download.sources.untried] == [REPOSITORY]
    gate.set()
    first.close()
