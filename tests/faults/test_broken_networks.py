"""Dropped packets, reset connections and a pulled cable between mirror and upstream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.parts.networks import SecondHost
from tests.fake_registry import FakeRegistry, Image
from tests.faults.sample import (
    HALF,
    LAYER,
    OTHER,
    PATIENCE,
    SIZE,
    add_sample,
    add_small,
    is_stale,
    paths,
    pull_again,
    pulls,
    read_rest,
    reason,
    store,
)
from tests.mirror_fixture import NAME, run_program

FAR = "far.example"
ALWAYS_ASK = {"tag_max_age": "0"}
QUICK = {FAR: {"connect_timeout": "1s", "read_timeout": "1s"}}


@pytest.fixture
def image(far: FakeRegistry) -> Image:
    return add_sample(far)


@pytest.fixture
def small(far: FakeRegistry) -> Image:
    return add_small(far)


@pytest.fixture
def healthy(upstream: FakeRegistry) -> Image:
    """An image of the upstream that nothing happens to."""
    return add_sample(upstream, OTHER)


@pytest.mark.parametrize("fault", ["reset_after", "silent_after"])
async def test_a_blob_is_complete_although_every_connection_breaks(
    upstream: FakeRegistry, storage: Path, host: SecondHost, far: FakeRegistry, image: Image, fault: str
) -> None:
    """B19, B5: each connection resumes where the last broke, and the client gets one complete response."""
    async with run_program(storage, {NAME: upstream, FAR: far}, upstreams=QUICK) as program:
        with getattr(host, fault)(far.port, SIZE // 2):
            pulled = await program.get(paths(image, FAR)[1])
    assert (pulled.status, pulled.body) == (200, LAYER)
    ranges = [request.headers.get("Range", "") for request in far.find("blob", "GET")]
    assert ranges[0] == ""
    assert len(ranges) > 1
    assert all(text.startswith("bytes=") for text in ranges[1:])


async def test_a_black_hole_gets_a_response_in_time(
    upstream: FakeRegistry, storage: Path, host: SecondHost, far: FakeRegistry, image: Image, healthy: Image
) -> None:
    """B34, B35, B38: by 504 and the word for it; pulls from another upstream do not wait for it."""
    tag, layer = paths(image, FAR)
    async with run_program(storage, {NAME: upstream, FAR: far}, upstreams=QUICK) as program:
        with host.black_hole(far.port):
            rejected = asyncio.create_task(program.get(tag))
            assert await pulls(program, healthy, NAME)
            assert not rejected.done()
            assert (await rejected).status == 504
        assert reason(await rejected) == "connect"
        assert '"reason":"connect"' in program.log
        assert far.requests == []
        assert (await pull_again(program, tag)).body == image.manifest
        assert (await pull_again(program, layer)).body == LAYER


async def test_an_unreachable_host_has_its_own_reason(
    upstream: FakeRegistry, storage: Path, host: SecondHost, far: FakeRegistry, image: Image
) -> None:
    """B34, B38: 502 at once."""
    tag = paths(image, FAR)[0]
    async with run_program(storage, {NAME: upstream, FAR: far}, upstreams=QUICK) as program:
        with host.unreachable(far.port):
            rejected = await program.get(tag)
        assert (rejected.status, reason(rejected)) == (502, "network")
        assert '"reason":"network"' in program.log
        assert (await pull_again(program, tag)).body == image.manifest


@pytest.mark.parametrize("fault", ["black_hole", "unreachable"])
async def test_a_cached_tag_stays_served(
    upstream: FakeRegistry, storage: Path, host: SecondHost, far: FakeRegistry, small: Image, fault: str
) -> None:
    """B33: stale, and revalidated when the upstream is back."""
    settings: dict[str, Any] = {"freshness": ALWAYS_ASK, "upstreams": QUICK}
    async with run_program(storage, {NAME: upstream, FAR: far}, **settings) as program:
        tag = await store(program, small, FAR)
        with getattr(host, fault)(far.port):
            assert all([is_stale(await program.get(tag), small) for _ in range(4)])
        async with asyncio.timeout(PATIENCE):
            while "Warning" in (fresh := await program.get(tag)).headers:  # noqa: ASYNC110  # only a request shows it
                await asyncio.sleep(0.2)
        assert fresh.headers["Cache-Status"] == "regmirror; fwd=stale; fwd-status=200"


async def test_a_cable_that_is_pulled_for_a_moment_does_no_harm(
    upstream: FakeRegistry,
    storage: Path,
    host: SecondHost,
    far: FakeRegistry,
    image: Image,
    small: Image,
    healthy: Image,
) -> None:
    """B5: the connection outlives it, and one request is all that the upstream sees."""
    layer = paths(image, FAR)[1]
    pause = far.pause(after=HALF, reference=image.layer_digests[0], times=1)
    async with run_program(storage, {NAME: upstream, FAR: far}, freshness=ALWAYS_ASK) as program:
        tag = await store(program, small, FAR)
        async with program.open(layer) as response:
            begin = await response.content.readexactly(HALF)
            with host.unplugged():
                pause.release()
                assert is_stale(await program.get(tag), small)
                assert await pulls(program, healthy, NAME)
            rest = await read_rest(response)
    assert rest is not None
    assert begin + rest == LAYER
    assert far.count("blob", "GET", reference=image.layer_digests[0]) == 1


async def test_a_cable_that_stays_pulled_ends_the_response_short(
    upstream: FakeRegistry, storage: Path, host: SecondHost, far: FakeRegistry, image: Image
) -> None:
    """B5, B7: no complete response with wrong bytes; later only the missing bytes are fetched."""
    layer = paths(image, FAR)[1]
    pause = far.pause(after=HALF, reference=image.layer_digests[0], times=1)
    async with run_program(storage, {NAME: upstream, FAR: far}, upstreams=QUICK) as program:
        async with program.open(layer) as response:
            await response.content.readexactly(HALF)
            with host.unplugged():
                pause.release()
                assert await read_rest(response) is None
        assert list((storage / "blobs").glob("*/*")) == []
        assert (await pull_again(program, layer)).body == LAYER
    assert far.find("blob", "GET")[-1].headers["Range"] == f"bytes={HALF}-"
