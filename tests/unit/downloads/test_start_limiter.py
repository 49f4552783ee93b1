"""How many downloads of one upstream wait for a response at once."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from regmirror.downloads import start_limiter as starting
from regmirror.downloads.registry import Downloads
from regmirror.errors import (
    Unavailable,
)
from regmirror.oci.names import Digest, Repository
from tests.mirror_fixture import wait_until
from tests.unit.downloads.scripted import DIGEST, Bench, PlannedResponse, Script, read_all

OTHER = Repository("other.test", "team/app")


async def test_downloads_beyond_the_limit_wait_and_occupy_no_file(bench: Bench) -> None:
    """B100, B35: those of another upstream do not wait for them."""
    downloads = Downloads(bench.context, _limiter=starting.StartLimiter(limit=1))
    hung = Script([PlannedResponse()], gate=asyncio.Event())
    digest = Digest.of(b"another")
    first = asyncio.create_task(downloads.join(DIGEST, hung.source))
    await wait_until(lambda: bench.staged() != [], "the first has begun")
    second = asyncio.create_task(
        downloads.join(digest, replace(hung.source, repository=Repository("registry.test", "team/other")))
    )
    await asyncio.sleep(0.02)
    assert len(bench.staged()) == 1
    data = Script([PlannedResponse(b"another")], repository=OTHER)
    follower, joined = await downloads.join(digest, data.source)
    assert joined
    assert await read_all(follower) == b"another"
    follower.close()
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await downloads.close()


async def test_a_download_that_waits_too_long_is_unavailable(bench: Bench) -> None:
    """B34: 503 with Retry-After."""
    downloads = Downloads(bench.context, _limiter=starting.StartLimiter(limit=0, turn_max=0.01))
    with pytest.raises(Unavailable, match="downloads wait") as raised:
        await downloads.join(DIGEST, Script([PlannedResponse()]).source)
    assert raised.value.retry_after == 5
    await downloads.close()
