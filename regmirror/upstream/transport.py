"""One upstream's connections: TLS, proxies, timeouts and the connection limiter.

``Transport.send`` makes one request on one connection, without authentication and redirects, and
raises only UpstreamError.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from regmirror import __version__
from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamUnreachable
from regmirror.upstream.auth.url_policy import host_of
from regmirror.upstream.error_mapping import WIRE_ERRORS, map_error
from regmirror.upstream.proxies import Proxies
from regmirror.upstream.resolver import DnsResolver
from regmirror.upstream.response import UpstreamResponse
from regmirror.upstream.tls import Certificates

USER_AGENT: Final = f"regmirror/{__version__}"
READ_BUFFER: Final = 512 * 1024  # bytes; the default of 64 KiB halves the speed of a download
_HEADER_MAX: Final = 64 * 1024  # signed URLs in Location outgrow the default of 8 KiB


class ConnectionLimiter:
    """At most ``limit`` concurrent requests, of which bulk transfers leave some for short ones.

    A manifest must not queue behind 64 layers that each take minutes. With a limit of one,
    everything takes turns.
    """

    class Dismissed(Exception):
        """``dismiss`` was called while waiting."""

    def __init__(self, limit: int) -> None:
        reserved = min(max(1, limit // 8), limit - 1)
        self._all = asyncio.Semaphore(limit)
        self._bulk = asyncio.Semaphore(limit - reserved)
        self._waiting: set[asyncio.Timeout] = set()

    def is_full(self, *, is_bulk: bool) -> bool:
        """Whether ``acquire`` would wait."""
        return self._all.locked() or (is_bulk and self._bulk.locked())

    async def acquire(self, *, is_bulk: bool) -> Callable[[], None]:
        """Wait for a turn and return its idempotent release; raises Dismissed after ``dismiss``."""
        with ExitStack() as undo:
            if is_bulk:
                await self._wait(self._bulk)
                undo.callback(self._bulk.release)
            await self._wait(self._all)
            undo.callback(self._all.release)
            return undo.pop_all().close

    def dismiss(self) -> None:
        """Make every waiting ``acquire`` raise Dismissed; acquired turns stay valid."""
        for waiting in self._waiting:
            if not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())

    async def _wait(self, semaphore: asyncio.Semaphore) -> None:
        # A timeout without an end: rescheduling it wakes its task safely, also a task that has just
        # acquired the semaphore or is being cancelled by its client.
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    await semaphore.acquire()
                finally:
                    self._waiting.discard(waiting)
        except TimeoutError:
            raise self.Dismissed from None


@dataclass(frozen=True, slots=True)
class _Route:
    """How one host is reached: the proxy, the headers for the proxy, the TLS context."""

    proxy: URL | None
    proxy_headers: dict[str, str]
    tls: ssl.SSLContext | bool


class Transport:
    """The connections to one upstream, its token endpoint and its storage hosts.

    ``max_connections`` bounds concurrent requests. They wait here and never in aiohttp's pool,
    where waiting would count against the connect timeout.
    """

    def __init__(self, name: str, config: Upstream, base_url: URL) -> None:
        """Raises ConfigError for certificates or proxies that cannot be used."""
        self._name, self._config, self._base_url = name, config, base_url
        self._certificates = Certificates.load(name, config)
        self._proxies = Proxies.from_environment(config.http_proxy)
        self._base_route = self._find_route(base_url)
        self._limiter = ConnectionLimiter(config.max_connections)
        self._resolver: DnsResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        is_upstream: bool,
        form: Mapping[str, str] | None = None,
        is_bulk: bool = False,
        is_probe: bool = False,
        admit: Callable[[], None] = lambda: None,
        on_part: Callable[[], None] = lambda: None,
    ) -> UpstreamResponse:
        """Send one request and wait for the response's headers; the caller closes the response.

        ``is_upstream`` states that ``url`` has the origin of the base URL. ``is_bulk`` marks long
        transfers, which may not take the last connections. A probe does not wait for its turn:
        hanging requests may have used up the limit. ``admit`` raises if the request must not be
        sent; it runs before and after a wait. ``on_part`` is called for each part of the body.
        """
        release = _release_nothing if is_probe else await self._wait_for_turn(admit, is_bulk=is_bulk)
        with ExitStack() as undo:
            undo.callback(release)
            route = self._base_route if is_upstream else self._find_route(url)
            try:
                response = await self._request(method, url, headers, form, route)
            except WIRE_ERRORS as error:
                # ``from None``, because the text of the cause may contain a signed URL.
                raise map_error(self._name, url.raw_host or "", error) from None
            undo.pop_all()
        return UpstreamResponse(
            self._name,
            response,
            is_upstream=is_upstream,
            read_timeout=self._config.read_timeout,
            release=release,
            on_part=on_part,
        )

    def dismiss_waiting(self) -> None:
        """Make every request that waits for its turn call ``admit`` again."""
        self._limiter.dismiss()

    async def _wait_for_turn(self, admit: Callable[[], None], *, is_bulk: bool) -> Callable[[], None]:
        admit()
        if not self._limiter.is_full(is_bulk=is_bulk):
            return await self._limiter.acquire(is_bulk=is_bulk)  # without waiting
        while True:
            with suppress(ConnectionLimiter.Dismissed):
                release = await self._limiter.acquire(is_bulk=is_bulk)
                break
            admit()
        with ExitStack() as undo:
            undo.callback(release)
            admit()
            undo.pop_all()
        return release

    def _find_route(self, url: URL) -> _Route:
        proxy, proxy_headers = self._proxies.find(url)
        is_own_host = host_of(url) == host_of(self._base_url)
        return _Route(proxy, proxy_headers, self._certificates.context(is_own_host=is_own_host))

    async def _request(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        route: _Route,
    ) -> aiohttp.ClientResponse:
        session = self._session or self._open_session()
        if url.scheme == "http" and route.proxy_headers:  # no tunnel: the proxy reads the request itself
            headers = {**headers, **route.proxy_headers}
        # A peer that sends its headers byte by byte satisfies every idle timeout.
        async with asyncio.timeout(self._config.connect_timeout + self._config.read_timeout):
            return await session.request(
                method,
                url,
                headers=headers,
                data=form,
                allow_redirects=False,
                ssl=route.tls,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers or None,
            )

    def _open_session(self) -> aiohttp.ClientSession:
        """Make the session at the first request, because it belongs to the running loop."""
        if self._is_closed:
            raise UpstreamUnreachable(self._name, "is being shut down", reason="closed")
        config = self._config
        self._resolver = DnsResolver()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            # trust_env would also read passwords from ~/.netrc and send them anywhere.
            trust_env=False,
            auto_decompress=False,
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            read_bufsize=READ_BUFFER,
            max_line_size=_HEADER_MAX,
            max_field_size=_HEADER_MAX,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=config.connect_timeout,
                sock_connect=config.connect_timeout,
                sock_read=config.read_timeout,
            ),
        )
        return self._session

    async def close(self) -> None:
        """Break every connection; later requests fail."""
        self._is_closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._resolver is not None:
            await self._resolver.close()


def _release_nothing() -> None:
    """The release of a request that did not wait for its turn."""
