"""What aiohttp refuses before any handler sees it, answered as the registry API has it.

Requests that cannot be parsed (headers too large, both ``Content-Length`` and
``Transfer-Encoding``, no HTTP at all) get aiohttp's own plain text otherwise, which makes
clients complain about the answer instead of saying what is wrong.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import ClassVar, Final

from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.errors import RegistryError
from regmirror.v2.responses import Internal, error_response

DRAIN_LOOK: Final = 0.02  # seconds between looks whether the last connection has closed


class Runner(web.AppRunner):
    """Runs an application behind such a server."""

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
        server = await super()._make_server()
        return _Server(server.request_handler, request_factory=server.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
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
