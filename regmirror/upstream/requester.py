"""Authenticated requests to one upstream: admission, auth flow, redirects, outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal

from yarl import URL

from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamCircuitOpen, UpstreamError, UpstreamRateLimited, UpstreamUnreachable
from regmirror.telemetry.events import Emit, Kind, RateLimitSeen, UpstreamRequestEnded
from regmirror.upstream import redirects
from regmirror.upstream.auth.credentials import CredentialSource, credential_source
from regmirror.upstream.auth.flow import Authenticator, FetchToken, FindCredential, Ping, Send, Step
from regmirror.upstream.auth.token_endpoint import TokenEndpoint
from regmirror.upstream.auth.url_policy import same_origin
from regmirror.upstream.error_mapping import retry_after
from regmirror.upstream.health.base import HealthStateStore
from regmirror.upstream.health.circuit import Scope
from regmirror.upstream.health.monitor import Health, scope_of
from regmirror.upstream.health.prober import Prober
from regmirror.upstream.response import UpstreamResponse
from regmirror.upstream.transport import Transport

DISCOVERY_WAIT: Final = 1.0  # seconds that requests wait at most for the first one's auth discovery


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to the upstream's API.

    ``follows``: redirects to any host, within the upstream's origin, or none. ``is_probe``: the
    request finds out whether the upstream works again, so an open circuit does not reject it.
    """

    kind: Kind
    method: Literal["GET", "HEAD"]
    repository: str
    url: URL
    headers: dict[str, str] = field(default_factory=dict)
    follows: Literal["all", "same-origin", "none"] = "all"
    is_bulk: bool = False
    is_probe: bool = False


class Requester:
    """Makes authenticated requests to the upstream at ``base_url``."""

    def __init__(
        self,
        name: str,
        config: Upstream,
        base_url: URL,
        *,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
        offline: bool = False,
        source: CredentialSource | None = None,
        store: HealthStateStore,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._base_url, self._offline = name, base_url, offline
        self._emit, self._clock = emit, clock
        self.health = Health(
            name,
            store,
            emit=emit,
            now=now,
            clock=clock,
            reserve=config.rate_limit_reserve,
            changed=self._circuit_changed,
        )
        self._prober = Prober(self.health, self._probe)
        self._prober.is_off = offline
        self._last_unserved: UpstreamRequest | None = None  # failed or rejected; the next probe repeats it
        self._transport = Transport(name, config, base_url)
        self._source = source or credential_source(name, base_url, config, clock=clock)
        self._auth = Authenticator(name, base_url, config.auth_hosts, clock)
        self._token_endpoint = TokenEndpoint(
            name, self._transport, self.health, self._auth.tokens, emit=emit, clock=clock
        )
        self._discovered: asyncio.Event | None = None  # None before the first request

    async def close(self) -> None:
        """Break every connection; requests in flight fail."""
        await self._prober.close()
        await self._token_endpoint.close()
        await self._source.close()
        await self._transport.close()
        self.health.close()

    def set_offline(self, offline: bool) -> None:
        """Reject or allow requests and probes that start from now on."""
        self._offline = self._prober.is_off = offline
        if not offline and self.health.is_open():
            self._prober.start()

    @asynccontextmanager
    async def request(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """The response to ``request``, of any status; of an error's body only ``excerpt`` is left.

        Raises UpstreamCircuitOpen and UpstreamRateLimited without a connection while they apply.
        """
        if self._offline:
            message = "is not contacted, because freshness.offline is set"
            raise UpstreamUnreachable(self._name, message, reason="offline")
        self._admit(request)
        response = await self._record_outcome(request, self._send_after_discovery(request))
        try:
            yield response
        finally:
            response.close()

    # --- health ---

    def _admit(self, request: UpstreamRequest) -> None:
        """Raise the error that applies to ``request`` while the upstream is not available."""
        if request.is_probe:
            return
        unavailability = self.health.find_unavailability(scope_of(request.kind))
        if unavailability is not None:
            self._last_unserved = request
            raise unavailability

    async def _record_outcome(
        self, request: UpstreamRequest, sending: Awaitable[UpstreamResponse]
    ) -> UpstreamResponse:
        """The response, after recording what it or its error says of the upstream's health."""
        started = self._clock()
        try:
            response = await sending
        except UpstreamError as error:
            if self.health.note_error(error, self._clock() - started):
                self._last_unserved = request
            raise
        if response.status == 429:
            is_storage = request.kind == "blob" and not response.is_upstream
            scope: Scope = "storage" if is_storage else scope_of(request.kind)
            self.health.note_limit(scope, retry_after(response.headers.get("Retry-After", "")))
        seconds = self._clock() - started
        if self.health.note_status(response.status, seconds, is_upstream=response.is_upstream):
            self._last_unserved = request
        return response

    def _circuit_changed(self, is_open: bool) -> None:
        if is_open:
            self._transport.dismiss_waiting()
            self._prober.start()

    async def _probe(self) -> None:
        """Repeat the last unserved request without its content; if there is none, or a 429 applies
        to it, request ``/v2/``.
        """
        request = self._last_unserved
        if request is None or self.health.is_limited(scope_of(request.kind)):
            request = UpstreamRequest("manifest", "GET", "", self._base_url.with_path("/v2/"))
        is_list = request.kind in ("tags", "referrers") or not request.repository
        probe = UpstreamRequest(
            request.kind,
            "GET" if is_list else "HEAD",
            request.repository,
            request.url,
            {name: value for name, value in request.headers.items() if name != "Range"},
            follows="same-origin",
            is_probe=True,
        )
        sending = self._send_authenticated(probe) if probe.repository else self._send_once(probe, probe.url)
        with suppress(UpstreamError):
            (await self._record_outcome(probe, sending)).close()

    # --- authentication ---

    async def _send_after_discovery(self, request: UpstreamRequest) -> UpstreamResponse:
        """Let the first request learn how the upstream authenticates, so that a new process is not
        challenged once for each concurrent request (B27).
        """
        if self._discovered is None:
            self._discovered = asyncio.Event()
            try:
                return await self._send_authenticated(request)
            finally:
                self._discovered.set()
        if not self._discovered.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._discovered.wait(), DISCOVERY_WAIT)
        return await self._send_authenticated(request)

    async def _send_authenticated(self, request: UpstreamRequest) -> UpstreamResponse:
        flow = self._auth.request(request.repository)
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._execute(step, request)
                except UpstreamError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            response: UpstreamResponse = stop.value
            return response

    async def _execute(self, step: Step, request: UpstreamRequest) -> Any:
        match step:
            case Send(authorization):
                response = await self._follow(request, authorization)
                if not response.is_upstream and response.status in redirects.EXPIRED:
                    # The signed URL expired before it was used: the registry signs another.
                    response = await self._follow(request, authorization)
                return response
            case Ping():
                url = self._base_url.with_path("/v2/")
                ping = replace(request, method="GET", url=url, headers={}, is_bulk=False)
                response = await self._send_once(ping, url)
                response.close()
                return response
            case FindCredential(is_refused):
                return await self._source.find(request.repository, is_refused=is_refused)
            case FetchToken(scope):
                token = await self._token_endpoint.fetch(scope)
                self.health.activity.note(request.repository, request.url.raw_name)
                return token

    # --- redirects ---

    async def _follow(self, request: UpstreamRequest, authorization: str | None) -> UpstreamResponse:
        url = request.url
        for _ in range(redirects.HOPS_MAX + 1):
            try:
                response = await self._send_once(request, url, authorization)
            except UpstreamError as error:
                error.is_elsewhere = not same_origin(url, self._base_url)
                raise
            location = response.headers.get("Location", "")
            if response.status not in redirects.STATUSES or request.follows == "none" or not location:
                return response
            url = redirects.next_url(self._name, url, location, self._base_url)
            if request.follows == "same-origin" and not same_origin(url, self._base_url):
                return response
        raise redirects.too_many(self._name)

    async def _send_once(
        self, request: UpstreamRequest, url: URL, authorization: str | None = None
    ) -> UpstreamResponse:
        """Send ``request`` to ``url``, with ``authorization`` only to the upstream's own origin.

        Unless the response is a success, its body is discarded and its connection returned.
        """
        started, is_upstream = self._clock(), same_origin(url, self._base_url)
        headers = request.headers
        if authorization and is_upstream:
            headers = {**headers, "Authorization": authorization}
        on_part = partial(
            self.health.note_activity, request.repository, request.url.raw_name, is_upstream=is_upstream
        )
        try:
            response = await self._transport.send(
                request.method,
                url,
                headers,
                is_upstream=is_upstream,
                is_bulk=request.is_bulk,
                is_probe=request.is_probe,
                admit=partial(self._admit, request) if is_upstream else lambda: None,
                on_part=on_part,
            )
            on_part()
            if not 200 <= response.status < 300:
                await response.discard()
        except UpstreamError as error:
            if not isinstance(error, UpstreamCircuitOpen | UpstreamRateLimited):  # those were not sent
                self._report(request, url, 0, started, error.reason)
            raise
        self._report(request, url, response.status, started)
        if is_upstream and "ratelimit-limit" in response.headers:
            self._note_quota(response)
        return response

    def _report(
        self, request: UpstreamRequest, url: URL, status: int, started: float, reason: str = ""
    ) -> None:
        seconds = self._clock() - started
        self._emit(
            UpstreamRequestEnded(
                self._name, request.kind, request.method, url.raw_path, status, seconds, reason
            )
        )

    def _note_quota(self, response: UpstreamResponse) -> None:
        """Docker Hub's ``ratelimit-limit: 100;w=21600`` and ``ratelimit-remaining`` (B31)."""
        numbers = []
        for name in ("ratelimit-limit", "ratelimit-remaining"):
            number = response.headers.get(name, "").partition(";")[0].strip()
            if not number.isascii() or not number.isdigit():
                return
            numbers.append(int(number[:12]))
        self.health.note_quota(*numbers)
        self._emit(RateLimitSeen(self._name, *numbers))
