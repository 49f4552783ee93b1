"""The body of a blob response: the whole blob, one range, or several.

Over plain HTTP the kernel copies the bytes from the file to the socket (``sender.py``). Over TLS, and
for a blob without a file descriptor, they are read and written in pieces. The event loop runs after
each piece, so that a fast client does not delay the others.
"""

from __future__ import annotations

import asyncio
import os

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from regmirror.blobs.base import Blob
from regmirror.errors import Unavailable
from regmirror.v2.sender import Sender

Range = tuple[int, int]


class BlobStream:
    """The body of one response. Its methods raise ConnectionError if the client has left, and
    Unavailable if the blob ends early.
    """

    def __init__(self, request: BaseRequest, blob: Blob, sender: Sender) -> None:
        self._request, self._blob, self._sender = request, blob, sender
        #: Content bytes that the kernel or the transport has accepted.
        self.sent_bytes = 0
        transport = request.transport
        plain = transport is not None and transport.get_extra_info("sslcontext") is None
        self._by_sendfile = plain and blob.descriptor is not None

    async def send_whole(self, response: web.StreamResponse) -> None:
        """Send all bytes, in chunks if their number is not known yet."""
        size = self._blob.size
        if size is None and self._request.version < HttpVersion11:
            size = await self._wait_for_size()  # HTTP/1.0 has no chunks
        if size is None:
            response.enable_chunked_encoding()
            await self._send_unknown(response)
        else:
            await self.send_range(response, (0, size))

    async def send_range(self, response: web.StreamResponse, span: Range) -> None:
        """Send the bytes from ``span[0]`` up to ``span[1]``, which is not included."""
        response.content_length = span[1] - span[0]
        writer = await self._prepare(response)
        if self._request.method != "HEAD":
            await self._send(response, writer, *span)
        await self._finish(response)

    async def send_ranges(
        self, response: web.StreamResponse, ranges: list[Range], size: int, media_type: str
    ) -> None:
        """Send ``multipart/byteranges``: a part for each range, in order (RFC 9110 §14.6)."""
        boundary = os.urandom(12).hex()
        heads = [
            f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n"
            f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
            for start, stop in ranges
        ]
        tail = f"\r\n--{boundary}--\r\n".encode()
        lengths = sum(map(len, heads)) + sum(stop - start for start, stop in ranges) + len(tail)
        response.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
        response.content_length = lengths
        writer = await self._prepare(response)
        if self._request.method != "HEAD":
            for head, (start, stop) in zip(heads, ranges, strict=True):
                await response.write(head)
                await self._send(response, writer, start, stop)
            await response.write(tail)
        await self._finish(response)

    async def _prepare(self, response: web.StreamResponse) -> AbstractStreamWriter:
        transport = self._request.transport
        if transport is not None and self._by_sendfile:
            # ``drain`` then waits until the buffer is empty. A TLS transport would never resume.
            transport.set_write_buffer_limits(0)
        writer = await response.prepare(self._request)
        if writer is None:
            raise ConnectionResetError("the client has left")
        return writer

    async def _finish(self, response: web.StreamResponse) -> None:
        await response.write_eof()
        transport = self._request.transport
        if transport is not None and self._by_sendfile:
            transport.set_write_buffer_limits()

    async def _send(
        self, response: web.StreamResponse, writer: AbstractStreamWriter, start: int, stop: int
    ) -> None:
        while start < stop:
            limit = min(stop, await self._blob.wait_until_readable(start))
            if limit <= start:
                raise Unavailable(f"the blob ends at byte {start}, before the announced length")
            source = self._blob.descriptor if self._by_sendfile else None
            if source is not None:
                await self._sendfile(writer, source, start, limit - start)
            else:
                await self._write(response, start, limit)
            start = limit

    async def _sendfile(self, writer: AbstractStreamWriter, source: int, start: int, count: int) -> None:
        await writer.drain()
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        target = transport.get_extra_info("socket").fileno()
        await self._sender.send(target, source, start, count)
        self.sent_bytes += count

    async def _write(self, response: web.StreamResponse, start: int, stop: int) -> None:
        async for piece in self._blob.read(start, stop):
            await response.write(piece)
            self.sent_bytes += len(piece)
            await asyncio.sleep(0)

    async def _wait_for_size(self) -> int:
        size = 0
        while (limit := await self._blob.wait_until_readable(size)) > size:
            if self._blob.descriptor is None:  # the bytes pass through memory and cannot be counted first
                raise Unavailable("the blob's size is not known yet, and HTTP/1.0 needs it", retry_after=10)
            size = limit
        return size

    async def _send_unknown(self, response: web.StreamResponse) -> None:
        await self._prepare(response)
        start = 0
        while (limit := await self._blob.wait_until_readable(start)) > start:
            await self._write(response, start, limit)
            start = limit
        await self._finish(response)
