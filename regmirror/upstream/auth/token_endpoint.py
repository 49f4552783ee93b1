"""Token requests over the transport: redirects, rate limits, and one request for concurrent callers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from yarl import URL

from regmirror.errors import UpstreamError, UpstreamRateLimited
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.events import Emit, TokenRequested
from regmirror.upstream import redirects
from regmirror.upstream.auth.tokens import (
    Token,
    TokenCache,
    TokenKey,
    TokenRequest,
    TokenResponse,
    TokenScope,
    request_token,
    use_until,
)
from regmirror.upstream.auth.url_policy import same_origin
from regmirror.upstream.health.monitor import Health
from regmirror.upstream.transport import Transport

TOKEN_MAX: Final = 64 * 1024  # bytes of a token endpoint's response


class TokenEndpoint:
    """Fetches the tokens of one upstream into ``tokens``."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        health: Health,
        tokens: TokenCache,
        *,
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._name, self._transport, self._health, self._tokens = name, transport, health, tokens
        self._emit, self._clock = emit, clock
        self._flights: SingleFlight[TokenKey, Token] = SingleFlight()

    async def close(self) -> None:
        """Cancel requests in flight."""
        await self._flights.close()

    async def fetch(self, scope: TokenScope) -> Token:
        """A new token for ``scope``; concurrent callers share one request. Raises UpstreamError."""
        return await self._flights.do(scope.key, lambda: self._fetch(scope))

    async def _fetch(self, scope: TokenScope) -> Token:
        unavailability = self._health.find_unavailability("tokens")
        if isinstance(unavailability, UpstreamRateLimited):
            raise unavailability  # an open circuit is no reason: only probes get here, and need a token
        flow = request_token(self._name, scope)
        try:
            request = next(flow)
            while True:
                request = flow.send(await self._send(request))
        except UpstreamRateLimited as error:
            self._health.note_limit("tokens", error.retry_after or 0)
            self._health.note_success()
            raise
        except StopIteration as stop:
            value, lifetime = stop.value
        token = Token(value, use_until(self._clock(), lifetime))
        self._tokens.put(scope.key, token)
        return token

    async def _send(self, request: TokenRequest) -> TokenResponse:
        try:
            response = await self._follow(request)
        except UpstreamError:
            self._emit(TokenRequested(self._name, 0))
            raise
        self._emit(TokenRequested(self._name, response.status))
        return response

    async def _follow(self, request: TokenRequest) -> TokenResponse:
        """Follow redirects of a GET, without credentials once the origin changes."""
        url = request.url
        for _ in range(redirects.HOPS_MAX + 1):
            response = await self._send_once(request, url)
            location = response.headers.get("Location", "")
            if response.status not in redirects.STATUSES or request.form or not location:
                return response
            url = redirects.next_url(self._name, url, location, request.url)
        raise redirects.too_many(self._name)

    async def _send_once(self, request: TokenRequest, url: URL) -> TokenResponse:
        headers = {"Accept": "application/json"}
        if request.authorization and same_origin(url, request.url):
            headers["Authorization"] = request.authorization
        response = await self._transport.send(
            "GET" if request.form is None else "POST",
            url,
            headers,
            is_upstream=False,
            form=request.form,
            is_probe=self._health.is_open(),  # needed by a probe, or by a request sent before it opened
        )
        self._health.note_token_activity()
        try:
            body = await response.read_all(TOKEN_MAX)
        finally:
            response.close()
        return TokenResponse(response.status, response.headers, body)
