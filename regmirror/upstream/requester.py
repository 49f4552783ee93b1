"""Executes the steps of authentication over the transport, follows redirects, tells what happened."""

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
from regmirror.errors import (
    UpstreamCircuitOpen,
    UpstreamDenied,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamUnreachable,
)
from regmirror.singleflight import SingleFlight
from regmirror.telemetry.events import Emit, Kind, RateLimitSeen, TokenRequested, UpstreamRequestEnded
from regmirror.upstream import redirects
from regmirror.upstream.auth.credentials import CredentialSource, credential_source
from regmirror.upstream.auth.flow import Authenticator, Fetch, Find, Ping, Send, Step
from regmirror.upstream.auth.tokens import (
    Token,
    TokenAnswer,
    TokenKey,
    TokenRequest,
    TokenScope,
    request_token,
    use_until,
)
from regmirror.upstream.auth.url_policy import same_origin
from regmirror.upstream.error_mapping import is_failing_status, is_failure, retry_after
from regmirror.upstream.health.circuit import Scope
from regmirror.upstream.health.monitor import Health, scope_of
from regmirror.upstream.health.prober import Prober
from regmirror.upstream.health.shared_state import SharedState
from regmirror.upstream.transport import Transport, UpstreamResponse

INTRODUCTION: Final = 1.0  # seconds others wait at most for what the first request learns
TOKEN_MAX: Final = 64 * 1024  # bytes of a token endpoint's answer


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request to the upstream's API.

    ``follows``: redirects to anywhere, only within the upstream itself, or none at all.
    ``is_probe``: whether the upstream is well again is to be found out by it.
    """

    kind: Kind
    method: Literal["GET", "HEAD"]
    repository: str
    url: URL
    headers: dict[str, str] = field(default_factory=dict)
    follows: Literal["all", "home", "none"] = "all"
    is_bulk: bool = False
    is_probe: bool = False


class Requester:
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
        record: SharedState | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.name, self.home = name, home
        self._emit, self._clock = emit, clock
        self.offline = offline
        self.health = Health(
            name,
            record or SharedState.of(None, name, config),
            emit=emit,
            now=now,
            clock=clock,
            reserve=config.rate_limit_reserve,
            changed=self._circuit_changed,
        )
        self._probing = Prober(self.health, self._probe)
        self._probing.is_off = offline
        self._wanted: UpstreamRequest | None = (
            None  # what a probe asks for: the last that failed or was refused
        )
        self._transport = Transport(name, config, home)
        self._source = source or credential_source(name, home, config, clock=clock)
        self._auth = Authenticator(name, home, config.auth_hosts, clock)
        self._token_flights: SingleFlight[TokenKey, Token] = SingleFlight()
        self._introduction: asyncio.Event | None = None

    async def close(self) -> None:
        await self._probing.close()
        await self._token_flights.close()
        await self._source.close()
        await self._transport.close()
        self.health.close()

    def set_offline(self, offline: bool) -> None:
        """Whether requests and probes that begin from now on are made."""
        self.offline = self._probing.is_off = offline
        if not offline and self.health.is_open():
            self._probing.start()

    @asynccontextmanager
    async def request(self, call: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """The answer to ``call``, whatever its status; of errors only the excerpt is left to read.

        Raises UpstreamCircuitOpen and UpstreamRateLimited without asking while that is in force.
        """
        if self.offline:
            message = "is not asked, because freshness.offline is set"
            raise UpstreamUnreachable(self.name, message, reason="offline")
        self._admit(call)
        exchange = await self._judged(call, self._authenticated(call))
        try:
            yield exchange
        finally:
            exchange.close()

    # --- whether the upstream is well ---

    def _admit(self, call: UpstreamRequest) -> None:
        trouble = None if call.is_probe else self.health.find_unavailability(scope_of(call.kind))
        if trouble is not None:
            self._wanted = call
            raise trouble

    async def _judged(self, call: UpstreamRequest, answer: Awaitable[UpstreamResponse]) -> UpstreamResponse:
        """The answer, after noting what it or its failure says of the upstream."""
        began = self._clock()
        try:
            exchange = await answer
        except UpstreamError as error:
            self._judge_failure(call, error, self._clock() - began)
            raise
        if exchange.status == 429:
            is_storage = call.kind == "blob" and not exchange.is_home
            scope: Scope = "storage" if is_storage else scope_of(call.kind)
            self.health.note_limit(scope, retry_after(exchange.headers.get("Retry-After", "")))
        if exchange.is_home and is_failing_status(exchange.status):
            self._wanted = call
            self.health.note_failure(self._clock() - began, f"status-{exchange.status}")
        else:
            self.health.note_answer()
        return exchange

    def _judge_failure(self, call: UpstreamRequest, error: UpstreamError, seconds: float) -> None:
        if is_failure(error):
            self._wanted = call
            self.health.note_failure(seconds, error.reason)
        elif error.is_elsewhere or isinstance(error, UpstreamDenied):
            self.health.note_answer()  # it has answered, by a redirect or a refusal

    def _circuit_changed(self, is_open: bool) -> None:
        if is_open:
            self._transport.dismiss_waiting()
            self._probing.start()

    async def _probe(self) -> None:
        """Ask for what was wanted last, without its content; if that is not known or limited,
        whether it is a registry.
        """
        call = self._wanted
        if call is None or self.health.is_limited(scope_of(call.kind)):
            call = UpstreamRequest("manifest", "GET", "", self.home.with_path("/v2/"))
        is_list = call.kind in ("tags", "referrers") or not call.repository
        headers = {name: value for name, value in call.headers.items() if name != "Range"}
        probe = UpstreamRequest(
            call.kind,
            "GET" if is_list else "HEAD",
            call.repository,
            call.url,
            headers,
            follows="home",
            is_probe=True,
        )
        answer = self._dance(probe) if call.repository else self._hop(probe, probe.url, {})
        with suppress(UpstreamError):
            (await self._judged(probe, answer)).close()

    # --- authentication ---

    async def _authenticated(self, call: UpstreamRequest) -> UpstreamResponse:
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

    async def _dance(self, call: UpstreamRequest) -> UpstreamResponse:
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
            exchange: UpstreamResponse = stop.value
            return exchange

    async def _execute(self, step: Step, call: UpstreamRequest) -> Any:
        match step:
            case Send(authorization):
                return await self._send(call, authorization)
            case Ping():
                return await self._ping(call)
            case Find(is_refused):
                return await self._source.find(call.repository, is_refused=is_refused)
            case Fetch(grant):
                token = await self._token_flights.do(grant.key, lambda: self._fetch(grant))
                self.health.signs.note(call.repository, call.url.raw_name)
                return token

    # --- requests and redirects ---

    async def _send(self, call: UpstreamRequest, authorization: str | None) -> UpstreamResponse:
        exchange = await self._follow(call, authorization)
        if not exchange.is_home and exchange.status in redirects.EXPIRED:
            # The signed URL had expired before it was used: the registry signs another.
            exchange = await self._follow(call, authorization)
        return exchange

    async def _ping(self, call: UpstreamRequest) -> UpstreamResponse:
        url = self.home.with_path("/v2/")
        ping = replace(call, method="GET", url=url, headers={}, is_bulk=False)
        exchange = await self._hop(ping, url, {})
        exchange.close()
        return exchange

    async def _follow(self, call: UpstreamRequest, authorization: str | None) -> UpstreamResponse:
        url = call.url
        for _ in range(redirects.HOPS_MAX + 1):
            is_home = same_origin(url, self.home)
            login = {"Authorization": authorization} if authorization and is_home else {}
            try:
                exchange = await self._hop(call, url, login)
            except UpstreamError as error:
                error.is_elsewhere = not is_home
                raise
            location = exchange.headers.get("Location", "")
            if exchange.status not in redirects.STATUSES or call.follows == "none" or not location:
                return exchange
            url = redirects.next_url(self.name, url, location, self.home)
            if call.follows == "home" and not same_origin(url, self.home):
                return exchange
        raise redirects.endless(self.name)

    async def _hop(self, call: UpstreamRequest, url: URL, login: dict[str, str]) -> UpstreamResponse:
        """One exchange; unless it is a success, its body is read and its connection given back."""
        started, is_home = self._clock(), same_origin(url, self.home)
        try:
            exchange = await self._transport.send(
                call.method,
                url,
                {**call.headers, **login},
                is_bulk=call.is_bulk,
                is_probe=call.is_probe,
                admit=lambda: self._admit(call) if is_home else None,
                hear=partial(self._hear, call),
            )
            exchange.is_home = is_home
            self._hear(call, is_home=is_home)
            if not 200 <= exchange.status < 300:
                await exchange.dismiss()
        except UpstreamError as error:
            if not isinstance(error, UpstreamCircuitOpen | UpstreamRateLimited):  # those were not asked
                self._tell(call, url, 0, started, error.reason)
            raise
        self._tell(call, url, exchange.status, started)
        if is_home and (told := _rate_limit(self.name, exchange)):
            self.health.note_allowance(told.limit, told.remaining)
            self._emit(told)
        return exchange

    def _hear(self, call: UpstreamRequest, *, is_home: bool) -> None:
        """Something came for ``call``. Another host says nothing of how the upstream is."""
        self.health.signs.note(call.repository, call.url.raw_name)
        if is_home:
            self.health.hear()

    def _tell(self, call: UpstreamRequest, url: URL, status: int, started: float, reason: str = "") -> None:
        seconds = self._clock() - started
        self._emit(
            UpstreamRequestEnded(self.name, call.kind, call.method, url.raw_path, status, seconds, reason)
        )

    # --- tokens ---

    async def _fetch(self, grant: TokenScope) -> Token:
        self._admit_token()
        dance = request_token(self.name, grant)
        try:
            request = next(dance)
            while True:
                request = dance.send(await self._ask(request))
        except UpstreamRateLimited as error:
            self.health.note_limit("tokens", error.retry_after or 0)
            self.health.note_answer()
            raise
        except StopIteration as stop:
            value, life = stop.value
        token = Token(value, use_until(self._clock(), life))
        self._auth.tokens.put(grant.key, token)
        return token

    def _admit_token(self) -> None:
        """A limit is a limit; while the circuit is open only probes get here, and may have a token."""
        trouble = self.health.find_unavailability("tokens")
        if isinstance(trouble, UpstreamRateLimited):
            raise trouble

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
        is_probe = self.health.is_open()  # a probe needs it, or somebody's call that was on its way
        exchange = await self._transport.send(method, url, headers, form=request.form, is_probe=is_probe)
        self.health.hear()
        try:
            body = await exchange.read_all(TOKEN_MAX)
        finally:
            exchange.close()
        return TokenAnswer(exchange.status, exchange.headers, body)


def _rate_limit(upstream: str, exchange: UpstreamResponse) -> RateLimitSeen | None:
    """Docker Hub's ``ratelimit-limit: 100;w=21600`` and ``ratelimit-remaining`` (B31)."""
    numbers = []
    for name in ("ratelimit-limit", "ratelimit-remaining"):
        number = exchange.headers.get(name, "").partition(";")[0].strip()
        if not number.isascii() or not number.isdigit():
            return None
        numbers.append(int(number[:12]))
    return RateLimitSeen(upstream, *numbers)
