"""A planned response as a value, and sending it, faults included."""

import asyncio
import fcntl
import json
import re
import socket
import struct
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from tests.fake_registry.gate import Gate
from tests.fake_registry.request_log import RecordedRequest, RequestLog
from tests.fake_registry.sources import InMemory, Source

HIDDEN: web.ResponseKey[frozenset[str]] = web.ResponseKey("hidden", frozenset)


@dataclass(frozen=True)
class Cut:
    """The connection ends after this many body bytes: by FIN, or by RST."""

    after: int
    reset: bool


@dataclass
class PlannedResponse:
    """A response that is about to be sent; the actions of faults change it.

    The body is source[start:stop]. length is the Content-Length announced, None for chunked.
    hidden names headers that are not sent although aiohttp would add them.
    """

    status: int
    headers: CIMultiDict[str]
    source: Source
    start: int
    stop: int
    length: int | None
    pauses: list[tuple[int, Gate]] = field(default_factory=list)
    bytes_per_second: float | None = None
    cut: Cut | None = None
    hidden: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, status: int, source: Source, headers: dict[str, str] | None = None) -> "PlannedResponse":
        return cls(status, CIMultiDict(headers or {}), source, 0, source.size, source.size)

    def replace_body(self, source: Source) -> None:
        self.source, self.start, self.stop, self.length = source, 0, source.size, source.size

    def select(self, start: int, stop: int) -> None:
        """Send source[start:stop] and the length that belongs to it."""
        self.start, self.stop, self.length = start, stop, stop - start

    @property
    def is_content(self) -> bool:
        return 200 <= self.status < 300


def json_response(status: int, value: Any, headers: dict[str, str] | None = None) -> PlannedResponse:
    """A JSON response; the media type carries no charset."""
    body = InMemory(json.dumps(value).encode())
    return PlannedResponse.of(status, body, {"Content-Type": "application/json", **(headers or {})})


def error_response(
    status: int, code: str, message: str = "", headers: dict[str, str] | None = None
) -> PlannedResponse:
    """An error in the form that the specification prescribes."""
    errors = {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}
    return json_response(status, errors, headers)


def apply_range(response: PlannedResponse, header: str | None) -> None:
    """Narrow a whole response to the requested range: 206, or 416; several ranges or nonsense stay 200."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or found.group(0) == "bytes=-":
        return
    first, last = found.groups()
    size = response.source.size
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        response.status = 416
        response.headers["Content-Range"] = f"bytes */{size}"
        response.replace_body(InMemory(b""))
        return
    response.status = 206
    response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.select(start, stop)


async def send(
    http_request: web.Request, request: RecordedRequest, response: PlannedResponse, log: RequestLog
) -> web.StreamResponse:
    """Send the response as planned, and record its progress in `request`."""
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream[HIDDEN] = frozenset(name.lower() for name in response.hidden)
    if response.length is not None:
        stream.content_length = response.length
    request.status = response.status
    request.responded_at = asyncio.get_running_loop().time()
    await stream.prepare(http_request)
    log.notify()
    if http_request.method == "HEAD" or response.status in (204, 304):
        request.outcome = "complete"
        return stream
    await _send_body(stream, request, response, log)
    is_short = response.length is not None and request.sent_bytes < response.length
    request.outcome = "cut" if response.cut or is_short else "complete"
    if response.cut and response.cut.reset:
        await reset(http_request.transport)
    elif http_request.transport and request.outcome == "cut":
        http_request.transport.close()
    return stream


async def _send_body(
    stream: web.StreamResponse, request: RecordedRequest, response: PlannedResponse, log: RequestLog
) -> None:
    for step in _steps(response):
        if isinstance(step, Gate):
            await step.wait()
            continue
        for piece in _slices(step, response.bytes_per_second):
            request.sent_bytes += len(piece)
            log.notify()
            await stream.write(piece)
            if response.bytes_per_second:
                await asyncio.sleep(len(piece) / response.bytes_per_second)


def _steps(response: PlannedResponse) -> Iterator[bytes | memoryview | Gate]:
    """The body in order, with the gates at the places where it pauses."""
    stop = response.stop
    if response.length is not None:
        stop = min(stop, response.start + response.length)
    if response.cut:
        stop = min(stop, response.start + response.cut.after)
    position = response.start
    for after, gate in sorted(response.pauses, key=lambda pause: pause[0]):
        mark = min(response.start + after, stop)
        yield from response.source.pieces(position, mark)
        position = mark
        yield gate
    yield from response.source.pieces(position, stop)


def _slices(piece: bytes | memoryview, bytes_per_second: float | None) -> Iterator[bytes | memoryview]:
    """A slow body goes out in twenty slices a second, any other as it comes."""
    length = max(1, int(bytes_per_second / 20)) if bytes_per_second else len(piece)
    for position in range(0, len(piece), length):
        yield piece[position : position + length]


async def reset(transport: asyncio.Transport | None) -> None:
    """Break the connection by RST, after the client has received everything sent so far.

    An RST discards what the kernel has not delivered yet, which would make `after` a matter of luck.
    The kernel does not signal that its queue is empty, so it is polled, for a second at most.
    """
    if transport is None or transport.is_closing():
        return
    connection: socket.socket = transport.get_extra_info("socket")
    for _ in range(1000):
        unsent = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        if transport.is_closing() or (unsent == 0 and transport.get_write_buffer_size() == 0):
            break
        await asyncio.sleep(0.001)
    if not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
