"""One client's HTTP connection.

``Connection`` uses the public names of aiohttp alone. ``FastConnection`` also sends responses from
the response cache, before aiohttp parses the request; for that it relies on ``PRIVATE_NAMES`` of
aiohttp (decision record 0029).

Requests that cannot be parsed (headers too large, both ``Content-Length`` and
``Transfer-Encoding``, no HTTP at all) get a response in the form of the registry API: clients
report aiohttp's own plain text as an invalid response.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Any, ClassVar, Final, cast

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.errors import RegistryError
from regmirror.v2.response_cache import REPLAY, is_plain
from regmirror.v2.responses import Internal, error_response
from regmirror.v2.routes import CurrentRoutes

HEAD_END: Final = b"\r\n\r\n"
HAS_BODY: Final = re.compile(rb"\r\n(?:transfer-encoding|content-length(?!:[ \t]*0[ \t]*\r))", re.IGNORECASE)
HEADS_MAX: Final = 32  # requests of one piece that are parsed one by one; aiohttp queues as many
#: Undocumented attributes of ``web.RequestHandler`` that ``FastConnection`` reads or writes.
PRIVATE_NAMES: Final = (
    "_close",
    "_force_close",
    "_keepalive_timeout",
    "_loop",
    "_messages",
    "_next_keepalive_close_time",
    "_upgraded",
    "_waiter",
)


def find_missing_names(handler: type = web.RequestHandler) -> list[str]:
    """The ``PRIVATE_NAMES`` that ``handler`` lacks; ``FastConnection`` needs all of them."""
    return [name for name in PRIVATE_NAMES if not hasattr(handler, name)]


class Connection(web.RequestHandler):
    """One client's connection, served by aiohttp's own path."""

    __slots__ = ("_begun", "_ended", "_ended_at", "_tail", "wire")

    def __init__(self, server: web.Server, routes: CurrentRoutes, **options: Any) -> None:
        super().__init__(server, **options)
        self._begun = self._ended = 0  # requests
        self._ended_at = 0.0
        self._tail = b""  # bytes of the piece that was parsed before
        #: The transport. ``force_close`` removes ``transport``, although bytes may be left to send.
        self.wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)

    def begin(self, message: Any, payload: Any, writer: Any, task: asyncio.Task[None]) -> BaseRequest:
        """The request that a parsed message stands for; aiohttp serves it next."""
        self._begun += 1
        return BaseRequest(message, payload, self, writer, task, asyncio.get_running_loop())

    def data_received(self, data: bytes) -> None:
        """Parse each request without a body apart from what follows it.

        aiohttp's parser fails at bytes behind a request that ends the connection, and then drops that
        request as well. It drops what follows a request with ``Upgrade``.
        """
        before, self._tail = self._tail, data[-3:]
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
        if start < len(data) or not data:  # aiohttp passes nothing to have the parser continue
            super().data_received(data[start:])

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response."""
        sent = await super().finish_response(request, resp, start_time)
        self._ended, self._ended_at = self._begun, asyncio.get_running_loop().time()
        return sent

    def is_waiting(self) -> bool:
        """Whether no request is in progress."""
        return self._begun == self._ended

    def is_idle(self) -> bool:
        """Whether no request is in progress, and everything has been written."""
        return (
            self.is_waiting()
            and self.wire is not None
            and not self.wire.is_closing()
            and self.wire.get_write_buffer_size() == 0
        )

    def idle_since(self) -> float:
        """When the connection was last used, to compare with others."""
        return self._ended_at

    def close(self) -> None:
        """Close after the response in progress, which aiohttp does; without one, close now."""
        is_waiting = self.is_waiting()
        super().close()
        if is_waiting:
            self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """An error response that closes the connection.

        It neither repeats nor logs any of a rejected request: the part that could not be parsed may
        contain a password.
        """
        if status >= 500:
            self.log_exception("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun: only closing the connection can report the error")
        error = Internal("the mirror failed; its log says why") if status >= 500 else _Rejected(status)
        response = error_response(error)
        response.set_status(status)
        response.force_close()
        return response


def make_request(
    message: Any, payload: Any, connection: web.RequestHandler, writer: Any, task: asyncio.Task[None]
) -> BaseRequest:
    """The request factory of a server whose connections are ``Connection``."""
    return cast("Connection", connection).begin(message, payload, writer, task)


class FastConnection(Connection):
    """A connection that looks up each piece of data in the response cache before it is parsed.

    It does so as long as each piece that arrived was one whole request without a body, so that the
    parser has no bytes left.
    """

    __slots__ = ("_client", "_is_aligned", "_plain_headers", "_plain_request", "_routes", "_server")

    def __init__(self, server: web.Server, routes: CurrentRoutes, **options: Any) -> None:
        super().__init__(server, routes, **options)
        self._server, self._routes = server, routes
        self._is_aligned = True
        self._plain_request = b""  # the bytes of the last request, if its response may be stored
        self._plain_headers: Any = None  # its headers, which identify it
        self._client = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = self.peername
        self._client = str(peer[0] if isinstance(peer, (list, tuple)) else peer or "")

    def data_received(self, data: bytes) -> None:
        if not self._is_aligned:
            super().data_received(data)
            return
        if self.is_idle():
            response = self._routes.routes.response_cache.find(data, self._client)
            if response is not None:
                self._server.requests_count += 1
                cast("asyncio.Transport", self.transport).write(response)
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                return
        self._parse(data)

    def is_waiting(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def is_idle(self) -> bool:
        return (
            self._waiter is not None
            and not self._waiter.done()
            and not (self._messages or self._upgraded or self._close or self._force_close)
            and self.transport is not None
            and not self.transport.is_closing()
            and self.transport.get_write_buffer_size() == 0
        )

    def idle_since(self) -> float:
        return self._next_keepalive_close_time

    def _parse(self, data: bytes) -> None:
        is_one_head = not self._messages and data.find(HEAD_END) == len(data) - len(HEAD_END)
        super().data_received(data)
        self._plain_request = b""
        self._is_aligned = is_one_head and len(self._messages) == 1
        if self._is_aligned:
            message, payload = self._messages[0]
            headers = getattr(message, "headers", None)  # None of a request that could not be parsed
            self._is_aligned = payload.is_eof() and headers is not None
            if self._is_aligned and is_plain(message):
                self._plain_request, self._plain_headers = data, headers

    async def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, and store it if it can be replayed."""
        sent = await super().finish_response(request, resp, start_time)
        if self._plain_request and request.headers is self._plain_headers and REPLAY in resp:
            resp[REPLAY].store(self._plain_request, resp)
        return sent


class _Rejected(RegistryError):
    """A request that is not valid HTTP; UNSUPPORTED is the nearest code of the specification."""

    code: ClassVar[str] = "UNSUPPORTED"

    def __init__(self, status: int) -> None:
        reason = HTTPStatus(status).phrase.lower()
        super().__init__(f"{reason}: the request is malformed, or its headers are too large")
