"""The response to one request: status, headers, and a body that arrives within bounded time.

An idle timeout alone does not bound a response, because each byte starts it again. So a body has a
minimum rate, and one that is kept in memory also has a deadline for all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import aiohttp

from regmirror.errors import UpstreamError, UpstreamFailed, UpstreamTimeout
from regmirror.upstream.detached_body import DetachedBody, M, Move, detach_body
from regmirror.upstream.error_mapping import WIRE_ERRORS, map_error

T = TypeVar("T")

#: Multiples of ``read_timeout`` in which a body has to reach the minimum rate.
WINDOWS: Final = 4
#: Bytes a second. Twenty downloads at once over a line of 50 KB/s are still faster.
RATE_MIN: Final = 2 * 1024
#: Bytes a second that a body kept in memory needs on average, after the first window.
SHORT_RATE: Final = 64 * 1024
#: Seconds for the body of an error or a redirect. Its content is not used, so a new connection is cheaper.
DISCARD_TIMEOUT: Final = 2.0
_DISCARD_MAX: Final = 64 * 1024  # bytes read of such a body to keep its connection
_EXCERPT_MAX: Final = 4096  # bytes


def short_deadline(limit: int, read_timeout: float) -> float:
    """Seconds for a body of at most ``limit`` bytes that is kept in memory."""
    return WINDOWS * read_timeout + limit / SHORT_RATE


def too_slow(upstream: str, host: str) -> UpstreamTimeout:
    """The error for a body that misses its deadline or its minimum rate."""
    return UpstreamTimeout(upstream, f"{host} sends its response too slowly", reason="read")


class MinimumRate:
    """The bytes of one body against the time spent waiting for them.

    Only time in which the body is being read counts: a slow client is not the upstream's fault.
    """

    def __init__(self, upstream: str, host: str, read_timeout: float) -> None:
        self._upstream, self._host = upstream, host
        self._window = WINDOWS * read_timeout
        self._waited, self._received = 0.0, 0

    async def wait(self, part: Awaitable[T]) -> T:
        """The result of ``part``; raises UpstreamTimeout when this window had too few bytes."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(max(self._window - self._waited, 0.0)) as deadline:
                received = await part
        except TimeoutError:
            if not deadline.expired():
                raise
            raise too_slow(self._upstream, self._host) from None
        self._waited += loop.time() - began
        return received

    def count(self, received: int) -> None:
        """Count bytes that have arrived; enough of them begin a new window."""
        self._received += received
        if self._received >= RATE_MIN * self._window:
            self._waited, self._received = 0.0, 0


class UpstreamResponse:
    """One response: its status and headers, and its body while it arrives.

    It owns a connection until ``close``, which keeps that connection for the next request if the
    body has been read to its end. ``is_upstream`` is false if a host that the upstream redirected
    to sent it. ``on_part`` is called for each part of the body.
    """

    def __init__(
        self,
        upstream: str,
        response: aiohttp.ClientResponse,
        *,
        is_upstream: bool,
        read_timeout: float,
        release: Callable[[], None],
        on_part: Callable[[], None],
    ) -> None:
        self.status, self.headers = response.status, response.headers
        self.host, self.is_upstream = response.url.raw_host or "", is_upstream
        self.excerpt = ""  # the start of an error's body, set by ``discard``
        self._upstream, self._response = upstream, response
        self._release, self._on_part = release, on_part
        self._timeout, self._rate = read_timeout, MinimumRate(upstream, self.host, read_timeout)
        self._detached: DetachedBody | None = None  # the rest of a body that aiohttp no longer reads

    async def read(self) -> bytes | memoryview:
        """The bytes that have arrived, at least one; empty at the end. Valid until the next call."""
        read = self._detached.read if self._detached else self._response.content.readany
        chunk = await self._receive(read())
        self._count(len(chunk))
        return chunk

    async def splice(self, move: Move[M]) -> M | None:
        """Let ``move`` take bytes from the socket itself.

        None at the end, and where that is impossible now or at all: then call ``read``.
        """
        if self._detached is None:
            self._detached = detach_body(self._response, self._timeout)
        if self._detached is None:
            return None
        moved = await self._receive(self._detached.splice(move))
        if moved is not None:
            self._count(moved.count)
        return moved

    async def _receive(self, part: Awaitable[T]) -> T:
        try:
            return await self._rate.wait(part)
        except WIRE_ERRORS as error:
            # ``from None``, because the text of the cause may contain a signed URL.
            raise map_error(self._upstream, self.host, error) from None

    def _count(self, received: int) -> None:
        self._rate.count(received)
        self._on_part()

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises UpstreamFailed beyond ``limit`` bytes.

        The deadline depends on ``limit``; UpstreamTimeout is raised after it.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(short_deadline(limit, self._timeout)):
                while chunk := await self.read():
                    body += chunk
                    if len(body) > limit:
                        message = f"{self.host} sent more than {limit} bytes"
                        raise UpstreamFailed(self._upstream, message, reason="too-large")
        except TimeoutError:  # ``read`` raises no other
            raise too_slow(self._upstream, self.host) from None
        return bytes(body)

    async def discard(self) -> None:
        """Close a response whose body is not content, keeping the start of it as ``excerpt``.

        A short body is read, so that the connection can be used again. Raises nothing.
        """
        body = b""
        try:
            async with asyncio.timeout(min(DISCARD_TIMEOUT, self._timeout)):
                while len(body) < _DISCARD_MAX and (chunk := await self.read()):
                    body += chunk
        except (UpstreamError, TimeoutError):
            pass
        finally:
            self.close()
        self.excerpt = body[:_EXCERPT_MAX].decode("utf-8", "replace")

    def close(self) -> None:
        """Return the connection, or break it if the body has not been read. Idempotent."""
        if self._detached is not None:
            self._detached.close()
        if self._response.content.is_eof():
            self._response.release()
        else:
            self._response.close()
        self._release()
