"""One upstream's connections: TLS, proxies, timeouts and a bound on how many there are.

A request here is one exchange on one connection, without authentication and redirects. What
goes wrong is raised as an UpstreamError; see ``failures``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Final, Protocol

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from regmirror import __version__
from regmirror.config.schema import Upstream
from regmirror.errors import UpstreamError, UpstreamFailed, UpstreamUnreachable
from regmirror.upstream.auth.url_policy import host_of
from regmirror.upstream.deadlines import UNWANTED, MinimumRate, short_deadline, with_deadline
from regmirror.upstream.detached_body import DetachedBody, M, Move, detach_body
from regmirror.upstream.error_mapping import mapped
from regmirror.upstream.limiter import ConnectionLimiter
from regmirror.upstream.proxies import Proxies
from regmirror.upstream.resolver import DnsResolver
from regmirror.upstream.tls import Certificates

USER_AGENT: Final = f"regmirror/{__version__}"
READ_BUFFER: Final = 512 * 1024  # bytes; the default of 64 KiB halves the speed of a download
_HEADER_MAX: Final = 64 * 1024  # signed URLs in Location outgrow the default of 8 KiB
_DRAIN_MAX: Final = 64 * 1024  # of a body that nobody wants, to keep its connection


class Hear(Protocol):
    """Called when a part of a body arrives, from the upstream itself or from another host."""

    def __call__(self, *, is_home: bool) -> None: ...


def _hear_nothing(*, is_home: bool) -> None:
    """Nobody wants to know."""


class UpstreamResponse:
    """One answer: its status and headers, and its body while it arrives.

    It holds a connection until ``close``, which keeps that connection for the next request if
    the body has been read to its end.
    """

    def __init__(
        self,
        upstream: str,
        response: aiohttp.ClientResponse,
        release: Callable[[], None],
        hear: Hear,
        read_timeout: float,
    ) -> None:
        self._upstream, self._response, self._release, self._hear = upstream, response, release, hear
        self._timeout, self._rate = read_timeout, MinimumRate(upstream, read_timeout)
        self._raw: DetachedBody | None = None  # the rest of a body that aiohttp reads no more
        self.is_home = True  # the upstream itself answered, not a host it redirected to
        self.excerpt = ""  # the start of an error's body, once it has been read

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self._response.headers

    @property
    def url(self) -> URL:
        return self._response.url

    @property
    def host(self) -> str:
        return self.url.raw_host or ""

    async def read(self) -> bytes | memoryview:
        """Whatever has arrived, at least one byte, to be used until the next call; nothing at the end."""
        async with self._waiting():
            chunk = await (self._raw.read() if self._raw else self._response.content.readany())
        self._note(len(chunk))
        return chunk

    async def splice(self, move: Move[M]) -> M | None:
        """Have ``move`` take what has arrived from the socket itself.

        None where that cannot be, at the moment or at all, and at the end: ``read`` goes on.
        """
        if self._raw is None:
            self._raw = detach_body(self._response, self._timeout)
        if self._raw is None:
            return None
        async with self._waiting():
            moved = await self._raw.splice(move)
        if moved is not None:
            self._note(moved.count)
        return moved

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        with mapped(self._upstream, self.host):
            async with self._rate.waiting(self.host):
                yield

    def _note(self, count: int) -> None:
        self._rate.note(count)
        self._hear(is_home=self.is_home)

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamFailed once it is longer than ``limit`` bytes.

        It has a deadline, which depends on ``limit``; UpstreamTimeout is raised after it.
        """
        body = bytearray()
        async with with_deadline(self._upstream, self.host, short_deadline(limit, self._timeout)):
            while chunk := await self.read():
                body += chunk
                if len(body) > limit:
                    message = f"{self.host} sent more than {limit} bytes"
                    raise UpstreamFailed(self._upstream, message, reason="too-large")
        return bytes(body)

    async def dismiss(self) -> None:
        """Close an answer that is no content, keeping the start of its body as ``excerpt``.

        What arrives within a moment is read, so that the connection can be used again; no error is
        raised.
        """
        body = b""
        try:
            async with with_deadline(self._upstream, self.host, min(UNWANTED, self._timeout)):
                while len(body) < _DRAIN_MAX and (chunk := await self.read()):
                    body += chunk
        except UpstreamError:
            pass
        finally:
            self.close()
        self.excerpt = body[:4096].decode("utf-8", "replace")

    def close(self) -> None:
        """Give the connection back, or break it if the body has not been read. Idempotent."""
        if self._raw is not None:
            self._raw.close()
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()
        self._release()


class Transport:
    """The connections to one upstream, its token endpoint and its storage.

    ``max_connections`` bounds the exchanges in flight. They wait for a slot here and never in
    aiohttp's pool, where waiting would count against the connect timeout.
    """

    def __init__(self, name: str, config: Upstream, home: URL) -> None:
        self.name, self.home = name, home
        self._config = config
        self._certificates = Certificates.load(name, config)
        self._proxies = Proxies.from_environment(config.http_proxy)
        self._slots = ConnectionLimiter(config.max_connections)
        self._addresses: DnsResolver | None = None
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        form: Mapping[str, str] | None = None,
        is_bulk: bool = False,
        is_probe: bool = False,
        admit: Callable[[], None] = lambda: None,
        hear: Hear = _hear_nothing,
    ) -> UpstreamResponse:
        """Send one request and wait for its answer's headers; the caller closes the exchange.

        ``is_bulk`` marks the long transfers, which may not take the last slots. ``admit`` raises
        what keeps this request from being sent, when its turn has come. A probe waits for no
        turn: what hangs holds the slots. ``hear`` is called for each part of the body.
        """
        release = _nothing if is_probe else await self._wait_for_turn(admit, is_bulk=is_bulk)
        with ExitStack() as undo:
            undo.callback(release)
            with mapped(self.name, url.raw_host or ""):
                response = await self._request(method, url, headers, form)
            undo.pop_all()
        return UpstreamResponse(self.name, response, release, hear, self._config.read_timeout)

    def dismiss_waiting(self) -> None:
        """Have everybody who waits for a slot ask again whether that is still allowed."""
        self._slots.dismiss()

    async def _wait_for_turn(self, admit: Callable[[], None], *, is_bulk: bool) -> Callable[[], None]:
        while True:
            admit()
            with suppress(ConnectionLimiter.Dismissed):
                release = await self._slots.acquire(is_bulk=is_bulk)
                break
        try:
            admit()
        except UpstreamError:
            release()
            raise
        return release

    async def _request(
        self, method: str, url: URL, headers: Mapping[str, str], form: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        proxy, for_proxy = self._proxies.find(url)
        is_own_host = host_of(url) == host_of(self.home)
        if url.scheme == "http":  # no tunnel: the proxy reads the request itself
            headers = {**headers, **for_proxy}
        # A peer that sends its headers byte by byte satisfies every idle timeout.
        async with asyncio.timeout(self._config.connect_timeout + self._config.read_timeout):
            return await self._open_session().request(
                method,
                url,
                headers=headers,
                data=form,
                allow_redirects=False,
                ssl=self._certificates.context(is_own_host=is_own_host),
                proxy=proxy,
                proxy_headers=for_proxy or None,
            )

    def _open_session(self) -> aiohttp.ClientSession:
        """The session, made at the first request because it belongs to the running loop."""
        if self._is_closed:
            raise UpstreamUnreachable(self.name, "is being shut down", reason="closed")
        if self._session is None:
            config = self._config
            self._addresses = DnsResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, resolver=self._addresses),
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
        if self._session is not None:
            await self._session.close()
        if self._addresses is not None:
            await self._addresses.close()


def _nothing() -> None:
    """There is nothing to give back."""
