"""Detached bodies are used only with an aiohttp that has the members they need."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web
from aiohttp.connector import Connection
from aiohttp.test_utils import TestServer

from regmirror.upstream.detached_body import PLAIN_MIN, PlainBody, detach_body, is_supported


@pytest.fixture(autouse=True)
def unprobed() -> Iterator[None]:
    """Probe aiohttp again in each test."""
    is_supported.cache_clear()
    yield
    is_supported.cache_clear()


async def body_of_a_large_response() -> tuple[bool, bytes]:
    """Whether the body of a response could be detached, and its bytes."""

    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=bytes(PLAIN_MIN * 4))

    app = web.Application()
    app.router.add_get("/", respond)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/")) as response,
    ):
        detached = detach_body(response, 5.0)
        if detached is None:
            return False, await response.read()
        received = bytearray()
        while piece := await detached.read():
            received += piece
        detached.close()
        response.close()
        return True, bytes(received)


async def test_the_installed_aiohttp_is_supported() -> None:
    """B12: the quick path is the one that is used."""
    assert is_supported()
    assert await body_of_a_large_response() == (True, bytes(PLAIN_MIN * 4))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Connection, "transport"),
        (aiohttp.StreamReader, "read_nowait"),
    ],
)
async def test_without_a_member_bodies_are_read_through_aiohttp(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: type, name: str
) -> None:
    """One warning names the version and the remedy, however often it is called."""
    monkeypatch.delattr(owner, name)
    assert [is_supported() for _ in range(3)] == [False] * 3
    assert await body_of_a_large_response() == (False, bytes(PLAIN_MIN * 4))
    (warning,) = [record.getMessage() for record in caplog.records if "detached" in record.getMessage()]
    assert "aiohttp>=3.14,<3.15" in warning


def test_a_reader_that_counts_otherwise_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp.StreamReader, "read_nowait", lambda self, n=-1: b"abc")
    assert not is_supported()


def test_a_reader_with_another_signature_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp.StreamReader, "read_nowait", lambda self: b"abc")
    assert not is_supported()


async def test_a_small_body_is_not_detached() -> None:
    """Its connection serves further requests."""

    async def respond(request: web.Request) -> web.Response:
        return web.Response(body=bytes(1000))

    app = web.Application()
    app.router.add_get("/", respond)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession() as session,
        session.get(server.make_url("/")) as response,
    ):
        assert detach_body(response, 5.0) is None
        assert await asyncio.wait_for(response.read(), 5) == bytes(1000)


@dataclass
class Taken:
    count: int


class Socket:
    """Two connected sockets: the peer's, and a body that reads from the other."""

    def __init__(self, remaining: int, timeout: float = 5.0) -> None:
        self.peer, self.own = socket.socketpair()
        self.own.setblocking(False)
        self.body = PlainBody(os.dup(self.own.fileno()), deque([b"first"]), remaining, timeout)

    async def move(self, descriptor: int, most: int) -> Taken | None:
        return Taken(len(os.read(descriptor, most)))

    def close(self) -> None:
        self.body.close()
        self.body.close()
        self.peer.close()
        self.own.close()


async def test_buffered_bytes_come_before_those_of_the_socket() -> None:
    connection = Socket(remaining=6)
    connection.peer.sendall(b"second and the next response")
    assert await connection.body.splice(connection.move) is None, "buffered bytes can only be read"
    assert await connection.body.read() == b"first"
    moved = await connection.body.splice(connection.move)
    assert moved is not None
    assert moved.count == 6, "the next response stays in the socket"
    assert await connection.body.splice(connection.move) is None
    assert await connection.body.read() == b""
    connection.close()


@pytest.mark.parametrize("is_spliced", [False, True])
async def test_a_closed_connection_is_an_early_end(is_spliced: bool) -> None:
    """B5: the reader compares it with the size that was announced."""
    connection = Socket(remaining=6)
    await connection.body.read()
    connection.peer.close()
    if is_spliced:
        moved = await connection.body.splice(connection.move)
        assert moved is not None
        assert moved.count == 0
    assert await connection.body.read() == b""
    connection.close()


async def test_a_silent_connection_is_a_timeout() -> None:
    """B35."""
    connection = Socket(remaining=6, timeout=0.01)
    await connection.body.read()
    with pytest.raises(TimeoutError):
        await connection.body.read()
    connection.close()
