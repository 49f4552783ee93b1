"""The connections of one worker: listening, draining and closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.web_request import BaseRequest

from regmirror.server.http_server import HttpServer
from regmirror.server.listener import bind
from tests.mirror_fixture import wait_until

REQUEST = b"GET / HTTP/1.1\r\nHost: m\r\n\r\n"


class Routes:
    """Routes that respond when ``released`` is set."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.routes = self
        self.response_cache = self

    def find(self, data: bytes, client: str) -> bytes | None:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain" if data == b"stored\r\n\r\n" else None

    async def serve(self, request: BaseRequest) -> web.StreamResponse:
        await self.released.wait()
        return web.Response(text="done")


class Setup:
    """A server with its address."""

    def __init__(self) -> None:
        self.routes = Routes()
        self.server = HttpServer(self.routes)  # type: ignore[arg-type]
        [sock] = bind("127.0.0.1:0", 1)
        self.address = sock.getsockname()
        self.server.listen(sock)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.address)


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    yield setup
    setup.routes.released.set()
    await setup.server.close()


async def request_and_wait(setup: Setup) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose request is in progress."""
    setup.routes.released.clear()
    reader, writer = await setup.connect()
    writer.write(REQUEST)
    await wait_until(lambda: setup.server.requests_count == 1, "the request has begun")
    return reader, writer


async def test_a_stored_response_is_sent_without_parsing(setup: Setup) -> None:
    reader, writer = await setup.connect()
    await wait_until(lambda: bool(setup.server.open_connections()), "the connection is open")
    writer.write(b"stored\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"again"), 5)).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_drain_closes_idle_connections_and_the_socket(setup: Setup) -> None:
    reader, writer = await setup.connect()
    await wait_until(lambda: bool(setup.server.open_connections()), "the connection is open")
    await setup.server.drain(5)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    with pytest.raises(ConnectionRefusedError):
        await setup.connect()
    writer.close()


async def test_a_drain_waits_for_responses(setup: Setup) -> None:
    reader, writer = await request_and_wait(setup)
    draining = asyncio.create_task(setup.server.drain(5))
    await asyncio.sleep(0.1)
    assert not draining.done()
    setup.routes.released.set()
    assert (await asyncio.wait_for(reader.read(), 5)).endswith(b"done")
    await asyncio.wait_for(draining, 5)
    writer.close()


async def test_a_drain_ends_at_its_timeout_and_close_breaks_the_others(setup: Setup) -> None:
    reader, writer = await request_and_wait(setup)
    await asyncio.wait_for(setup.server.drain(0.1), 5)
    assert len(setup.server.open_connections()) == 1
    await asyncio.wait_for(setup.server.close(), 5)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_idle_connections_make_room(setup: Setup) -> None:
    assert not setup.server.close_longest_idle()
    reader, writer = await setup.connect()
    await wait_until(lambda: bool(setup.server.open_connections()), "the connection is open")
    await asyncio.sleep(0.05)
    assert not setup.server.drop_slowest_reader()
    assert setup.server.close_longest_idle()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
