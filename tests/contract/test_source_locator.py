"""The contract of a source locator, and what bytes of a source that is no upstream may prove."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from regmirror.downloads.registry import Downloads
from regmirror.downloads.source import Source, SourceLocator, UpstreamLocator
from regmirror.errors import Unavailable, UpstreamNotFound
from regmirror.oci.names import Digest
from regmirror.telemetry.events import DownloadEnded
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

ABSENT = UpstreamNotFound("registry.test", "has no such blob")


class PeerLocator:
    """Chooses a peer, which is no upstream."""

    def __init__(self, peer: Script) -> None:
        self.peer = peer

    async def locate(self, digest: Digest, upstream: Source) -> Source:
        return replace(self.peer.source, repository=upstream.repository, is_upstream=False)


class SourceLocatorContract:
    """The suite; ``locator`` chooses a source for any blob."""

    async def test_the_source_is_the_upstream_or_says_that_it_is_not(self, locator: SourceLocator) -> None:
        upstream = Script([PlannedResponse()]).source
        source = await locator.locate(DIGEST, upstream)
        assert source is upstream or not source.is_upstream
        assert source.repository == upstream.repository


class TestUpstreamLocator(SourceLocatorContract):
    @pytest.fixture
    def locator(self) -> SourceLocator:
        return UpstreamLocator()

    async def test_it_chooses_the_upstream(self, locator: SourceLocator) -> None:
        upstream = Script([PlannedResponse()]).source
        assert await locator.locate(DIGEST, upstream) is upstream


class TestPeerLocator(SourceLocatorContract):
    @pytest.fixture
    def locator(self) -> SourceLocator:
        return PeerLocator(Script([PlannedResponse()]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ThreadPoolExecutor(2) as bulk:
        yield Bench(tmp_path, bulk)


@pytest.fixture
def peer() -> Script:
    return Script([PlannedResponse()])


@pytest.fixture
async def downloads(bench: Bench, peer: Script) -> AsyncIterator[Downloads]:
    downloads = Downloads(replace(bench.context, locator=PeerLocator(peer)))
    yield downloads
    await downloads.close()


async def test_bytes_of_a_peer_are_stored_and_prove_nothing(
    downloads: Downloads, bench: Bench, peer: Script
) -> None:
    """B67: the upstream has not responded, so the repository is not linked."""
    upstream = Script([PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, upstream.source)
    assert not follower.proves(REPOSITORY)
    assert await read_all(follower) == DATA
    follower.close()
    await bench.events.wait_for(DownloadEnded)
    assert (peer.requested, upstream.requested) == ([0], [])
    assert bench.stored() == DATA
    assert bench.proven == [set()]


async def test_a_peer_that_fails_is_replaced_by_the_upstream(
    downloads: Downloads, bench: Bench, peer: Script
) -> None:
    """B20: its error is no response for the repository's readers."""
    peer.replies = [PlannedResponse(error=ABSENT, refuses=True)]
    upstream = Script([PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, upstream.source)
    assert follower.proves(REPOSITORY)
    assert await read_all(follower) == DATA
    follower.close()
    assert upstream.requested == [0]


async def test_the_upstream_continues_where_a_peer_broke_off(
    downloads: Downloads, bench: Bench, peer: Script
) -> None:
    """B67: the first bytes are not the upstream's, so that all of them prove nothing."""
    peer.replies = [PlannedResponse(stop=3_000, error=broken)]
    upstream = Script([PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, upstream.source)
    assert await read_all(follower) == DATA
    assert not follower.proves(REPOSITORY)
    follower.close()
    await bench.events.wait_for(DownloadEnded)
    assert upstream.requested == [3_000]
    assert bench.proven == [set()]


async def test_wrong_bytes_of_a_peer_are_no_fault_of_the_upstream(
    downloads: Downloads, bench: Bench, peer: Script
) -> None:
    """B2: nothing is stored, and a reader without a byte joins another download."""
    peer.replies = [PlannedResponse(b"?" + DATA[1:]), PlannedResponse(error=ABSENT, refuses=True)]
    upstream = Script([PlannedResponse()])
    follower, _ = await downloads.join(DIGEST, upstream.source)
    assert await follower.wait_until_readable(len(DATA) - 1) == len(DATA)
    assert follower.proves(REPOSITORY)
    assert await read_all(follower) == DATA
    follower.close()
    await bench.events.wait_for(DownloadEnded, 2)
    assert (upstream.requested, bench.proven) == ([0], [{REPOSITORY}])


async def test_a_peer_and_the_upstream_that_both_fail_are_an_error(
    downloads: Downloads, peer: Script
) -> None:
    peer.replies = [PlannedResponse(error=ABSENT, refuses=True)]
    with pytest.raises((UpstreamNotFound, Unavailable)):
        await downloads.join(DIGEST, Script([PlannedResponse(error=ABSENT, refuses=True)]).source)
