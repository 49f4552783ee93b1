"""The rest of a large body, read from the socket directly; aiohttp would copy it several times.

After the headers of a response the connection is detached from aiohttp. The kernel moves plain bytes
from the socket into a file, so that they never pass through this process; encrypted ones are
decrypted into buffers that are used again. Such a connection serves no further request, so only
large bodies are detached.

aiohttp has no public way to do this: ``is_supported`` checks the members that are used here.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import Final, Protocol, TypeVar

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.connector import Connection

from regmirror.upstream.receive_buffers import POOL

PIECE: Final = 256 * 1024  # bytes a read of a plain body yields at most
LINGER: Final = 0.002  # seconds a buffer with something in it may fill up
READ_MAX: Final = 256 * 1024  # bytes of one piece of what aiohttp holds, so that no second copy is large
SCRATCH: Final = 4096  # bytes for what still comes of a body that has been given up
PLAIN_MIN: Final = 1024 * 1024  # bytes still to come that are worth a connection
ENCRYPTED_MIN: Final = 8 * 1024 * 1024  # and a handshake


#: Members of aiohttp that are not documented, or documented without a promise of what they return.
_MEMBERS: Final = (
    (aiohttp.ClientResponse, ("connection", "content_length")),
    (Connection, ("transport", "protocol")),
    (aiohttp.StreamReader, ("read_nowait",)),
    (BaseProtocol, ("pause_reading", "connection_lost")),
)
_log: Final = logging.getLogger(__name__)


class Moved(Protocol):
    """The bytes taken out of a socket; none if the connection has ended."""

    @property
    def count(self) -> int: ...


M = TypeVar("M", bound=Moved)
#: Takes at most so many bytes out of a socket, given by its descriptor; None if none have arrived.
Move = Callable[[int, int], Awaitable[M | None]]


class DetachedBody(Protocol):
    """The last bytes of a body. A broken connection is an early end; raises TimeoutError if nothing
    arrives for ``read_timeout``.
    """

    async def read(self) -> bytes | memoryview:
        """The bytes that have arrived, at least one; empty at the end, complete or not. Valid until
        the next call.
        """
        ...

    async def splice(self, move: Move[M]) -> M | None:
        """Let ``move`` take bytes that have arrived; None at the end, and where only ``read`` can."""
        ...

    def close(self) -> None:
        """Discard the rest. aiohttp closes the connection itself."""
        ...


def detach_body(response: aiohttp.ClientResponse, timeout: float) -> DetachedBody | None:
    """Detach the rest of a body; None if it is too small, or aiohttp does not allow it."""
    if not is_supported():
        return None
    connection, content = response.connection, response.content
    length = None if "Transfer-Encoding" in response.headers else response.content_length
    if connection is None or length is None:
        return None
    transport, protocol = connection.transport, connection.protocol
    if transport is None or protocol is None:
        return None
    is_encrypted = transport.get_extra_info("ssl_object") is not None
    if length - content.total_bytes < (ENCRYPTED_MIN if is_encrypted else PLAIN_MIN):
        return None
    buffered: deque[bytes] = deque()
    while piece := content.read_nowait(READ_MAX):  # an empty buffer lets the parser continue
        buffered.append(piece)
    protocol.pause_reading()
    remaining = length - content.total_bytes
    if is_encrypted:
        return EncryptedBody(transport, buffered, remaining, timeout)
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    return PlainBody(descriptor, buffered, remaining, timeout)


@cache
def is_supported() -> bool:
    """Whether the installed aiohttp has every member that a detached body uses.

    Otherwise bodies are read through aiohttp. The result is computed once in a process, without a
    connection, and a warning is logged then.
    """
    if all(hasattr(owner, name) for owner, names in _MEMBERS for name in names) and _reads_ahead():
        return True
    message = "detached bodies are off, so downloads are slower: aiohttp %s is not supported; install %s"
    _log.warning(message, aiohttp.__version__, "aiohttp>=3.14,<3.15")
    return False


def _reads_ahead() -> bool:
    """Whether a stream returns its bytes in pieces and counts them."""
    loop = asyncio.new_event_loop()
    try:
        protocol = BaseProtocol(loop)
        content = aiohttp.StreamReader(protocol, 2**16, loop=loop)
        content.feed_data(b"abc")
        pieces = content.read_nowait(2), content.read_nowait(READ_MAX), content.read_nowait(READ_MAX)
        return (pieces, content.total_bytes) == ((b"ab", b"c", b""), 3)
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        loop.close()


class PlainBody:
    """``remaining`` bytes of a socket, after the ``buffered`` ones."""

    def __init__(self, descriptor: int, buffered: deque[bytes], remaining: int, timeout: float) -> None:
        self._descriptor, self._timeout = descriptor, timeout
        self._buffered, self._remaining = buffered, remaining

    async def read(self) -> bytes:
        if self._buffered:
            return self._buffered.popleft()
        while self._remaining:
            await self._wait()
            try:
                piece = os.read(self._descriptor, min(PIECE, self._remaining))
            except BlockingIOError:
                continue
            except ConnectionError:
                piece = b""
            self._remaining = self._remaining - len(piece) if piece else 0
            return piece
        return b""

    async def splice(self, move: Move[M]) -> M | None:
        if self._buffered or not self._remaining:
            return None
        moved = None
        with suppress(ConnectionError):
            while moved is None:
                await self._wait()
                moved = await move(self._descriptor, self._remaining)
        self._remaining = self._remaining - moved.count if moved and moved.count else 0
        return moved

    async def _wait(self) -> None:
        """Wait until bytes have arrived or the connection has ended."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._descriptor, _settle, arrived)
        try:
            async with asyncio.timeout(self._timeout):
                await arrived
        finally:
            loop.remove_reader(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class EncryptedBody(asyncio.BufferedProtocol):
    """``remaining`` bytes that a TLS transport decrypts, after the ``buffered`` ones."""

    def __init__(
        self, transport: asyncio.Transport, buffered: deque[bytes], remaining: int, timeout: float
    ) -> None:
        self._transport, self._timeout = transport, timeout
        self._former = transport.get_protocol()
        self._buffered, self._remaining = buffered, remaining
        self._buffers = POOL.borrow()
        self._size, self._free = self._buffers.size, deque(self._buffers.take())
        self._current, self._filled = self._free.popleft(), 0
        self._full: deque[memoryview] = deque()
        self._lent: memoryview | None = None
        self._has_ended = self._is_closed = False
        self._arrived: asyncio.Future[None] | None = None
        transport.set_protocol(self)
        transport.resume_reading()

    # --- the reader's side ---

    async def read(self) -> bytes | memoryview:
        if self._buffered:
            return self._buffered.popleft()
        self._take_back()
        while self._remaining and not self._full and not self._has_ended:
            is_enough = self._filled >= self._remaining or not await self._may_fill_up()
            if self._filled and is_enough:
                break
        return self._take()

    async def _may_fill_up(self) -> bool:
        """Wait for more bytes; false if the buffered ones should be returned now."""
        if not self._filled:
            await self._wait(self._timeout)
            return True
        with suppress(TimeoutError):
            await self._wait(LINGER)
            return True
        return False

    async def splice(self, move: Move[M]) -> M | None:
        """None: encrypted bytes have to be read."""
        return None

    def close(self) -> None:
        self._transport.pause_reading()
        # The transport may keep this object until the peer has answered the end of TLS.
        self._is_closed = True
        self._current = memoryview(b"")
        self._free.clear()
        self._full.clear()
        POOL.give_back(self._buffers)

    def _take(self) -> memoryview:
        """The oldest filled buffer; empty at the end."""
        if not self._full and self._filled:
            self._put_current()
        if not self._remaining or not self._full:
            return memoryview(b"")
        self._lent = self._full.popleft()
        piece = self._lent[: self._remaining]
        self._remaining -= len(piece)
        return piece

    def _take_back(self) -> None:
        """Reuse the buffer that the reader has finished with."""
        if self._lent is None:
            return
        whole = memoryview(self._lent.obj)
        self._lent = None
        if self._filled == self._size:
            self._full.append(self._current)
            self._current, self._filled = whole, 0
            self._transport.resume_reading()
        else:
            self._free.append(whole)

    async def _wait(self, timeout: float) -> None:
        self._arrived = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(timeout):
            await self._arrived

    # --- the transport's side ---

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(bytearray(SCRATCH)) if self._is_closed else self._current[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_closed:
            return
        self._filled += nbytes
        if self._filled == self._size and self._free:
            self._put_current()
        elif self._filled == self._size:
            self._transport.pause_reading()
        self._wake()

    def _put_current(self) -> None:
        self._full.append(self._current[: self._filled])
        self._current, self._filled = self._free.popleft(), 0

    def eof_received(self) -> None:
        self._has_ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_ended = True
        self._former.connection_lost(exc)  # aiohttp keeps count of its connections
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            _settle(self._arrived)


def _settle(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
