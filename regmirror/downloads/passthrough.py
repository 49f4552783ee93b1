"""Pass-through: bytes from upstream to one reader, without storing them.

When the disk fails or has no space, a download is detached from its file. The bytes before the
detach point are read from the file; the following ones pass through memory to one reader each. The
last byte is withheld until the digest matches, unless the reader starts at an offset for which no
hash exists.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from regmirror.blobs.base import PIECE
from regmirror.downloads.fetcher import NoOtherSources, fetch
from regmirror.downloads.source import Body, Sleep, Source
from regmirror.errors import RegistryError, Unavailable, UpstreamContentInvalid
from regmirror.oci.names import Digest, Hasher
from regmirror.telemetry.events import Emit, VerificationFailed


@dataclass(frozen=True, slots=True)
class DetachPoint:
    """The point where a download switches from file to pass-through.

    The file is readable up to ``start``. ``withheld`` is the byte that has arrived after it, if
    any. ``hasher`` covers everything received so far.
    """

    digest: Digest
    source: Source
    start: int
    withheld: bytes
    hasher: Hasher


class PassThrough:
    """A blob's bytes from ``start`` on, for one reader; about PIECE bytes wait in memory.

    A task appends bytes (``begin``, ``append``, ``finish`` or ``fail``), and the reader takes them
    in order. The digest is verified if ``start`` is the detach point.
    """

    def __init__(
        self, detach_point: DetachPoint, start: int, size: int | None, *, threads: Executor, emit: Emit
    ) -> None:
        is_verified = start == detach_point.start
        self.size = size
        self.position = start  # of the next byte that the reader takes
        self._arrived = start  # limit of the bytes that the reader may take
        self._withheld = detach_point.withheld if is_verified else b""
        self.offset = start + len(self._withheld)  # of the next byte from the upstream
        self._hasher = detach_point.hasher.copy() if is_verified else None
        self._detach_point, self._threads, self._emit = detach_point, threads, emit
        self._pieces: deque[bytes] = deque()
        self._has_started = self._has_ended = False
        self._error: RegistryError | None = None
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[Any] | None = None

    def feed_by(self, task: asyncio.Task[Any] | None) -> None:
        """``task`` appends the bytes; ``close`` cancels it."""
        self._task = task

    # --- the fetching task ---

    async def begin(self, size: int | None, source: Source) -> None:
        self.size = self.size if size is None else size
        self._has_started = True
        self._change()

    async def append(self, piece: bytes | memoryview) -> None:
        """Append a piece, and wait while PIECE bytes or more are not taken."""
        if self._hasher is not None:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._hasher.update, piece)
        self.offset += len(piece)
        piece, self._withheld = self._withheld + bytes(piece), b""
        if self._hasher is not None and (self.size is None or self.offset >= self.size):
            piece, self._withheld = piece[:-1], piece[-1:]
        self._give(piece)
        while self._arrived - self.position >= PIECE:
            await asyncio.shield(self._changed)

    async def splice_from(self, body: Body) -> int:
        """Return 0: there is no file to splice into."""
        return 0

    async def matches_digest(self) -> bool:
        return self._matches_digest()

    def _matches_digest(self) -> bool:
        expected = self._detach_point.digest.encoded
        return self._hasher is not None and self._hasher.hexdigest() == expected

    def finish(self) -> None:
        """Release the last byte; raises UpstreamContentInvalid if the digest does not match."""
        if self._hasher is not None and not self._matches_digest():
            upstream, digest = self._detach_point.source.repository.upstream, self._detach_point.digest
            self._emit(VerificationFailed(upstream, "blob", digest, "upstream"))
            raise UpstreamContentInvalid(upstream, f"sent other content than {digest}", reason="digest")
        withheld, self._withheld = self._withheld, b""
        self._has_ended = True
        self._give(withheld)

    def fail(self, error: RegistryError) -> None:
        """Raise ``error`` for the reader after it has taken the bytes that have arrived."""
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

    # --- the reader ---

    async def wait_started(self) -> None:
        """Wait until content arrives, or if it is empty until it is verified; raises RegistryError."""
        while not self._has_started or (self.size == 0 and not self._has_ended):
            if self._error is not None:
                raise self._error
            await asyncio.shield(self._changed)

    def reaches(self, offset: int) -> bool:
        """Whether the reader can continue at ``offset``: no byte from there on has been taken."""
        return self.position <= offset <= self._arrived

    async def wait_until_readable(self, offset: int) -> int:
        """Return the limit of the readable bytes once it exceeds ``offset`` (see ``blobs.base.Blob``)."""
        while self._arrived <= offset and not self._has_ended:
            if self._error is not None:
                raise self._error
            await asyncio.shield(self._changed)
        return self._arrived

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``stop``; the bytes before ``start`` are dropped."""
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
        """The reader has left: stop the fetch."""
        self._pieces.clear()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    async def run(self, sleep: Sleep) -> None:
        """Fetch from the detach point's source; the reader receives the error."""
        try:
            await fetch(self._detach_point.source, self, NoOtherSources(), sleep)
            self.finish()
        except RegistryError as error:
            self.fail(error)
        except BaseException as error:
            self.fail(Unavailable(f"the transfer was interrupted: {error!r}", retry_after=1))
            raise
