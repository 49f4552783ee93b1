"""The end of a growing file, written and hashed in bulk threads beside the event loop.

What comes as bytes is written and hashed by one thread. What the kernel moves from a socket never
passes through this process: it is hashed from the page cache, by a second thread that runs behind.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, TypeVar

from regmirror.downloads.fetcher import Moved
from regmirror.oci.names import Hasher

READ: Final = 1024 * 1024  # bytes read back at once for the hash
HASHED_MAX: Final = 16 * 1024 * 1024  # bytes hashed in one turn of a thread
AHEAD_MAX: Final = 64 * 1024 * 1024  # bytes the hash may be behind: what it reads is still in memory
MOVED_MAX: Final = 16 * 1024 * 1024  # bytes moved in one turn, after which readers are told
LINGER: Final = 0.004  # seconds a turn waits for more before it ends with less than LINGER_BYTES
LINGER_BYTES: Final = 256 * 1024
PIPE: Final = 1024 * 1024  # bytes; what Linux allows everybody

T = TypeVar("T")


class Writer:
    """The end of a growing file: ``offset`` is where the next byte belongs."""

    def __init__(self, descriptor: int, hasher: Hasher, bulk: Executor) -> None:
        self._descriptor, self._hasher, self._bulk = descriptor, hasher, bulk
        self.offset = 0
        self._hashed = 0
        self._hashing: asyncio.Future[None] | None = None
        self._is_closed = False
        self._pipe: tuple[int, int] | None = None

    async def read_back(self, size: int) -> None:
        """Hash the ``size`` bytes that are already there."""
        self.offset = size
        await self.drain()

    async def append(self, piece: bytes | memoryview) -> None:
        """Write and hash a piece. When it fails, ``offset`` tells how much of it was written."""
        await self.drain()
        await self._in_thread(lambda: self._append(piece))

    async def make_ready(self) -> None:
        """To be called before each ``move``: raises what goes wrong here, and is no fault of the socket."""
        self._open_pipe()
        while self.offset - self._hashed > AHEAD_MAX:
            await asyncio.shield(self._hash_on())

    async def move(self, source: int, count: int) -> Moved | None:
        """Move what has arrived at a socket, at most ``count`` bytes; None if nothing has.

        Raises OSError if the socket fails; that the file does is told in the result.
        """
        moved = await self._in_thread(lambda: self._move(source, min(count, MOVED_MAX)))
        self._hash_on()
        return moved

    async def drain(self) -> Hasher:
        """The hash of everything until ``offset``; OSError if that cannot be read."""
        while self._hashed < self.offset:
            if self._is_closed:
                raise OSError("the staged file was closed before it was hashed")
            await asyncio.shield(self._hash_on())
        return self._hasher

    async def close(self) -> None:
        """Wait until no thread uses the file any more."""
        self._is_closed = True
        if self._hashing is not None:
            if not self._hashing.done():
                await asyncio.wait([self._hashing])
            self._hashing.exception()  # known to whoever needed the hash
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Have a thread do it, which is waited for even when this is cancelled."""
        working = asyncio.get_running_loop().run_in_executor(self._bulk, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            working.exception()  # of no interest any more
            raise

    # --- in threads ----------------------------------------------------------------------

    def _append(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, self.offset)
            self._hasher.update(view[:count])
            self.offset += count
            self._hashed = self.offset
            view = view[count:]

    def _move(self, source: int, limit: int) -> Moved | None:
        into, until = self._open_pipe()[1], time.monotonic() + LINGER
        count = 0
        while count < limit:
            try:
                taken = os.splice(source, into, limit - count, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                if 0 < count < LINGER_BYTES and _wait_readable(source, until - time.monotonic()):
                    continue
                break
            except OSError:
                if count:
                    break  # it will fail again; what has come is good
                raise
            if not taken:
                return Moved(count)
            count += taken
            if (failure := self._write_piped(taken)) is not None:
                return Moved(count, *failure)
        return Moved(count) if count else None

    def _write_piped(self, count: int) -> tuple[bytes, OSError] | None:
        """Write what is in the pipe; if that fails, what could not be written, and why."""
        source = self._open_pipe()[0]
        while count:
            try:
                written = self._splice_out(source, count)
            except OSError as error:
                return _read_exactly(source, count), error
            self.offset += written
            count -= written
        return None

    def _splice_out(self, source: int, count: int) -> int:
        try:
            return os.splice(source, self._descriptor, count, offset_dst=self.offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # This file system does not know splice.
        piece = memoryview(os.read(source, min(count, PIPE)))
        written = 0
        while written < len(piece):
            written += os.pwrite(self._descriptor, piece[written:], self.offset + written)
        return written

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe()
            with suppress(OSError):  # refused to a user with very many pipes: the default will do
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        return self._pipe

    def _hash_on(self) -> asyncio.Future[None]:
        """Have a thread hash what is not hashed yet, unless one is at it."""
        if self._hashing is None or self._hashing.done():
            self._hashing = asyncio.get_running_loop().run_in_executor(self._bulk, self._hash)
            self._hashing.add_done_callback(self._hash_further)
        return self._hashing

    def _hash_further(self, done: asyncio.Future[None]) -> None:
        """One turn has ended: begin the next, unless there is nothing more or it failed."""
        if not self._is_closed and self._hashed < self.offset and done.exception() is None:
            self._hash_on()

    def _hash(self) -> None:
        buffer = memoryview(bytearray(READ))
        until = self._hashed + HASHED_MAX
        while self._hashed < min(self.offset, until) and not self._is_closed:
            wanted = min(READ, self.offset - self._hashed)
            count = os.preadv(self._descriptor, [buffer[:wanted]], self._hashed)
            if not count:
                raise OSError("the staged file shrank while it was read back")
            self._hasher.update(buffer[:count])
            self._hashed += count


def _wait_readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return seconds > 0 and bool(poll.poll(seconds * 1000))


def _read_exactly(descriptor: int, count: int) -> bytes:
    pieces = []
    while count:
        pieces.append(os.read(descriptor, count))
        count -= len(pieces[-1])
    return b"".join(pieces)
