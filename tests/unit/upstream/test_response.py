"""The minimum rate and the deadline of a body."""

import asyncio
from typing import Any, ClassVar, cast

import aiohttp
import pytest
from yarl import URL

from regmirror.errors import UpstreamFailed, UpstreamTimeout
from regmirror.upstream.response import RATE_MIN, WINDOWS, MinimumRate, UpstreamResponse, short_deadline


async def receive(pieces: Any, monkeypatch: pytest.MonkeyPatch, read_timeout: float = 30.0) -> Any:
    """Have pieces of ``(seconds, bytes)`` arrive on a clock that jumps; the bytes that were taken."""
    now, taken, loop = 0.0, 0, asyncio.get_running_loop()
    rate = MinimumRate("r", "host", read_timeout)
    start = loop.time()

    async def arrive(at: float) -> None:
        monkeypatch.setattr(loop, "time", lambda: start + at)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    for seconds, count in pieces:
        now += seconds
        await rate.wait(arrive(now))
        rate.count(count)
        taken += count
    return taken


@pytest.mark.parametrize("speed", [RATE_MIN * 2, 50_000, 8_000_000])
async def test_a_slow_line_is_no_trickle(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """B12, B35: 50 KB/s for an hour, in pieces of a second."""
    assert await receive([(1.0, speed)] * 3600, monkeypatch) == 3600 * speed


async def test_a_byte_for_each_idle_timeout_is_a_trickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """B35, B100: it ends after four idle timeouts, whatever came before."""
    trickle = [(29.0, 1)] * 100
    for before in ([], [(1.0, 10_000_000)] * 100):
        with pytest.raises(UpstreamTimeout, match="too slowly"):
            await receive([*before, *trickle], monkeypatch)


async def test_the_time_for_a_body_that_is_kept_in_memory_depends_on_its_limit() -> None:
    """B35: 8 MiB at 64 KiB/s take 128 s."""
    assert short_deadline(0, 30.0) == WINDOWS * 30.0
    assert short_deadline(8 * 1024 * 1024, 30.0) == WINDOWS * 30.0 + 128


async def test_a_timeout_within_is_not_taken_for_the_deadline() -> None:
    """B38: each has its own words."""

    async def fail() -> None:
        raise TimeoutError("inner")

    with pytest.raises(TimeoutError, match="inner"):
        await MinimumRate("r", "host", 900).wait(fail())


class BrokenBody:
    """The body of an aiohttp response that fails."""

    async def readany(self) -> bytes:
        raise aiohttp.ClientPayloadError("https://cdn/x?sig=s3cret")


class BrokenResponse:
    status, url, content = 200, URL("https://host/x"), BrokenBody()
    headers: ClassVar[dict[str, str]] = {}


async def test_a_foreign_exception_leaves_no_trace_of_its_text() -> None:
    """B62: it stops at the border; a signed URL may be in its text."""
    response = UpstreamResponse(
        "docker.io",
        cast("aiohttp.ClientResponse", BrokenResponse()),
        is_upstream=True,
        read_timeout=30.0,
        release=lambda: None,
        on_part=lambda: None,
    )
    with pytest.raises(UpstreamFailed) as caught:
        await response.read()
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)
