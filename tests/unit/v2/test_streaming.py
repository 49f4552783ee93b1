"""The body of a blob response, from a store without file descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from regmirror.errors import Unavailable
from regmirror.v2.sender import Sender
from regmirror.v2.streaming import BlobStream
from tests.contract.memory_store import MemoryBlob

DATA = bytes(range(256)) * 4096
Send = Callable[[BlobStream, web.StreamResponse], Awaitable[None]]


class GrowingBlob(MemoryBlob):
    """A blob whose size is known at its end; it becomes readable in three steps."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size = None  # type: ignore[assignment]
        self.end = len(data)

    async def wait_until_readable(self, offset: int) -> int:
        return min(self.end, offset + self.end // 3 + 1)

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        yield self._data[start:stop]


class ShortBlob(MemoryBlob):
    """A blob that ends earlier than its size."""

    async def wait_until_readable(self, offset: int) -> int:
        return 1000


@asynccontextmanager
async def serving(blob: MemoryBlob, send: Send) -> AsyncIterator[tuple[str, list[BlobStream | Exception]]]:
    """The URL of a server that sends ``blob``, and its streams and errors."""
    log: list[BlobStream | Exception] = []

    async def respond(request: web.Request) -> web.StreamResponse:
        stream, response = BlobStream(request, blob, sender), web.StreamResponse()
        log.append(stream)
        try:
            await send(stream, response)
        except Unavailable as error:
            log.append(error)
            if request.transport is not None:
                request.transport.close()
        return response

    app, sender = web.Application(), Sender()
    app.router.add_route("*", "/", respond)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), log
    sender.close()


async def fetch(url: str, method: str = "GET", **options: object) -> tuple[aiohttp.ClientResponse, bytes]:
    async with aiohttp.ClientSession(**options) as session, session.request(method, url) as response:  # type: ignore[arg-type]
        return response, await response.read()


async def test_a_whole_blob_has_its_length_and_its_bytes_are_counted() -> None:
    async with serving(MemoryBlob(DATA), BlobStream.send_whole) as (url, log):
        response, body = await fetch(url)
    assert body == DATA
    assert response.headers["Content-Length"] == str(len(DATA))
    (stream,) = log
    assert isinstance(stream, BlobStream)
    assert stream.sent_bytes == len(DATA)


async def test_a_head_has_no_bytes() -> None:
    async with serving(MemoryBlob(DATA), BlobStream.send_whole) as (url, log):
        response, body = await fetch(url, "HEAD")
    assert body == b""
    assert response.headers["Content-Length"] == str(len(DATA))
    assert isinstance(log[0], BlobStream)
    assert log[0].sent_bytes == 0


async def test_a_range_is_sent_without_the_other_bytes() -> None:
    async with serving(MemoryBlob(DATA), lambda s, r: s.send_range(r, (300_000, 600_001))) as (url, _):
        _, body = await fetch(url)
    assert body == DATA[300_000:600_001]


async def test_several_ranges_are_parts() -> None:
    ranges = [(5, 10), (0, 2)]
    async with serving(MemoryBlob(DATA), lambda s, r: s.send_ranges(r, ranges, len(DATA), "a/b")) as (url, _):
        response, body = await fetch(url)
    boundary = response.headers["Content-Type"].partition("boundary=")[2].encode()
    assert response.headers["Content-Length"] == str(len(body))
    first, second = body.split(b"\r\n--" + boundary)[1:3]
    assert first.endswith(b"\r\nContent-Range: bytes 5-9/1048576\r\n\r\n" + DATA[5:10])
    assert second.endswith(b"\r\nContent-Range: bytes 0-1/1048576\r\n\r\n" + DATA[:2])
    assert body.endswith(b"--" + boundary + b"--\r\n")


async def test_a_blob_of_unknown_size_is_sent_in_chunks() -> None:
    async with serving(GrowingBlob(DATA), BlobStream.send_whole) as (url, _):
        response, body = await fetch(url)
    assert body == DATA
    assert response.headers["Transfer-Encoding"] == "chunked"


async def test_http_1_0_has_no_chunks_so_the_request_fails_for_now() -> None:
    async with serving(GrowingBlob(DATA), BlobStream.send_whole) as (url, log):
        with pytest.raises(aiohttp.ClientError):
            await fetch(url, version=aiohttp.HttpVersion10)
    error = log[1]
    assert isinstance(error, Unavailable)
    assert error.retry_after == 10


async def test_a_blob_that_ends_early_ends_the_response_short() -> None:
    async with serving(ShortBlob(DATA), BlobStream.send_whole) as (url, log):
        with pytest.raises(aiohttp.ClientPayloadError):
            await fetch(url)
    assert "ends at byte 1000" in str(log[1])
