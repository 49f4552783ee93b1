"""An answer as a value, and its way over the wire, faults included."""

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
from tests.fake_registry.journal import Journal, Seen
from tests.fake_registry.sources import InMemory, Source

HIDDEN: web.ResponseKey[frozenset[str]] = web.ResponseKey("hidden", frozenset)


@dataclass(frozen=True)
class Cut:
    """The connection ends after this many body bytes: by FIN, or by RST."""

    after: int
    reset: bool


@dataclass
class Reply:
    """What is going to be sent; the actions of faults change it.

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
    def of(cls, status: int, source: Source, headers: dict[str, str] | None = None) -> "Reply":
        return cls(status, CIMultiDict(headers or {}), source, 0, source.size, source.size)

    def replace_body(self, source: Source) -> None:
        self.source, self.start, self.stop, self.length = source, 0, source.size, source.size

    def select(self, start: int, stop: int) -> None:
        """Answer with source[start:stop] and the length that belongs to it."""
        self.start, self.stop, self.length = start, stop, stop - start

    @property
    def is_content(self) -> bool:
        return 200 <= self.status < 300


def json_reply(status: int, value: Any, headers: dict[str, str] | None = None) -> Reply:
    """A JSON answer; the media type carries no charset."""
    body = InMemory(json.dumps(value).encode())
    return Reply.of(status, body, {"Content-Type": "application/json", **(headers or {})})


def error_reply(status: int, code: str, message: str = "", headers: dict[str, str] | None = None) -> Reply:
    """An error in the form that the specification prescribes."""
    errors = {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}
    return json_reply(status, errors, headers)


def apply_range(reply: Reply, header: str | None) -> None:
    """Narrow a whole answer to the range asked for: 206, or 416; several ranges or nonsense stay 200."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or found.group(0) == "bytes=-":
        return
    first, last = found.groups()
    size = reply.source.size
    if first:
        start, stop = int(first), min(int(last) + 1, size) if last else size
    else:
        start, stop = max(size - int(last), 0), size
    if start >= stop:
        reply.status = 416
        reply.headers["Content-Range"] = f"bytes */{size}"
        reply.replace_body(InMemory(b""))
        return
    reply.status = 206
    reply.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    reply.select(start, stop)


async def send(request: web.Request, seen: Seen, reply: Reply, journal: Journal) -> web.StreamResponse:
    """Send the answer as planned, keeping `seen` up to date."""
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response[HIDDEN] = frozenset(name.lower() for name in reply.hidden)
    if reply.length is not None:
        response.content_length = reply.length
    seen.status = reply.status
    seen.answered_at = asyncio.get_running_loop().time()
    await response.prepare(request)
    journal.notify()
    if request.method == "HEAD" or reply.status in (204, 304):
        seen.outcome = "complete"
        return response
    await _send_body(response, seen, reply, journal)
    is_short = reply.length is not None and seen.sent_bytes < reply.length
    seen.outcome = "cut" if reply.cut or is_short else "complete"
    if reply.cut and reply.cut.reset:
        await reset(request.transport)
    elif request.transport and seen.outcome == "cut":
        request.transport.close()
    return response


async def _send_body(response: web.StreamResponse, seen: Seen, reply: Reply, journal: Journal) -> None:
    for step in _steps(reply):
        if isinstance(step, Gate):
            await step.wait()
            continue
        for piece in _slices(step, reply.bytes_per_second):
            seen.sent_bytes += len(piece)
            journal.notify()
            await response.write(piece)
            if reply.bytes_per_second:
                await asyncio.sleep(len(piece) / reply.bytes_per_second)


def _steps(reply: Reply) -> Iterator[bytes | memoryview | Gate]:
    """The body in order, with the gates at the places where it pauses."""
    stop = reply.stop
    if reply.length is not None:
        stop = min(stop, reply.start + reply.length)
    if reply.cut:
        stop = min(stop, reply.start + reply.cut.after)
    position = reply.start
    for after, gate in sorted(reply.pauses, key=lambda pause: pause[0]):
        mark = min(reply.start + after, stop)
        yield from reply.source.pieces(position, mark)
        position = mark
        yield gate
    yield from reply.source.pieces(position, stop)


def _slices(piece: bytes | memoryview, bytes_per_second: float | None) -> Iterator[bytes | memoryview]:
    """A slow body goes out in twenty slices a second, any other as it comes."""
    length = max(1, int(bytes_per_second / 20)) if bytes_per_second else len(piece)
    for position in range(0, len(piece), length):
        yield piece[position : position + length]


async def reset(transport: asyncio.Transport | None) -> None:
    """Break the connection by RST, after the client has received everything sent so far.

    An RST discards what the kernel has not delivered yet, which would make `after` a matter of luck.
    The kernel tells nobody when its queue runs empty, so it is asked until it does, for a second at most.
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
