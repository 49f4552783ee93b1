"""What aiohttp refuses before any handler sees it, answered as the registry API has it.

Requests that cannot be parsed (headers too large, both ``Content-Length`` and
``Transfer-Encoding``, no HTTP at all) get aiohttp's own plain text otherwise, which makes
clients complain about the answer instead of saying what is wrong.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_request import BaseRequest

from regmirror.errors import RegistryError
from regmirror.v2.acceptor import ConnectionServer, Listener
from regmirror.v2.delivery_monitor import DeliveryMonitor, close_longest_idle
from regmirror.v2.response_cache import REPLAY, ResponseCache, is_plain
from regmirror.v2.responses import Internal, error_response

DRAIN_LOOK: Final = 0.02  # seconds between looks whether the last connection has closed
HEAD_END: Final = b"\r\n\r\n"
HAS_BODY: Final = re.compile(rb"\r\n(?:transfer-encoding|content-length(?!:[ \t]*0[ \t]*\r))", re.IGNORECASE)
HEADS_MAX: Final = 32  # requests of one piece that are parsed one by one; aiohttp queues as many


@dataclass(frozen=True)
class Edge:
    """What answers requests: ``serve`` any of them, ``prepared`` some of them before they are parsed."""

    serve: Callable[[BaseRequest], Awaitable[web.StreamResponse]]
    prepared: Callable[[], ResponseCache]


EDGE: Final = web.AppKey("edge", Edge)


class Runner(web.AppRunner):
    """Serves the ``EDGE`` that an application has once it has started.

    The application's own router and middlewares are passed over: they cost as much as an answer.
    """

    _watching: asyncio.Task[None] | None = None

    async def listen(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Serve on a socket that listens already."""
        await Listener(self, cast("_Server", self.server), sock, tls).start()

    async def drain(self, timeout: float) -> None:
        """Take no more connections, and wait until the answers in progress have left.

        After ``timeout`` seconds what is left is for ``cleanup`` to break. aiohttp's own waiting
        takes up to twice its time, and forgets what is still in the buffers of a slow client.
        """
        for site in self.sites:
            await site.stop()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while self.server is not None and loop.time() < end:
            await asyncio.sleep(DRAIN_LOOK)
            self.server.pre_shutdown()  # also closes those that have become idle since
            if not self.server.connections:
                return

    async def _make_server(self) -> web.Server:
        await super()._make_server()
        server = _Server(self.app[EDGE], **self._kwargs)
        self._watching = asyncio.create_task(server.watch())
        return server

    async def cleanup(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await super().cleanup()


class _Server(ConnectionServer):
    def __init__(self, edge: Edge, **options: Any) -> None:
        super().__init__(edge.serve, **options)
        self._prepared = edge.prepared
        self.monitor = DeliveryMonitor()

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._prepared, loop=self._loop, **self._kwargs)

    async def watch(self) -> None:
        """Drop readers that have stopped, until cancelled."""
        await self.monitor.watch(self.open)

    def open(self) -> Iterable[tuple[_Connection, asyncio.Transport]]:
        """The open connections."""
        return cast("dict[_Connection, asyncio.Transport]", self._connections).items()

    def close_longest_idle(self) -> int:
        return close_longest_idle(connection for connection, _ in self.open())

    def drop_slowest_reader(self) -> bool:
        return self.monitor.drop_slowest(self.open(), asyncio.get_running_loop().time())


class _Connection(web.RequestHandler):
    """One client. What it sends is looked up among the prepared answers first, as long as each
    piece that arrived was one whole request without a body: the parser then holds nothing back.
    """

    __slots__ = (
        "_client",
        "_is_aligned",
        "_last",
        "_plain_headers",
        "_plain_request",
        "_prepared",
        "_server",
    )

    def __init__(self, server: web.Server, prepared: Callable[[], ResponseCache], **options: Any) -> None:
        super().__init__(server, **options)
        self._server, self._prepared = server, prepared
        self._is_aligned = True
        self._last = b""  # bytes of the piece that was parsed before
        self._plain_request = b""  # the bytes of the last request, if its answer may be kept,
        self._plain_headers: Any = None  # and whose bytes they are
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0] if isinstance(peer, (list, tuple)) else peer or "")

    def data_received(self, data: bytes) -> None:
        if not self._is_aligned:
            self._feed(data)
            return
        if self.is_idle():
            answer = self._prepared().find(data, self._client)
            if answer is not None:
                self._server.requests_count += 1
                cast("asyncio.Transport", self.transport).write(answer)
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                return
        self._parse(data)

    def idle_since(self) -> float:
        """When it was last used, to compare with others."""
        return self._next_keepalive_close_time

    def is_idle(self) -> bool:
        """Whether nothing is in progress, in either direction, and the connection goes on."""
        return (
            self._waiter is not None
            and not self._waiter.done()
            and not (self._messages or self._upgraded or self._close or self._force_close)
            and self.transport is not None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def _parse(self, data: bytes) -> None:
        is_waited_for = not self._messages and data.find(HEAD_END) == len(data) - len(HEAD_END)
        self._feed(data)
        self._plain_request = b""
        self._is_aligned = is_waited_for and len(self._messages) == 1
        if self._is_aligned:
            message, payload = self._messages[0]
            headers = getattr(message, "headers", None)  # what could not be parsed has none
            self._is_aligned = payload is EMPTY_PAYLOAD and headers is not None
            if self._is_aligned and is_plain(message):
                self._plain_request, self._plain_headers = data, headers

    def _feed(self, data: bytes) -> None:
        """Parse each request without a body apart from what follows it.

        The parser fails at bytes behind a request that ends the connection, and then drops that
        request as well. It drops what follows a request with ``Upgrade``.
        """
        before, self._last = self._last, data[-3:]
        split = (before + data[:3]).find(HEAD_END)  # an end that arrived in two pieces
        start = 0 if split < 0 else split + len(HEAD_END) - len(before)
        if start:
            super().data_received(data[:start])
        for _ in range(HEADS_MAX):
            end = data.find(HEAD_END, start) + len(HEAD_END)
            if end < len(HEAD_END) or HAS_BODY.search(data, start, end):
                break
            super().data_received(data[start:end])
            start = end
        if start < len(data) or not data:  # aiohttp gives nothing to have the parser go on
            super().data_received(data[start:])

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, and keep it where it may be given again."""
        sent = await super().finish_response(request, resp, start_time)
        if self._plain_request and request.headers is self._plain_headers and REPLAY in resp:
            resp[REPLAY].keep(self._plain_request, resp)
        return sent

    def close(self) -> None:
        """Close after the answer in progress, which aiohttp does, or else at once."""
        is_idle = self._waiter is not None and not self._waiter.done()
        super().close()
        if is_idle:
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer and close; nothing of a refused request is repeated or logged, since the part
        that could not be parsed may hold a password.
        """
        if status >= 500:
            self.log_exception("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: only the connection's end can say it")
        error = Internal("the mirror failed; its log says why") if status >= 500 else _Refused(status)
        response = error_response(error)
        response.set_status(status)
        response.force_close()
        return response


class _Refused(RegistryError):
    """The code for "an invalid set of parameters" is the nearest that there is."""

    code: ClassVar[str] = "UNSUPPORTED"

    def __init__(self, status: int) -> None:
        reason = HTTPStatus(status).phrase.lower()
        super().__init__(f"{reason}: the request is malformed, or its headers are too large")
