"""One request: admission, redirects, and what its outcome changes."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamCircuitOpen, UpstreamFailed, UpstreamRateLimited, UpstreamUnreachable
from regmirror.telemetry.events import RateLimitSeen, UpstreamRequestEnded
from regmirror.upstream.health.shared_state import SharedState
from regmirror.upstream.requester import Requester, UpstreamRequest


class Bench:
    """An upstream that responds by a script, and the requester of it."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.responses: list[web.Response] = []
        self.events: list[Any] = []

    async def respond(self, request: web.Request) -> web.Response:
        self.paths.append(request.path)
        return self.responses.pop(0) if self.responses else web.Response(text="ok")

    def start(self, base_url: URL) -> None:
        self.base_url = base_url
        self.requester = Requester(
            "reg.test", Upstream(), base_url, emit=self.events.append, store=SharedState(None, "")
        )

    async def send(self, **options: Any) -> int:
        url = self.base_url.with_path("/v2/a/manifests/1")
        request = UpstreamRequest("manifest", "GET", "a", url, **options)
        async with self.requester.request(request) as response:
            return response.status


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", bench.respond)
    async with TestServer(app) as server:
        bench.start(server.make_url("/").origin())
        yield bench
        await bench.requester.close()


async def test_a_response_of_any_status_is_returned_and_reported(bench: Bench) -> None:
    """B81."""
    bench.responses = [web.Response(), web.Response(status=404)]
    assert [await bench.send(), await bench.send()] == [200, 404]
    reported = [event.status for event in bench.events if isinstance(event, UpstreamRequestEnded)]
    assert reported == [200, 404]


async def test_offline_no_connection_is_made(bench: Bench) -> None:
    """B37."""
    bench.requester.set_offline(True)
    with pytest.raises(UpstreamUnreachable, match="offline"):
        await bench.send()
    bench.requester.set_offline(False)
    assert await bench.send() == 200
    assert len(bench.paths) == 1


async def test_a_rate_limit_rejects_the_next_request_without_a_connection(bench: Bench) -> None:
    """B30."""
    bench.responses = [web.Response(status=429, headers={"Retry-After": "60"})]
    assert await bench.send() == 429
    with pytest.raises(UpstreamRateLimited):
        await bench.send()
    assert len(bench.paths) == 1


async def test_an_open_circuit_rejects_a_request_but_not_a_probe(bench: Bench) -> None:
    """B33."""
    bench.responses = [web.Response(status=503) for _ in range(3)]
    assert [await bench.send() for _ in range(3)] == [503] * 3
    with pytest.raises(UpstreamCircuitOpen):
        await bench.send()
    assert await bench.send(is_probe=True) == 200
    assert await bench.send() == 200, "the probe has closed the circuit"


@pytest.mark.parametrize(
    ("follows", "status", "hops"), [("all", 200, 2), ("same-origin", 200, 2), ("none", 307, 1)]
)
async def test_redirects_are_followed_as_the_request_says(
    bench: Bench, follows: str, status: int, hops: int
) -> None:
    """B55."""
    bench.responses = [web.Response(status=307, headers={"Location": "/elsewhere"})]
    assert await bench.send(follows=follows) == status
    assert len(bench.paths) == hops


async def test_a_redirect_to_another_origin_can_be_returned_instead(bench: Bench) -> None:
    elsewhere = str(bench.base_url.with_host("localhost").with_path("/elsewhere"))
    bench.responses = [web.Response(status=307, headers={"Location": elsewhere})]
    assert await bench.send(follows="same-origin") == 307
    assert len(bench.paths) == 1


async def test_redirects_without_end_are_a_failure(bench: Bench) -> None:
    bench.responses = [web.Response(status=302, headers={"Location": "/x"}) for _ in range(20)]
    with pytest.raises(UpstreamFailed, match="more than 10 times"):
        await bench.send()


@pytest.mark.parametrize(
    ("limit", "remaining", "expected"),
    [("100;w=21600", "76;w=21600", [(100, 76)]), ("100", "", []), ("many", "7", []), ("\u00b2", "7", [])],
)
async def test_a_quota_is_reported_when_it_can_be_read(
    bench: Bench, limit: str, remaining: str, expected: list[tuple[int, int]]
) -> None:
    """B31."""
    headers = {"ratelimit-limit": limit, "ratelimit-remaining": remaining}
    bench.responses = [web.Response(headers=headers)]
    await bench.send()
    seen = [(event.limit, event.remaining) for event in bench.events if isinstance(event, RateLimitSeen)]
    assert seen == expected
