"""B35: the same blob at two upstreams, of which the first one hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from regmirror.telemetry.events import NotStored
from tests.fake_registry import FakeRegistry, Hold, random_bytes
from tests.mirror_fixture import run_mirror, wait_until

BLOB = random_bytes(400_000, seed=5)
HUNG, WELL = "hung.test", "well.test"


@pytest.fixture
async def hung() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
async def well() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def path(hung: FakeRegistry, well: FakeRegistry) -> str:
    digest = hung.add_blob("team/app", BLOB)
    assert well.add_blob("team/app", BLOB) == digest
    return f"/v2/team/app/blobs/{digest}"


async def test_an_upstream_that_does_not_answer_delays_no_other(
    hung: FakeRegistry, well: FakeRegistry, path: str, tmp_path: Path
) -> None:
    """The download that waits for it continues with the other one, and the blob is stored."""
    hold = Hold()
    hung.fault(hold, kind="blob", times=None)
    async with run_mirror(tmp_path / "data", {HUNG: hung, WELL: well}) as mirror:
        first = asyncio.create_task(mirror.get(f"{path}?ns={HUNG}"))
        await hold.wait_for_arrivals()
        response = await mirror.get(f"{path}?ns={WELL}")
        assert (response.status, response.body) == (200, BLOB)
        assert well.count("blob", "GET") == 1
        await wait_until(lambda: len(mirror.stored()) == 1, "the blob is stored")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_an_upstream_that_hangs_in_the_middle_delays_no_other(
    hung: FakeRegistry, well: FakeRegistry, path: str, tmp_path: Path
) -> None:
    """Nor does its client get bytes that another upstream sends (B67)."""
    hold = hung.pause(after=100_000, kind="blob")
    async with run_mirror(tmp_path / "data", {HUNG: hung, WELL: well}) as mirror:
        first = asyncio.create_task(mirror.get(f"{path}?ns={HUNG}"))
        await hold.wait_for_arrivals()
        response = await mirror.get(f"{path}?ns={WELL}")
        assert (response.status, response.body) == (200, BLOB)
        assert not first.done()
        assert [request.headers.get("Range") for request in well.find("blob", "GET")] == [None]
        hold.release()
        assert (await first).body == BLOB


async def test_an_upstream_that_breaks_ends_only_its_own_clients(
    hung: FakeRegistry, well: FakeRegistry, path: str, tmp_path: Path
) -> None:
    """B5: they resume when it is back."""
    hold = hung.pause(after=100_000, kind="blob")
    async with run_mirror(tmp_path / "data", {HUNG: hung, WELL: well}) as mirror:
        first = asyncio.create_task(mirror.get(f"{path}?ns={HUNG}"))
        await hold.wait_for_arrivals()
        second = asyncio.create_task(mirror.get(f"{path}?ns={WELL}"))
        await mirror.wait_for_started(2)
        await hung.stop()
        assert (await second).body == BLOB
        with pytest.raises(aiohttp.ClientPayloadError):
            await first
        assert well.count("blob", "GET") == 1


async def test_a_blob_that_another_process_waits_for_is_fetched_beside_it(
    hung: FakeRegistry, well: FakeRegistry, path: str, tmp_path: Path
) -> None:
    """It passes through and is not stored: the other process has the file."""
    hold = hung.pause(after=100_000, kind="blob")
    upstreams = {HUNG: hung, WELL: well}
    async with (
        run_mirror(tmp_path / "data", upstreams) as one,
        run_mirror(tmp_path / "data", upstreams) as other,
    ):
        first = asyncio.create_task(one.get(f"{path}?ns={HUNG}"))
        await hold.wait_for_arrivals()
        response = await other.get(f"{path}?ns={WELL}")
        assert (response.status, response.body) == (200, BLOB)
        assert {event.reason for event in other.events.of(NotStored)} == {"stalled"}
        hold.release()
        assert (await first).body == BLOB
        await wait_until(lambda: len(one.stored()) == 1, "the blob is stored")
