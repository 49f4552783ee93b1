"""Executes the steps of authentication over the transport, follows redirects, tells what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from yarl import URL

from regmirror.config import Upstream
from regmirror.errors import UpstreamError, UpstreamUnreachable
from regmirror.events import Emit, Kind, RateLimitSeen, TokenRequested, UpstreamAnswered
from regmirror.singleflight import SingleFlight
from regmirror.upstream import redirects
from regmirror.upstream.auth import Authenticator, Fetch, Find, Ping, Send, Step
from regmirror.upstream.credentials import CredentialSource, credential_source
from regmirror.upstream.tokens import (
    Grant,
    Token,
    TokenAnswer,
    TokenKey,
    TokenRequest,
    ask_for_token,
    use_until,
)
from regmirror.upstream.transport import Exchange, Transport
from regmirror.upstream.trust import same_origin

INTRODUCTION: Final = 1.0  # seconds others wait at most for what the first request learns
TOKEN_MAX: Final = 64 * 1024  # bytes of a token endpoint's answer


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the upstream's API.

    ``follows``: redirects to anywhere, only within the upstream itself, or none at all.
    """

    kind: Kind
    method: Literal["GET", "HEAD"]
    repository: str
    url: URL
    headers: dict[str, str] = field(default_factory=dict)
    follows: Literal["all", "home", "none"] = "all"
    is_bulk: bool = False


class Caller:
    """Makes authenticated requests to one upstream."""

    def __init__(
        self,
        name: str,
        config: Upstream,
        home: URL,
        *,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        offline: bool = False,
        source: CredentialSource | None = None,
    ) -> None:
        self.name, self.home = name, home
        self._emit, self._clock, self._offline = emit, clock, offline
        self._transport = Transport(name, config, home)
        self._source = source or credential_source(name, home, config, clock=clock)
        self._auth = Authenticator(name, home, config.auth_hosts, clock)
        self._token_flights: SingleFlight[TokenKey, Token] = SingleFlight()
        self._introduction: asyncio.Event | None = None

    async def close(self) -> None:
        await self._token_flights.close()
        await self._source.close()
        await self._transport.close()

    @asynccontextmanager
    async def request(self, call: Call) -> AsyncIterator[Exchange]:
        """The answer to ``call``, whatever its status; of errors only the excerpt is left to read."""
        if self._offline:
            message = "is not asked, because freshness.offline is set"
            raise UpstreamUnreachable(self.name, message, reason="offline")
        exchange = await self._authenticated(call)
        try:
            yield exchange
        finally:
            exchange.close()

    async def _authenticated(self, call: Call) -> Exchange:
        """The first request learns how the upstream authenticates; those that come meanwhile wait
        for it a moment, so that a new process is not challenged once for each of them (B27).
        """
        if self._introduction is None:
            self._introduction = asyncio.Event()
            try:
                return await self._dance(call)
            finally:
                self._introduction.set()
        if not self._introduction.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._introduction.wait(), INTRODUCTION)
        return await self._dance(call)

    async def _dance(self, call: Call) -> Exchange:
        flow = self._auth.request(call.repository)
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._execute(step, call)
                except UpstreamError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            exchange: Exchange = stop.value
            return exchange

    async def _execute(self, step: Step, call: Call) -> Any:
        match step:
            case Send(authorization):
                return await self._send(call, authorization)
            case Ping():
                return await self._ping(call)
            case Find(is_refused):
                return await self._source.find(call.repository, is_refused=is_refused)
            case Fetch(grant):
                return await self._token_flights.do(grant.key, lambda: self._fetch(grant))

    # --- requests and redirects ---

    async def _send(self, call: Call, authorization: str | None) -> Exchange:
        exchange = await self._follow(call, authorization)
        if not exchange.is_home and exchange.status in redirects.EXPIRED:
            # The signed URL had expired before it was used: the registry signs another.
            exchange = await self._follow(call, authorization)
        return exchange

    async def _ping(self, call: Call) -> Exchange:
        url = self.home.with_path("/v2/")
        exchange = await self._hop(Call(call.kind, "GET", call.repository, url), url, {})
        exchange.close()
        return exchange

    async def _follow(self, call: Call, authorization: str | None) -> Exchange:
        url = call.url
        for _ in range(redirects.HOPS_MAX + 1):
            is_home = same_origin(url, self.home)
            login = {"Authorization": authorization} if authorization and is_home else {}
            exchange = await self._hop(call, url, login)
            exchange.is_home = is_home
            location = exchange.headers.get("Location", "")
            if exchange.status not in redirects.STATUSES or call.follows == "none" or not location:
                return exchange
            url = redirects.next_url(self.name, url, location, self.home)
            if call.follows == "home" and not same_origin(url, self.home):
                return exchange
        raise redirects.endless(self.name)

    async def _hop(self, call: Call, url: URL, login: dict[str, str]) -> Exchange:
        """One exchange; unless it is a success, its body is read and its connection given back."""
        started = self._clock()
        try:
            exchange = await self._transport.send(
                call.method, url, {**call.headers, **login}, is_bulk=call.is_bulk
            )
            if not 200 <= exchange.status < 300:
                await exchange.dismiss()
        except UpstreamError as error:
            self._tell(call, url, 0, started, error.reason)
            raise
        self._tell(call, url, exchange.status, started)
        if limit := _rate_limit(self.name, exchange):
            self._emit(limit)
        return exchange

    def _tell(self, call: Call, url: URL, status: int, started: float, reason: str = "") -> None:
        seconds = self._clock() - started
        self._emit(UpstreamAnswered(self.name, call.kind, call.method, url.raw_path, status, seconds, reason))

    # --- tokens ---

    async def _fetch(self, grant: Grant) -> Token:
        dance = ask_for_token(self.name, grant)
        try:
            request = next(dance)
            while True:
                request = dance.send(await self._ask(request))
        except StopIteration as stop:
            value, life = stop.value
        token = Token(value, use_until(self._clock(), life))
        self._auth.tokens.put(grant.key, token)
        return token

    async def _ask(self, request: TokenRequest) -> TokenAnswer:
        try:
            answer = await self._ask_following(request)
        except UpstreamError:
            self._emit(TokenRequested(self.name, 0))
            raise
        self._emit(TokenRequested(self.name, answer.status))
        return answer

    async def _ask_following(self, request: TokenRequest) -> TokenAnswer:
        """Ask; redirects of a GET are followed, without credentials once the origin changes."""
        url = request.url
        for _ in range(redirects.HOPS_MAX + 1):
            answer = await self._ask_once(request, url)
            location = answer.headers.get("Location", "")
            if answer.status not in redirects.STATUSES or request.form or not location:
                return answer
            url = redirects.next_url(self.name, url, location, request.url)
        raise redirects.endless(self.name)

    async def _ask_once(self, request: TokenRequest, url: URL) -> TokenAnswer:
        headers = {"Accept": "application/json"}
        if request.authorization and same_origin(url, request.url):
            headers["Authorization"] = request.authorization
        method = "GET" if request.form is None else "POST"
        exchange = await self._transport.send(method, url, headers, form=request.form)
        try:
            body = await exchange.read_all(TOKEN_MAX)
        finally:
            exchange.close()
        return TokenAnswer(exchange.status, exchange.headers, body)


def _rate_limit(upstream: str, exchange: Exchange) -> RateLimitSeen | None:
    """Docker Hub's ``ratelimit-limit: 100;w=21600`` and ``ratelimit-remaining`` (B31)."""
    numbers = []
    for name in ("ratelimit-limit", "ratelimit-remaining"):
        number = exchange.headers.get(name, "").partition(";")[0].strip()
        if not number.isascii() or not number.isdigit():
            return None
        numbers.append(int(number[:12]))
    return RateLimitSeen(upstream, *numbers)
