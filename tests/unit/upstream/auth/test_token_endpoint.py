"""Token requests: shared, reported, and stopped by a rate limit."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamFailed, UpstreamRateLimited, UpstreamUnreachable
from regmirror.telemetry.events import TokenRequested
from regmirror.upstream.auth.credentials import Credential
from regmirror.upstream.auth.token_endpoint import TokenEndpoint
from regmirror.upstream.auth.tokens import TokenCache, TokenScope
from regmirror.upstream.health.monitor import Health
from regmirror.upstream.health.shared_state import SharedState
from regmirror.upstream.transport import Transport

TOKEN = {"token": "t", "expires_in": 300}


class Bench:
    """A token endpoint that responds by a script, and the client of it."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bool]] = []  # path, whether it has an Authorization
        self.responses: list[web.Response] = []
        self.events: list[Any] = []
        self.tokens = TokenCache()

    async def respond(self, request: web.Request) -> web.Response:
        self.requests.append((request.path, "Authorization" in request.headers))
        return self.responses.pop(0) if self.responses else web.json_response(TOKEN)

    def start(self, url: URL) -> None:
        self.url = url
        self.transport = Transport("reg.test", Upstream(), url.origin())
        self.health = Health("reg.test", SharedState(None, ""), emit=self.events.append)
        self.endpoint = TokenEndpoint(
            "reg.test", self.transport, self.health, self.tokens, emit=self.events.append, clock=lambda: 0.0
        )

    def scope(self, credential: Credential | None = None) -> TokenScope:
        return TokenScope(self.url, "s", ("repository:a:pull",), credential)

    @property
    def statuses(self) -> list[int]:
        return [event.status for event in self.events if isinstance(event, TokenRequested)]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", bench.respond)
    async with TestServer(app) as server:
        bench.start(server.make_url("/token"))
        yield bench
        await bench.endpoint.close()
        await bench.transport.close()


async def test_concurrent_callers_share_one_request(bench: Bench) -> None:
    """B26: and its token is cached."""
    tokens = await asyncio.gather(*(bench.endpoint.fetch(bench.scope()) for _ in range(20)))
    assert {token.value for token in tokens} == {"t"}
    assert bench.requests == [("/token", False)]
    assert bench.tokens.find(bench.scope().key, 0.0) == tokens[0]
    assert bench.statuses == [200]


async def test_a_rate_limit_stops_further_token_requests(bench: Bench) -> None:
    """B30."""
    bench.responses = [web.Response(status=429, headers={"Retry-After": "60"})]
    for _ in range(3):
        with pytest.raises(UpstreamRateLimited):
            await bench.endpoint.fetch(bench.scope())
    assert len(bench.requests) == 1
    assert bench.health.is_limited("manifests")


async def test_an_open_circuit_does_not_stop_a_token_request(bench: Bench) -> None:
    """B33: the probe needs the token."""
    for _ in range(3):
        await asyncio.sleep(0.001)
        bench.health.note_failure(0.0, "refused")
    assert bench.health.is_open()
    assert (await bench.endpoint.fetch(bench.scope())).value == "t"


async def test_a_redirect_within_the_origin_keeps_the_authorization(bench: Bench) -> None:
    bench.responses = [web.Response(status=307, headers={"Location": "/other"})]
    await bench.endpoint.fetch(bench.scope(Credential("alice", "s3cret")))
    assert bench.requests == [("/token", True), ("/other", True)]


async def test_a_redirect_to_another_origin_loses_the_authorization(bench: Bench) -> None:
    """B61."""
    elsewhere = str(bench.url.with_host("localhost").with_path("/other"))
    bench.responses = [web.Response(status=307, headers={"Location": elsewhere})]
    await bench.endpoint.fetch(bench.scope(Credential("alice", "s3cret")))
    assert bench.requests == [("/token", True), ("/other", False)]


async def test_redirects_without_end_are_a_failure(bench: Bench) -> None:
    bench.responses = [web.Response(status=307, headers={"Location": "/token"}) for _ in range(20)]
    with pytest.raises(UpstreamFailed, match="more than 10 times"):
        await bench.endpoint.fetch(bench.scope())
    assert len(bench.requests) == 11


async def test_a_request_without_a_response_is_reported(bench: Bench) -> None:
    """B81: as status 0."""
    await bench.transport.close()
    with pytest.raises(UpstreamUnreachable):
        await bench.endpoint.fetch(bench.scope())
    assert bench.statuses == [0]
