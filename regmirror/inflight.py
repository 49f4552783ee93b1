"""One blob in flight as its readers see it: a growing file and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from regmirror.blobs.local import read_pieces
from regmirror.errors import RegistryError
from regmirror.names import Digest, Repository


class Body(Protocol):
    """What an upstream sends of a blob: from ``start``, of a whole of ``size`` if it told."""

    start: int
    size: int | None

    async def read(self) -> bytes:
        """What has arrived; empty at the end."""
        ...


Open = Callable[[int], AbstractAsyncContextManager[Body]]


FindSize = Callable[[], Awaitable[int | None]]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a blob is fetched from: ``open`` asks for its bytes from an offset on.

    ``find_size`` knows what manifests say, for an upstream that does not tell the size.
    """

    repository: Repository
    open: Open
    find_size: FindSize


class Download:
    """One blob in flight, as its readers see it."""

    def __init__(self, digest: Digest, source: Source) -> None:
        self.digest = digest
        self.source = source
        self.size: int | None = None
        self.started = False  # the upstream has answered with content
        self.written = 0  # bytes in the file, by whichever process
        self.verified = False
        self.answered = False  # by ``source`` itself, to this process
        self.error: RegistryError | None = None
        self.descriptor = -1
        self.readers = 0
        self.resumed = 0
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def visible(self) -> int:
        """Bytes that readers may have: all but the last until the digest is verified."""
        if self.verified:
            return self.written
        limit = self.written if self.size is None else min(self.written, self.size)
        whole = self.size is None or limit == self.size
        return max(0, limit - 1) if whole else limit

    def begin(self, size: int | None) -> None:
        """The upstream has answered; ``size`` if it told."""
        self.started = True
        self.size = size if size is not None else self.size
        self.change()

    def advance(self, written: int) -> None:
        if written != self.written:
            self.written = written
            self.change()

    def verify(self) -> None:
        """The bytes are what the digest says: the last one may go."""
        self.started = self.verified = True
        self.size = self.written
        self.change()

    def fail(self, error: RegistryError) -> None:
        self.error = error
        self.change()

    def change(self) -> None:
        """Wake whoever waits."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def wait_started(self) -> None:
        """Until the upstream's headers are here; raises what went wrong instead.

        An empty body has no last byte to hold back, so that there the verdict is waited for.
        """
        while not self.started or (self.size == 0 and not self.verified):
            if self.error is not None:
                raise self.error
            await asyncio.shield(self._changed)

    async def wait_beyond(self, offset: int) -> int:
        """See ``blobs.base.Blob``."""
        while True:
            if self.visible > offset or self.verified:
                return self.visible
            if self.error is not None:
                raise self.error
            await asyncio.shield(self._changed)


class Follower:
    """A reader of a download: a ``Blob``."""

    def __init__(self, download: Download, release: Callable[[Download], None]) -> None:
        self._download: Download | None = download
        self._release = release
        self.size = download.size
        self.descriptor = download.descriptor
        self.wait_beyond = download.wait_beyond
        download.readers += 1

    def proves(self, repository: Repository) -> bool:
        """Whether the upstream has answered this download for ``repository`` with content."""
        download = self._download
        return download is not None and download.answered and download.source.repository == repository

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        async for piece in read_pieces(self.descriptor, start, stop):
            yield piece

    def close(self) -> None:
        download, self._download = self._download, None
        if download is not None:
            download.readers -= 1
            self._release(download)
