"""A blob's bytes on their way to a client: whole, one range, or several.

Over plain HTTP they leave by ``sendfile`` (see ``sender.py``); over TLS, from a store without
file descriptors, or where a blob that cannot be kept passes through memory, in pieces of 256 KiB,
yielding to the event loop after each: a client that keeps up must not starve the others.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest

from regmirror.blobs.base import Blob
from regmirror.errors import Unavailable
from regmirror.v2.sender import Sender

Range = tuple[int, int]


@dataclass
class Progress:
    """How many content bytes have been handed to the kernel or the transport."""

    sent: int = 0


class BlobStream:
    """One answer's body."""

    def __init__(self, request: BaseRequest, blob: Blob, sender: Sender) -> None:
        self._request, self._blob, self._sender = request, blob, sender
        self.progress = Progress()
        transport = request.transport
        plain = transport is not None and transport.get_extra_info("sslcontext") is None
        self._by_sendfile = plain and blob.descriptor is not None

    async def send_whole(self, response: web.StreamResponse) -> None:
        """All bytes, in chunks if nobody knows how many."""
        size = self._blob.size
        if size is None and self._request.version < HttpVersion11:
            size = await self._wait_for_size()  # HTTP/1.0 has no chunks
        if size is None:
            response.enable_chunked_encoding()
            await self._send_unknown(response)
        else:
            await self.send_range(response, (0, size))

    async def send_range(self, response: web.StreamResponse, span: Range) -> None:
        response.content_length = span[1] - span[0]
        writer = await self._prepare(response)
        if self._request.method != "HEAD":
            await self._send(response, writer, *span)
        await self._finish(response)

    async def send_ranges(
        self, response: web.StreamResponse, ranges: list[Range], size: int, media_type: str
    ) -> None:
        """``multipart/byteranges`` (RFC 9110 §14.6): a part for each range, in their order."""
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
            # So that drain() waits for an empty buffer. (A TLS transport would pause for ever.)
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
                raise Unavailable(f"the blob ends at {start}, which is less than was announced")
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
        self.progress.sent += count

    async def _write(self, response: web.StreamResponse, start: int, stop: int) -> None:
        async for piece in self._blob.read(start, stop):
            await response.write(piece)
            self.progress.sent += len(piece)
            await asyncio.sleep(0)

    async def _wait_for_size(self) -> int:
        size = 0
        while (limit := await self._blob.wait_until_readable(size)) > size:
            if self._blob.descriptor is None:  # nobody may keep the bytes until they are counted
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
