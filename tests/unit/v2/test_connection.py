"""Connections split what arrives into requests, and know the names that the fast path needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.v2.connection import HEADS_MAX, PRIVATE_NAMES, Connection, find_missing_names, make_request
from tests.mirror_fixture import wait_until

REQUEST = b"GET /%d HTTP/1.1\r\nHost: m\r\n\r\n"


class Server(web.Server):
    """A server of ``Connection``, whose responses repeat the path and the body."""

    def __init__(self) -> None:
        super().__init__(self.respond, request_factory=make_request)
        self.released = asyncio.Event()
        self.released.set()

    async def respond(self, request: BaseRequest) -> web.StreamResponse:
        await self.released.wait()
        if request.path == "/fails":
            raise ValueError("a secret")
        return web.Response(body=request.path.encode() + b":" + await request.read())

    def __call__(self) -> web.RequestHandler:
        return Connection(self, None, loop=asyncio.get_running_loop())  # type: ignore[arg-type]

    def only(self) -> Connection:
        (connection,) = self.connections
        assert isinstance(connection, Connection)
        return connection


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.shutdown(0.1)


@pytest.fixture
async def wire(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()
    listening.close()


Wire = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def read_bodies(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    bodies = []
    async with asyncio.timeout(5):
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            bodies.append(await reader.readexactly(length))
    return bodies


def test_the_installed_aiohttp_has_all_names() -> None:
    assert find_missing_names() == []


def test_missing_names_are_found() -> None:
    partial = type("Handler", (), dict.fromkeys(PRIVATE_NAMES[1:]))
    assert find_missing_names(partial) == [PRIVATE_NAMES[0]]


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
async def test_requests_are_served_in_order_however_they_arrive(wire: Wire, size: int) -> None:
    reader, writer = wire
    data = b"".join(REQUEST % number for number in range(5))
    data += b"POST /p HTTP/1.1\r\nHost: m\r\nContent-Length: 8\r\n\r\n\r\n\r\n\r\n\r\n" + REQUEST % 6
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await asyncio.sleep(0)
    expected = [*(b"/%d:" % number for number in range(5)), b"/p:\r\n\r\n\r\n\r\n", b"/6:"]
    assert await read_bodies(reader, 7) == expected


async def test_more_requests_in_one_piece_than_are_split_are_served(wire: Wire) -> None:
    reader, writer = wire
    writer.write(b"".join(REQUEST % number for number in range(HEADS_MAX + 5)))
    assert len(await read_bodies(reader, HEADS_MAX + 5)) == HEADS_MAX + 5


async def test_a_connection_is_idle_between_requests(server: Server, wire: Wire) -> None:
    reader, writer = wire
    server.released.clear()
    writer.write(REQUEST % 1)
    await wait_until(lambda: server.requests_count > 0, "the request has begun")
    connection = server.only()
    assert not connection.is_waiting()
    assert not connection.is_idle()
    assert connection.idle_since() == 0
    server.released.set()
    await read_bodies(reader, 1)
    assert connection.is_idle()
    assert 0 < connection.idle_since() <= asyncio.get_running_loop().time()


async def test_closing_waits_for_the_response_in_progress(server: Server, wire: Wire) -> None:
    reader, writer = wire
    server.released.clear()
    writer.write(REQUEST % 1)
    await wait_until(lambda: server.requests_count > 0, "the request has begun")
    server.only().close()
    server.released.set()
    assert await read_bodies(reader, 1) == [b"/1:"]
    assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_closing_without_a_request_is_immediate(server: Server, wire: Wire) -> None:
    reader, writer = wire
    writer.write(REQUEST % 1)
    await read_bodies(reader, 1)
    server.only().close()
    assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_a_failed_request_closes_and_reveals_nothing(wire: Wire) -> None:
    reader, writer = wire
    writer.write(b"GET /fails HTTP/1.1\r\nHost: m\r\n\r\n")
    received = await asyncio.wait_for(reader.read(), 5)
    assert received.startswith(b"HTTP/1.1 500 ")
    assert b"its log says why" in received
    assert b"secret" not in received
