"""A file that grows at its end, written and hashed in bulk threads beside the event loop.

Bytes in memory are written and hashed by one thread. Bytes that the kernel splices from a socket
never enter this process: a second thread hashes them from the page cache, some distance behind.
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

from regmirror.downloads.source import Spliced
from regmirror.oci.names import Hasher

READ: Final = 1024 * 1024  # bytes read back at once for the hash
HASHED_MAX: Final = 16 * 1024 * 1024  # bytes hashed in one turn of a thread
AHEAD_MAX: Final = 64 * 1024 * 1024  # bytes the hash may be behind, so that it reads from the page cache
SPLICED_MAX: Final = 16 * 1024 * 1024  # bytes spliced in one turn, after which readers are notified
LINGER: Final = 0.004  # seconds that a turn waits before it ends with less than LINGER_BYTES
LINGER_BYTES: Final = 256 * 1024
PIPE: Final = 1024 * 1024  # bytes; the most that Linux allows to unprivileged users

T = TypeVar("T")


class GrowingFile:
    """A file with the hash of its bytes; ``offset`` is the position of the next byte."""

    def __init__(self, descriptor: int, hasher: Hasher, bulk: Executor) -> None:
        self._descriptor, self._hasher, self._bulk = descriptor, hasher, bulk
        self.offset = 0
        self._hashed = 0
        self._hashing: asyncio.Future[None] | None = None
        self._is_closed = False
        self._pipe: tuple[int, int] | None = None

    async def read_back(self, size: int) -> None:
        """Hash the first ``size`` bytes, which are already in the file; raises OSError."""
        self.offset = size
        await self.drain()

    async def append(self, piece: bytes | memoryview) -> None:
        """Write and hash a piece; raises OSError, after which ``offset`` counts the written bytes."""
        await self.drain()
        await self._in_thread(lambda: self._append(piece))

    async def prepare_splice(self) -> None:
        """Open the pipe and let the hash catch up, before each ``splice_from``.

        Raises OSError for a failure of this file, which is not one of the socket.
        """
        self._open_pipe()
        while self.offset - self._hashed > AHEAD_MAX:
            await asyncio.shield(self._continue_hashing())

    async def splice_from(self, source: int, count: int) -> Spliced | None:
        """Splice at most ``count`` bytes that have arrived at a socket; None if none have.

        Raises OSError if the socket fails; the result reports a failure of the file.
        """
        spliced = await self._in_thread(lambda: self._splice(source, min(count, SPLICED_MAX)))
        self._continue_hashing()
        return spliced

    async def drain(self) -> Hasher:
        """Wait until everything is hashed, and return the hash; raises OSError if bytes cannot be read."""
        while self._hashed < self.offset:
            if self._is_closed:
                raise OSError("the staged file was closed before it was hashed")
            await asyncio.shield(self._continue_hashing())
        if self._hashing is not None and not self._hashing.done():
            await asyncio.wait([self._hashing])  # the thread has hashed everything, and ends
        return self._hasher

    async def close(self) -> None:
        """Wait until no thread uses the file, and close the pipe."""
        self._is_closed = True
        if self._hashing is not None:
            if not self._hashing.done():
                await asyncio.wait([self._hashing])
            self._hashing.exception()  # ``drain`` has raised it, if the hash was needed
        if self._pipe is not None:
            for end in self._pipe:
                os.close(end)
            self._pipe = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread, and wait for its end even when cancelled."""
        working = asyncio.get_running_loop().run_in_executor(self._bulk, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            working.exception()  # retrieved, so that asyncio does not log it
            raise

    # --- in threads ----------------------------------------------------------------------

    def _append(self, piece: bytes | memoryview) -> None:
        view = memoryview(piece)
        while view:
            count = os.pwrite(self._descriptor, view, self.offset)
            self._hasher.update(view[:count])
            self._hashed += count  # first: a hash thread would hash the bytes again
            self.offset += count
            view = view[count:]

    def _splice(self, source: int, limit: int) -> Spliced | None:
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
                    break  # the next call fails again; the bytes so far are good
                raise
            if not taken:
                return Spliced(count)
            count += taken
            if (failure := self._write_piped(taken)) is not None:
                return Spliced(count, *failure)
        return Spliced(count) if count else None

    def _write_piped(self, count: int) -> tuple[bytes, OSError] | None:
        """Write the bytes in the pipe; on failure return the unwritten bytes and the error."""
        source = self._open_pipe()[0]
        while count:
            try:
                written = os.splice(source, self._descriptor, count, offset_dst=self.offset)
            except OSError as error:
                if error.errno == errno.EINVAL:  # this file system does not support splice
                    return self._copy_piped(source, count)
                return _read_exactly(source, count), error
            self.offset += written
            count -= written
        return None

    def _copy_piped(self, source: int, count: int) -> tuple[bytes, OSError] | None:
        """Write the bytes in the pipe by way of memory; returns as ``_write_piped`` does."""
        while count:
            piece = memoryview(os.read(source, min(count, PIPE)))
            count -= len(piece)
            while piece:
                try:
                    written = os.pwrite(self._descriptor, piece, self.offset)
                except OSError as error:
                    return bytes(piece) + _read_exactly(source, count), error
                self.offset += written
                piece = piece[written:]
        return None

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe()
            with suppress(OSError):  # denied to a user with very many pipes: the default size is enough
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        return self._pipe

    def _continue_hashing(self) -> asyncio.Future[None]:
        """Hash the remaining bytes in a thread, unless one is running."""
        if self._hashing is None or self._hashing.done():
            self._hashing = asyncio.get_running_loop().run_in_executor(self._bulk, self._hash)
            self._hashing.add_done_callback(self._hash_next_turn)
        return self._hashing

    def _hash_next_turn(self, done: asyncio.Future[None]) -> None:
        """Start the next turn after one has ended, unless everything is hashed or the turn failed."""
        if not self._is_closed and self._hashed < self.offset and done.exception() is None:
            self._continue_hashing()

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
