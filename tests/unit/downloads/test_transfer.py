"""The work of a download: resume, verify, commit, follow another process, take over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from regmirror.downloads.download import Download
from regmirror.downloads.fetcher import PAUSES
from regmirror.downloads.transfer import Transfer
from regmirror.errors import (
    RegistryError,
    Unavailable,
    UpstreamContentInvalid,
    UpstreamFailed,
    UpstreamNotFound,
)
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import NotStored, VerificationFailed
from tests.mirror_fixture import wait_until
from tests.unit.downloads.scripted import (
    DATA,
    DIGEST,
    REPOSITORY,
    Bench,
    PlannedResponse,
    Script,
    broken,
    no_range,
)

SIZE = len(DATA)
StartTransfer = Callable[..., tuple[Download, asyncio.Task[None]]]
NOT_FOUND = UpstreamNotFound("registry.test", "has no such blob")


@pytest.fixture
def start() -> Iterator[StartTransfer]:
    """A function that starts a download's transfer: the download and its task."""
    downloads: list[Download] = []

    def start_transfer(
        bench: Bench, script: Script, digest: Digest = DIGEST
    ) -> tuple[Download, asyncio.Task[None]]:
        download = Download(digest, script.source)
        downloads.append(download)
        return download, asyncio.create_task(Transfer(bench.context, download).run())

    yield start_transfer
    for download in downloads:
        if download.descriptor >= 0:
            os.close(download.descriptor)


async def test_a_verified_blob_is_stored_recorded_and_no_longer_staged(
    bench: Bench, start: StartTransfer
) -> None:
    download, task = start(bench, Script([PlannedResponse()]))
    await task
    assert bench.stored() == DATA
    assert bench.recorded == [(DIGEST, SIZE)]
    assert bench.staged() == []
    assert download.visible == SIZE


@pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])
async def test_the_last_byte_is_withheld_until_the_body_has_ended(
    bench: Bench, start: StartTransfer, size: int | None
) -> None:
    """B2: bytes flow at once, the last one is withheld until the hash matches."""
    response = PlannedResponse(size=size, gate=asyncio.Event())
    download, task = start(bench, Script([response]))
    await wait_until(lambda: download.written == SIZE, "all bytes are in the file")
    assert download.visible == SIZE - 1
    assert not download.verified
    response.release()
    await task
    assert download.visible == SIZE


@pytest.mark.parametrize("size", [-1, None], ids=["known size", "unknown size"])
async def test_wrong_bytes_never_become_visible_as_a_whole(
    bench: Bench, start: StartTransfer, size: int | None
) -> None:
    """B2: nothing is kept, and the events say so."""
    wrong = DATA[:-1] + b"?"
    download, task = start(bench, Script([PlannedResponse(wrong, size=size)]))
    with pytest.raises(UpstreamContentInvalid, match="other content"):
        await task
    assert download.visible == SIZE - 1
    assert bench.stored() is None
    assert bench.staged() == []
    assert bench.recorded == []
    (event,) = bench.events.of(VerificationFailed)
    assert (event.upstream, event.digest, event.where) == ("registry.test", DIGEST, "upstream")


async def test_more_bytes_than_stated_are_wrong_content(bench: Bench, start: StartTransfer) -> None:
    download, task = start(bench, Script([PlannedResponse(DATA + b"more", size=SIZE)]))
    with pytest.raises(UpstreamContentInvalid, match="sent more than"):
        await task
    assert download.visible < SIZE
    assert bench.staged() == []


async def test_a_broken_body_is_resumed_by_range(bench: Bench, start: StartTransfer) -> None:
    """B19: resumed by Range, and nothing is fetched twice."""
    script = Script(
        [
            PlannedResponse(stop=3_000, error=broken),
            PlannedResponse(stop=7_000, error=broken),
            PlannedResponse(),
        ]
    )
    download, task = start(bench, script)
    await task
    assert script.requested == [0, 3_000, 7_000]
    assert download.sources.resumed == 2
    assert bench.stored() == DATA


async def test_bytes_that_come_again_are_skipped(bench: Bench, start: StartTransfer) -> None:
    """B19: an upstream that ignores Range."""
    script = Script([PlannedResponse(stop=3_500, error=broken), PlannedResponse(whole=True)])
    _, task = start(bench, script)
    await task
    assert bench.stored() == DATA


async def test_an_upstream_whose_ranges_are_wrong_sends_everything_again(
    bench: Bench, start: StartTransfer
) -> None:
    """B19: a Content-Range of another place, or 416, must not end the download."""
    script = Script(
        [
            PlannedResponse(stop=3_500, error=broken),
            PlannedResponse(error=no_range, refuses=True),
            PlannedResponse(),
        ]
    )
    _, task = start(bench, script)
    await task
    assert script.requested == [0, 3_500, 0]
    assert bench.stored() == DATA


async def test_another_size_at_the_resume_is_wrong_content(bench: Bench, start: StartTransfer) -> None:
    """B2: else what was promised to clients would end before the digest is known."""
    script = Script([PlannedResponse(stop=3_000, error=broken), PlannedResponse(DATA + DATA)])
    download, task = start(bench, script)
    with pytest.raises(UpstreamContentInvalid, match="size"):
        await task
    assert download.visible < SIZE
    assert bench.staged() == []


async def test_a_size_stated_once_is_kept(bench: Bench, start: StartTransfer) -> None:
    script = Script([PlannedResponse(stop=3_000, error=broken), PlannedResponse(size=None)])
    download, task = start(bench, script)
    await task
    assert download.size == SIZE
    assert bench.stored() == DATA


async def test_an_upstream_that_brings_nothing_more_is_given_up(bench: Bench, start: StartTransfer) -> None:
    """B5: what has arrived stays for the next pull."""
    script = Script([PlannedResponse(stop=3_000, error=broken)])
    _, task = start(bench, script)
    with pytest.raises(UpstreamFailed, match="broke off"):
        await task
    assert script.requested == [0, *[3_000] * len(PAUSES)]
    assert bench.pauses == list(PAUSES)
    assert len(bench.staged()) == 2
    assert bench.stored() is None


async def test_an_upstream_without_the_blob_is_requested_once(bench: Bench, start: StartTransfer) -> None:
    """B20: what failed before the first byte is not repeated here."""
    script = Script([PlannedResponse(error=NOT_FOUND, refuses=True)])
    download, task = start(bench, script)
    with pytest.raises(UpstreamNotFound):
        await task
    assert script.requested == [0]
    assert not download.started
    assert bench.staged() == []


@pytest.mark.parametrize("size", [SIZE, None], ids=["known size", "unknown size"])
async def test_the_bytes_of_an_earlier_process_are_resumed(
    bench: Bench, start: StartTransfer, size: int | None
) -> None:
    """B7: after kill -9 the rest is fetched, and what was there is hashed with it."""
    bench.leave(DATA[:6_000], flowing=True, size=size)
    script = Script([PlannedResponse()])
    download, task = start(bench, script)
    await task
    assert script.requested == [6_000]
    assert download.sources.resumed == 1
    assert bench.stored() == DATA


async def test_a_complete_staged_file_needs_no_upstream(bench: Bench, start: StartTransfer) -> None:
    bench.leave(DATA, flowing=True, size=SIZE)
    script = Script([PlannedResponse()])
    _, task = start(bench, script)
    await task
    assert script.requested == []
    assert bench.stored() == DATA


async def test_a_complete_staged_file_of_unknown_size_is_recognised(
    bench: Bench, start: StartTransfer
) -> None:
    """B7: its writer died after the last byte of a body without length; the upstream says 416."""
    bench.leave(DATA, flowing=True)
    script = Script([PlannedResponse(error=no_range, refuses=True)])
    _, task = start(bench, script)
    await task
    assert bench.stored() == DATA


@pytest.mark.parametrize(
    "left",
    [DATA[:5_000] + bytes(1_000), DATA + b"more"],
    ids=["wrong bytes", "too many bytes"],
)
async def test_wrong_bytes_of_an_earlier_process_fail_one_pull_at_most(
    bench: Bench, start: StartTransfer, left: bytes
) -> None:
    """B7: it is never served, and the next pull works."""
    bench.leave(left, flowing=True)
    script = Script([PlannedResponse(), PlannedResponse()])
    _, task = start(bench, script)
    with pytest.raises(RegistryError):
        await task
    assert bench.stored() is None
    _, task = start(bench, script)
    await task
    assert bench.stored() == DATA


async def test_a_staged_file_longer_than_its_stated_size_is_fetched_again(
    bench: Bench, start: StartTransfer
) -> None:
    bench.leave(DATA + b"more", flowing=True, size=SIZE)
    script = Script([PlannedResponse()])
    _, task = start(bench, script)
    await task
    assert script.requested == [0]
    assert bench.stored() == DATA


async def test_a_blob_that_was_stored_meanwhile_is_not_fetched(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    await start(other, Script([PlannedResponse()]))[1]
    script = Script([PlannedResponse()])
    download, task = start(bench, script)
    await task
    assert script.requested == []
    assert download.visible == SIZE
    assert os.pread(download.descriptor, SIZE, 0) == DATA
    assert bench.staged() == []


async def test_an_empty_blob_is_stored(bench: Bench, start: StartTransfer) -> None:
    """B48: empty blobs exist."""
    empty = Digest.of(b"")
    _, task = start(bench, Script([PlannedResponse(b"")]), empty)
    await task
    assert bench.stored(empty) == b""


async def test_a_blob_that_cannot_be_committed_reaches_its_readers(
    bench: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: all bytes are here and right; nothing is recorded, and nothing partial stays."""
    monkeypatch.setattr(bench.store, "commit", full)
    download, task = start(bench, Script([PlannedResponse()]))
    await task
    assert os.pread(download.descriptor, SIZE + 1, 0) == DATA
    assert download.visible == SIZE
    assert bench.recorded == []
    assert bench.stored() is None
    assert bench.staged() == []
    assert [event.reason for event in bench.events.of(NotStored)] == ["disk"]


async def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_a_disk_that_fails_without_a_reader_ends_the_transfer(
    bench: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: what nobody waits for is not fetched to be thrown away."""
    script = Script([PlannedResponse()])
    monkeypatch.setattr(os, "pwrite", fail_to_write)
    _, task = start(bench, script)
    with pytest.raises(Unavailable, match="No space left on device"):
        await task
    assert script.requested == [0]
    assert bench.staged() == []


def fail_to_write(*_: object) -> None:
    raise OSError(28, "No space left on device")


# --- two processes ---


async def test_the_second_process_follows_the_first_without_a_request(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B13: one writer, elected by the lock."""
    response = PlannedResponse(gate=asyncio.Event())
    writer, written = start(bench, Script([response]))
    await wait_until(lambda: writer.written == SIZE, "the writer has everything")
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: follower.written == SIZE, "the follower sees everything")
    assert follower.size == SIZE
    assert follower.visible == SIZE - 1
    response.release()
    await asyncio.gather(written, followed)
    assert script.requested == []
    assert follower.visible == SIZE
    assert os.pread(follower.descriptor, SIZE, 0) == DATA


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (PlannedResponse(error=NOT_FOUND, refuses=True, gate=None), UpstreamNotFound),
        (PlannedResponse(DATA[:-1] + b"?"), UpstreamContentInvalid),
    ],
)
async def test_the_writers_failure_is_the_followers_failure(
    bench: Bench, other: Bench, start: StartTransfer, response: PlannedResponse, kind: type[RegistryError]
) -> None:
    """B20: and the follower does not ask the upstream again."""
    gate = asyncio.Event()
    script = Script([response], gate=gate)
    _, written = start(bench, script)
    await wait_until(lambda: script.requested != [], "the writer has sent a request")
    follower_script = Script([PlannedResponse()])
    _, followed = start(other, follower_script)
    await wait_until(lambda: other.pauses != [], "the follower waits")
    gate.set()
    results = await asyncio.gather(written, followed, return_exceptions=True)
    assert [type(result) for result in results] == [kind, kind]
    assert str(results[0]) == str(results[1])
    assert follower_script.requested == []


async def test_wrong_bytes_of_the_writer_fail_the_readers_of_the_follower(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B2: they have had some of the bytes, so no other bytes may follow."""
    response = PlannedResponse(DATA[:-1] + b"?", gate=asyncio.Event())
    _, written = start(bench, Script([response]))
    script = Script([PlannedResponse()], repository=Repository("registry.test", "team/other"))
    await wait_until(lambda: bench.staged() != [], "the writer has begun")
    follower, followed = start(other, script)
    await wait_until(lambda: follower.written == SIZE, "the follower sees everything")
    response.release()
    results = await asyncio.gather(written, followed, return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamContentInvalid] * 2
    assert script.requested == []
    assert follower.visible == SIZE - 1
    assert follower.sources.suspected == str(REPOSITORY)


async def test_a_commit_that_failed_costs_the_follower_no_request(
    bench: Bench, other: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: the file has no name any more, but all its bytes are there and right."""
    response = PlannedResponse(gate=asyncio.Event())
    monkeypatch.setattr(bench.store, "commit", full)
    _, written = start(bench, Script([response]))
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: follower.written == SIZE, "the follower follows")
    response.release()
    await asyncio.gather(written, followed)
    assert script.requested == []
    assert follower.visible == SIZE
    assert os.pread(follower.descriptor, SIZE + 1, 0) == DATA
    assert other.stored() is None
    assert other.staged() == []


async def test_the_follower_has_the_last_byte_before_the_file_is_safe_on_disk(
    bench: Bench, other: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2, B13: what the writer has verified is verified; nobody waits for its disk."""
    commit, is_safe = bench.store.commit, asyncio.Event()

    async def commit_later(staged: Path, digest: Digest) -> None:
        await is_safe.wait()
        await commit(staged, digest)

    monkeypatch.setattr(bench.store, "commit", commit_later)
    _, written = start(bench, Script([PlannedResponse()]))
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: follower.verified, "the follower knows that all is right")
    assert follower.visible == SIZE
    assert other.stored() is None
    is_safe.set()
    await asyncio.gather(written, followed)
    assert other.stored() == DATA
    assert script.requested == []


async def test_a_state_that_a_killed_writer_left_verifies_no_other_file(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B1, B7: killed between the commit and the end of the state file, and the blob is fetched again."""
    bench.leave(b"", flowing=True, verified=True, size=SIZE, upstream="registry.test")
    writer = bench.staging.open(DIGEST)
    assert writer.try_lock()
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: len(other.pauses) > 3, "the follower has read the state")
    assert not follower.verified
    assert follower.visible == 0
    writer.close()
    await followed
    assert script.requested == [0]
    assert other.stored() == DATA


async def test_the_follower_takes_over_where_a_dead_writer_stopped(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B13, B19: a writer that ends in whatever way is replaced, by Range."""
    writer, written = start(bench, Script([PlannedResponse(stop=6_000, gate=asyncio.Event())]))
    await wait_until(lambda: writer.written == 6_000, "the writer has a part")
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: follower.written == 6_000, "the follower sees it")
    written.cancel()
    await followed
    assert script.requested == [6_000]
    assert follower.visible == SIZE
    assert os.pread(follower.descriptor, SIZE, 0) == DATA
    assert other.stored() == DATA
    assert other.recorded == [(DIGEST, SIZE)]
    assert other.staged() == []


async def test_a_takeover_that_finds_wrong_bytes_withholds_the_last_byte(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B2: what the dead writer had let through is hashed as well."""
    writer, written = start(
        bench, Script([PlannedResponse(b"?" + DATA[1:6_000], size=SIZE, gate=asyncio.Event())])
    )
    await wait_until(lambda: writer.written == 6_000, "the writer has a part")
    follower, followed = start(other, Script([PlannedResponse()]))
    await wait_until(lambda: follower.written == 6_000, "the follower sees it")
    written.cancel()
    with pytest.raises(UpstreamContentInvalid):
        await followed
    assert follower.visible < SIZE
    assert other.stored() is None
    assert other.staged() == []


# --- errors of the process and of the store ---


async def test_a_process_without_descriptors_leaves_the_staged_file(
    bench: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44: that is no fault of the disk."""

    def fail(digest: Digest) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bench.store, "open", fail)
    _, task = start(bench, Script([PlannedResponse()]))
    with pytest.raises(OSError, match="Too many open files"):
        await task
    assert bench.staged() != []


async def test_a_stored_blob_that_cannot_be_opened_is_fetched_again(
    bench: Bench, start: StartTransfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6."""

    def fail(digest: Digest) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bench.store, "open", fail)
    script = Script([PlannedResponse()])
    await start(bench, script)[1]
    assert script.requested == [0]
    assert bench.stored() == DATA


async def test_a_blob_that_another_process_committed_is_complete(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B13: the follower has its file open."""
    response = PlannedResponse(gate=asyncio.Event())
    _, written = start(bench, Script([response]))
    script = Script([PlannedResponse()])
    follower, followed = start(other, script)
    await wait_until(lambda: follower.written == SIZE, "the follower follows")
    response.release()
    await asyncio.gather(written, followed)
    assert follower.verified
    assert script.requested == []


async def test_a_writer_that_stands_still_is_passed_by(
    bench: Bench, other: Bench, start: StartTransfer
) -> None:
    """B35: the bytes in the file are used, and the remaining ones are requested."""
    writer, written = start(bench, Script([PlannedResponse(stop=6_000, gate=asyncio.Event())]))
    await wait_until(lambda: writer.written == 6_000, "the writer has a part")
    script = Script([PlannedResponse()], read_timeout=0.05)
    follower, followed = start(other, script)
    follower.enter(script.source)
    await followed
    assert script.requested == [6_000]
    assert follower.detach_point is not None
    assert [event.reason for event in other.events.of(NotStored)] == ["stalled"]
    written.cancel()
    await asyncio.gather(written, return_exceptions=True)
