"""Whose upstream brought the bytes of a blob, and what readers of each repository may have of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regmirror.downloads import fetcher as fetching
from regmirror.downloads import registry as sharing
from regmirror.downloads.download import Download
from regmirror.downloads.follower import Follower
from regmirror.downloads.registry import Downloads
from regmirror.errors import (
    Unavailable,
    UpstreamContentInvalid,
    UpstreamFailed,
    UpstreamNotFound,
    UpstreamRateLimited,
)
from regmirror.oci.names import Digest, Repository
from regmirror.telemetry.events import DownloadEnded
from tests.fake_registry import random_bytes
from tests.mirror_fixture import wait_until
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

OTHER = Repository("other.test", "team/app")
LARGE = random_bytes(200_000)
LARGE_DIGEST = Digest.of(LARGE)
ABSENT = UpstreamNotFound("registry.test", "has no such blob")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is noticed at once."""
    monkeypatch.setattr(fetching, "STALL", 0.02)


def named(number: int) -> Repository:
    return Repository("registry.test", f"invented/name{number}")


def from_other(*replies: PlannedResponse, **more: Any) -> Script:
    return Script([*replies], repository=OTHER, **more)


# --- proofs ---


async def test_all_bytes_from_its_own_upstream_link_a_repository(downloads: Downloads, bench: Bench) -> None:
    """B67: and of no other one, which is recorded with the verified blob."""
    gate = asyncio.Event()
    follower, _ = await downloads.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    assert follower.proves(REPOSITORY)
    assert not follower.proves(OTHER)
    gate.set()
    assert await read_all(follower) == DATA
    follower.close()
    await bench.events.wait_for(DownloadEnded)
    assert bench.proven == [{REPOSITORY}]


async def test_a_reader_that_joins_for_another_repository_proves_nothing(
    downloads: Downloads, bench: Bench
) -> None:
    gate = asyncio.Event()
    first, _ = await downloads.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    second, joined = await downloads.join(DIGEST, from_other(PlannedResponse()).source)
    assert joined
    assert (second.proves(OTHER), second.proves(REPOSITORY)) == (False, True)
    gate.set()
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("note", "proven"),
    [
        ({"origin": str(REPOSITORY)}, [{REPOSITORY}]),
        ({"origin": str(REPOSITORY), "origin_until": 2_000}, [set()]),
        ({"origin": str(OTHER)}, [set()]),
        ({}, [set()]),
    ],
    ids=["its own", "in part", "another's", "unknown"],
)
async def test_a_resumed_download_is_a_proof_if_its_provenance_is_known(
    downloads: Downloads, bench: Bench, note: dict[str, Any], proven: list[set[Repository]]
) -> None:
    """B67: a left-over is no evidence by itself."""
    bench.leave(DATA[:6_000], flowing=True, size=len(DATA), **note)
    follower, _ = await downloads.join(DIGEST, Script([PlannedResponse()]).source)
    assert follower.proves(REPOSITORY) == (proven == [{REPOSITORY}])
    assert await read_all(follower) == DATA
    follower.close()
    await bench.events.wait_for(DownloadEnded)
    assert bench.proven == proven


async def test_a_complete_staged_file_proves_nothing_without_a_request(
    downloads: Downloads, bench: Bench
) -> None:
    bench.leave(DATA, flowing=True, size=len(DATA), origin=str(REPOSITORY))
    follower, _ = await downloads.join(DIGEST, Script([PlannedResponse()]).source)
    assert not follower.proves(REPOSITORY)
    follower.close()
    await bench.events.wait_for(DownloadEnded)
    assert bench.proven == [set()]


async def test_a_follower_in_another_process_knows_the_origin(
    downloads: Downloads, elsewhere: Downloads, bench: Bench
) -> None:
    """B13, B67: by the note."""
    gate = asyncio.Event()
    first, _ = await downloads.join(DIGEST, Script([PlannedResponse(gate=gate)]).source)
    unused = Script([PlannedResponse()])
    second, _ = await elsewhere.join(DIGEST, unused.source)
    third, _ = await elsewhere.join(DIGEST, from_other(PlannedResponse()).source)
    assert (second.proves(REPOSITORY), third.proves(OTHER)) == (True, False)
    gate.set()
    assert await read_all(second) == DATA
    assert unused.requested == []
    for follower in (first, second, third):
        follower.close()


# --- continued by another upstream ---


async def change_upstreams(
    downloads: Downloads, digest: Digest, data: bytes, stop: int
) -> tuple[Follower, Follower, asyncio.Event]:
    """A reader of a repository whose upstream hangs after ``stop`` bytes, and then another one's."""
    rest = asyncio.Event()
    hanging = Script([PlannedResponse(data, stop=stop, gate=asyncio.Event())])
    going_on = from_other(PlannedResponse(data, gate=rest))
    first, _ = await downloads.join(digest, hanging.source)
    assert first.proves(REPOSITORY)
    second, _ = await downloads.join(digest, going_on.source)
    await wait_until(lambda: going_on.requested == [stop], "the other one goes on")
    while await second.wait_until_readable(len(data) - 2) < len(data) - 1:
        pass
    return first, second, rest


async def test_a_reader_gets_nothing_from_another_upstream_before_all_is_verified(
    downloads: Downloads, bench: Bench, quick: None
) -> None:
    """B67: an upstream that sends a little of what it does not have must not get its client the rest."""
    first, second, rest = await change_upstreams(downloads, LARGE_DIGEST, LARGE, stop=100_000)
    assert (first.proves(REPOSITORY), first.proves(OTHER)) == (False, False)
    assert await first.wait_until_readable(0) == 100_000
    waiting = asyncio.create_task(first.wait_until_readable(100_000))
    await asyncio.sleep(0)
    assert not waiting.done()
    rest.set()
    assert await waiting == len(LARGE)
    first.close()
    second.close()
    await bench.events.wait_for(DownloadEnded)
    assert bench.proven == [set()]


async def test_a_few_correct_bytes_prove_nothing(downloads: Downloads, bench: Bench, quick: None) -> None:
    """B67: the first bytes of many files can be guessed."""
    first, second, rest = await change_upstreams(downloads, DIGEST, DATA, stop=1_000)
    rest.set()
    assert await read_all(second) == DATA
    assert await first.wait_until_readable(0) == 1_000 or first.size == len(DATA)
    with pytest.raises(Unavailable):
        await first.wait_until_readable(1_000)
    first.close()
    second.close()


# --- rejections ---


async def test_a_rejection_reaches_only_the_readers_of_its_repository(
    downloads: Downloads, bench: Bench
) -> None:
    """B20: one request for all who wait for one repository; the others have theirs."""
    absent = Script([PlannedResponse(error=ABSENT, refuses=True)])
    limited = UpstreamRateLimited("other.test", "limits the rate", retry_after=60.0)
    others = from_other(PlannedResponse(error=limited, refuses=True))
    third = Script([PlannedResponse()], repository=named(1))
    tasks = [
        asyncio.create_task(downloads.join(DIGEST, script.source))
        for script in (absent, others, third)
        for _ in range(4)
    ]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:8] == [ABSENT] * 4 + [limited] * 4
    assert [script.requested for script in (absent, others, third)] == [[0], [0], [0]]
    for follower, _ in [task.result() for task in tasks[8:]]:
        assert await read_all(follower) == DATA
        follower.close()


async def test_names_that_hang_do_not_delay_a_name_that_is_served(
    downloads: Downloads, bench: Bench, quick: None
) -> None:
    """B35: the more of them fail or hang, the more are requested at once."""
    hung = [
        Script([PlannedResponse()], repository=named(number), gate=asyncio.Event()) for number in range(20)
    ]
    tasks = [asyncio.create_task(downloads.join(DIGEST, script.source)) for script in hung]
    await asyncio.sleep(0)
    follower, _ = await downloads.join(DIGEST, from_other(PlannedResponse()).source)
    assert await read_all(follower) == DATA
    follower.close()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, tuple):
            result[0].close()


async def test_wrong_bytes_are_fetched_again_for_a_reader_that_has_none(
    downloads: Downloads, bench: Bench
) -> None:
    """B2: the others end short."""
    gate = asyncio.Event()
    wrong = Script([PlannedResponse(b"?" + DATA[1:], gate=gate)])
    right = from_other(PlannedResponse())
    first, _ = await downloads.join(DIGEST, wrong.source)
    second, _ = await downloads.join(DIGEST, right.source)
    gate.set()
    assert await second.wait_until_readable(len(DATA) - 1) == len(DATA)
    assert second.proves(OTHER)
    with pytest.raises(UpstreamContentInvalid):
        await read_all(first)
    assert (wrong.requested, right.requested) == ([0], [0])
    first.close()
    second.close()


async def test_wrong_bytes_of_two_upstreams_are_no_fault_of_the_second(
    downloads: Downloads, bench: Bench, quick: None
) -> None:
    """B20: it may have sent the right ones to what the first one had begun."""
    wrong = Script([PlannedResponse(b"?" * 1_000, size=len(DATA), gate=asyncio.Event())])
    right = from_other(PlannedResponse())
    first, _ = await downloads.join(DIGEST, wrong.source)
    second, _ = await downloads.join(DIGEST, right.source)
    assert await second.wait_until_readable(len(DATA) - 1) == len(DATA)
    assert right.requested == [1_000, 0]
    first.close()
    second.close()


async def test_a_size_that_the_first_upstream_made_up_is_no_fault_of_the_second(
    downloads: Downloads, bench: Bench
) -> None:
    """B20: where they disagree, each one's own readers have its own answer."""
    breaking = UpstreamFailed("registry.test", "broke off", reason="truncated")
    lying = Script([PlannedResponse(stop=0, size=5, error=breaking)])
    right = from_other(PlannedResponse())
    first = asyncio.create_task(downloads.join(DIGEST, lying.source))
    second = asyncio.create_task(downloads.join(DIGEST, right.source))
    follower, _ = await second
    with pytest.raises((UpstreamContentInvalid, UpstreamFailed)):
        await read_all(follower)
    follower.close()
    again, _ = await downloads.join(DIGEST, right.source)
    assert await read_all(again) == DATA
    again.close()
    (await first)[0].close()


async def test_another_process_that_fails_for_another_repository_is_taken_over(
    downloads: Downloads, elsewhere: Downloads, bench: Bench
) -> None:
    """B13, B20: from where it stopped."""
    breaking = Script([PlannedResponse(stop=3_000, error=broken)])
    script = from_other(PlannedResponse())
    first, _ = await downloads.join(DIGEST, breaking.source)
    second, _ = await elsewhere.join(DIGEST, script.source)
    assert await read_all(second) == DATA
    assert script.requested == [3_000]
    with pytest.raises(UpstreamFailed):
        await read_all(first)
    first.close()
    second.close()


async def test_a_reader_that_joins_one_failure_after_the_other_is_told_to_come_again(
    downloads: Downloads, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B34: within a bound."""
    monkeypatch.setattr(sharing, "JOINS_MAX", 2)
    hung = Script([PlannedResponse()], repository=named(1), gate=asyncio.Event())
    other = from_other(PlannedResponse())
    tries = []

    async def wait(download: Download, repository: Repository | None) -> None:
        if repository == OTHER:
            tries.append(download)
            download.fail(ABSENT, str(named(1)))
            raise ABSENT
        await download.wait_started(repository)

    monkeypatch.setattr(downloads, "_wait_started", wait)
    task = asyncio.create_task(downloads.join(DIGEST, hung.source))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="other downloads"):
        await downloads.join(DIGEST, other.source)
    assert len(tries) == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
