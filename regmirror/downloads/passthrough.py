"""Blobs that cannot be kept still reach their clients: each reader gets the bytes as they come.

When the disk fails or has no room, a download parts from its file: what is in the file may still
be read, the rest passes from the upstream through memory to one reader each. Bytes flow at once,
and the last one is held back until the digest is right, unless a reader asked for a part that
does not begin where the hash is known.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass

from regmirror.blobs.base import PIECE
from regmirror.downloads.fetcher import Body, Sleep, Source, fetch
from regmirror.errors import RegistryError, Unavailable, UpstreamContentInvalid, UpstreamError
from regmirror.oci.names import Digest, Hasher
from regmirror.telemetry.events import Emit, VerificationFailed


@dataclass(frozen=True, slots=True)
class DetachPoint:
    """Where a download stopped being kept, and how its readers go on from there.

    The file may be read until ``start``. What has arrived after it is ``held``, one byte at most:
    it may be the last one, which waits for the digest. ``hasher`` knows all bytes until then.
    """

    digest: Digest
    source: Source
    start: int
    held: bytes
    hasher: Hasher


class PassThrough:
    """A blob's bytes from ``start`` on, on their way to one reader; at most PIECE bytes wait here.

    A task puts bytes in (``begin``, ``append``, ``finish`` or ``fail``), the reader takes them out
    in order. It is verified if it begins where the download parted.
    """

    def __init__(
        self, detach_point: DetachPoint, start: int, size: int | None, *, threads: Executor, emit: Emit
    ) -> None:
        is_verified = start == detach_point.start
        self.size = size
        self.position = start  # of the next byte that the reader takes
        self._arrived = start  # the reader may take bytes until here
        self._held = detach_point.held if is_verified else b""
        self.offset = start + len(self._held)  # of the next byte from the upstream
        self._hasher = detach_point.hasher.copy() if is_verified else None
        self._detach_point, self._threads, self._emit = detach_point, threads, emit
        self._pieces: deque[bytes] = deque()
        self._has_begun = self._has_ended = False
        self._error: RegistryError | None = None
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.producer: asyncio.Task[None] | None = None  # ended by ``close``

    # --- the upstream's side ---

    async def begin(self, size: int | None, source: Source) -> None:
        self.size = self.size if size is None else size
        self._has_begun = True
        self._change()

    async def append(self, piece: bytes | memoryview) -> None:
        """Take a piece, and wait while the reader has enough to take."""
        if self._hasher is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.update, piece)
        self.offset += len(piece)
        piece, self._held = self._held + bytes(piece), b""
        if self._hasher is not None and (self.size is None or self.offset >= self.size):
            piece, self._held = piece[:-1], piece[-1:]
        self._give(piece)
        while self._arrived - self.position >= PIECE:
            await asyncio.shield(self._changed)

    async def splice_from(self, body: Body) -> int:
        """Its bytes are for a reader, not for a file."""
        return 0

    async def matches_digest(self) -> bool:
        return self._is_right()

    def _is_right(self) -> bool:
        expected = self._detach_point.digest.encoded
        return self._hasher is not None and self._hasher.hexdigest() == expected

    def note_resumed(self) -> None:
        """Nobody counts."""

    def take_other(self) -> Source | None:
        """There is one reader, who wants it from where it comes."""
        return None

    def put_back(self, source: Source) -> None:
        """There is no other source."""

    def refuse(self, source: Source, error: UpstreamError) -> None:
        """The reader hears of it by ``fail``."""

    def suspect(self, source: Source) -> None:
        """There is no other source."""

    def finish(self) -> None:
        """Everything has arrived: release the last byte; UpstreamContentInvalid if the digest is wrong."""
        if self._hasher is not None and not self._is_right():
            upstream, digest = self._detach_point.source.repository.upstream, self._detach_point.digest
            self._emit(VerificationFailed(upstream, "blob", digest, "upstream"))
            raise UpstreamContentInvalid(upstream, f"sent other content than {digest}", reason="digest")
        held, self._held = self._held, b""
        self._has_ended = True
        self._give(held)

    def fail(self, error: RegistryError) -> None:
        """The rest will never come; what has arrived may still be taken."""
        self._error = error
        self._change()

    def _give(self, piece: bytes) -> None:
        if piece:
            self._pieces.append(piece)
            self._arrived += len(piece)
        self._change()

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    # --- the reader's side ---

    async def wait_begun(self) -> None:
        """Until the upstream has answered with content; of an empty body until the verdict."""
        while not self._has_begun or (self.size == 0 and not self._has_ended):
            if self._error is not None:
                raise self._error
            await asyncio.shield(self._changed)

    def reaches(self, offset: int) -> bool:
        """Whether the reader can go on from ``offset``: nothing from there on has been taken."""
        return self.position <= offset <= self._arrived

    async def wait_until_readable(self, offset: int) -> int:
        """See ``blobs.base.Blob``."""
        while self._arrived <= offset and not self._has_ended:
            if self._error is not None:
                raise self._error
            await asyncio.shield(self._changed)
        return self._arrived

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """See ``blobs.base.Blob``; what lies before ``start`` is passed over."""
        while self.position < stop:
            piece = self._take(min(PIECE, (stop if self.position >= start else start) - self.position))
            if self.position > start:
                yield piece

    def _take(self, count: int) -> bytes:
        if not self._pieces:
            raise OSError(f"the bytes from {self.position} on have not arrived")
        piece = self._pieces.popleft()
        if len(piece) > count:
            self._pieces.appendleft(piece[count:])
            piece = piece[:count]
        self.position += len(piece)
        self._change()
        return piece

    def close(self) -> None:
        """The reader has left: nothing more is fetched for it."""
        self._pieces.clear()
        if self.producer is not None and self.producer is not asyncio.current_task():
            self.producer.cancel()


async def run_pass_through(source: Source, pass_through: PassThrough, sleep: Sleep) -> None:
    """Fetch for the passage's reader; what goes wrong is told to that reader alone."""
    try:
        await fetch(source, pass_through, sleep)
        pass_through.finish()
    except RegistryError as error:
        pass_through.fail(error)
    except BaseException as error:
        pass_through.fail(Unavailable(f"the transfer was interrupted: {error!r}", retry_after=1))
        raise
