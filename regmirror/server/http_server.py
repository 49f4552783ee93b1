"""The HTTP server of one worker: its client connections, from accepting them to draining them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final, cast

from aiohttp import web

from regmirror.server.acceptor import Acceptor
from regmirror.server.delivery_monitor import DeliveryMonitor, close_longest_idle
from regmirror.v2.connection import Connection, FastConnection, make_request
from regmirror.v2.routes import CurrentRoutes

DRAIN_POLL: Final = 0.02  # seconds between two polls whether the last connection has closed
BREAK_TIMEOUT: Final = 0.1  # seconds that requests still in progress after the drain have to end
#: Options of aiohttp for each connection.
OPTIONS: Final[dict[str, Any]] = {
    "access_log": None,
    "keepalive_timeout": 150.0,  # longer than clients keep idle connections
    "max_field_size": 65_536,  # podman sends up to 1024 ranges in one header
    "max_line_size": 16_384,
}


class HttpServer(web.Server):
    """The connections of one worker. Made in a running event loop; ``close`` it.

    Requests go from the connection to ``routes`` directly: aiohttp's router and middlewares cost
    as much as a response.
    """

    def __init__(self, routes: CurrentRoutes, connection: type[Connection] = FastConnection) -> None:
        super().__init__(routes.serve, request_factory=make_request)
        self._routes, self._connection = routes, connection
        self._acceptors: list[Acceptor] = []
        self.monitor = DeliveryMonitor()
        self._watching = asyncio.create_task(self.monitor.watch(self.open_connections))

    def __call__(self) -> Connection:
        """The protocol of one more connection."""
        return self._connection(self, self._routes, loop=asyncio.get_running_loop(), **OPTIONS)

    def listen(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Serve on a socket that listens already and does not block."""
        self._acceptors.append(
            Acceptor(
                sock, tls, self, close_idle=self.close_longest_idle, drop_reader=self.drop_slowest_reader
            )
        )

    def open_connections(self) -> list[Connection]:
        """The connections that are not closed yet."""
        return cast("list[Connection]", self.connections)

    def close_longest_idle(self) -> bool:
        """Close some idle connections; returns whether there was one."""
        return close_longest_idle(self.open_connections())

    def drop_slowest_reader(self) -> bool:
        """Abort the connection of a reader that has stopped; returns whether there was one."""
        return self.monitor.drop_slowest(self.open_connections(), asyncio.get_running_loop().time())

    async def drain(self, timeout: float) -> None:
        """Accept no more connections, and wait until the responses in progress have been delivered.

        Returns after ``timeout`` seconds at the latest; ``close`` breaks the remaining connections.
        aiohttp's own waiting takes up to twice its timeout, and ignores the buffers of slow clients.
        """
        self._stop_accepting()
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while loop.time() < end:
            await asyncio.sleep(DRAIN_POLL)
            self.pre_shutdown()  # also closes connections that have become idle since
            if not self.connections:
                return

    async def close(self) -> None:
        """Close every connection."""
        self._stop_accepting()
        self._watching.cancel()
        await asyncio.sleep(0)  # requests that have arrived begin, and are not taken for idle connections
        self.pre_shutdown()
        await self.shutdown(BREAK_TIMEOUT)

    def _stop_accepting(self) -> None:
        for acceptor in self._acceptors:
            acceptor.stop()
        self._acceptors.clear()
