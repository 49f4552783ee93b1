"""How slowly a response may arrive."""

import asyncio

import pytest

from regmirror.errors import UpstreamTimeout
from regmirror.upstream.deadlines import RATE_MIN, WINDOWS, MinimumRate, short_deadline, with_deadline


async def receive(pieces, monkeypatch, read_timeout=30.0):
    """Have pieces of ``(seconds, bytes)`` arrive on a clock that jumps; the bytes that were taken."""
    now, taken, loop = 0.0, 0, asyncio.get_running_loop()
    rate = MinimumRate("r", read_timeout)
    start = loop.time()
    for seconds, count in pieces:
        async with rate.waiting("host"):
            now += seconds
            monkeypatch.setattr(loop, "time", lambda now=now: start + now)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        rate.note(count)
        taken += count
    return taken


@pytest.mark.parametrize("speed", [RATE_MIN * 2, 50_000, 8_000_000])
async def test_a_slow_line_is_no_trickle(speed, monkeypatch):
    """B12, B35: 50 KB/s for an hour, in pieces of a second."""
    assert await receive([(1.0, speed)] * 3600, monkeypatch) == 3600 * speed


async def test_a_byte_for_each_idle_timeout_is_a_trickle(monkeypatch):
    """B35, B100: it ends after four idle timeouts, whatever came before."""
    trickle = [(29.0, 1)] * 100
    for before in ([], [(1.0, 10_000_000)] * 100):
        with pytest.raises(UpstreamTimeout, match="too slowly"):
            await receive([*before, *trickle], monkeypatch)


async def test_the_time_for_a_body_that_is_kept_in_memory_depends_on_its_limit():
    """B35: 8 MiB at 64 KiB/s take 128 s."""
    assert short_deadline(0, 30.0) == WINDOWS * 30.0
    assert short_deadline(8 * 1024 * 1024, 30.0) == WINDOWS * 30.0 + 128


async def test_a_timeout_within_is_not_taken_for_the_deadline():
    """B38: each has its own words."""
    with pytest.raises(TimeoutError, match="inner"):
        async with with_deadline("r", "host", 3600):
            raise TimeoutError("inner")
