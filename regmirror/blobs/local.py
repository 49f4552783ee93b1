"""Blobs as files, in the form of an OCI image layout.

<root>/blobs/sha256/<hex>        complete and verified, never changed
<root>/blobs/sha512/<hex>
<root>/staging/…                 arriving; see staging.py
<root>/quarantine/<hex>.<time>   found to be wrong, kept for the operator
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from regmirror.blobs.base import PIECE, StoredBlob
from regmirror.errors import DigestInvalid
from regmirror.names import Digest

ALGORITHMS = ("sha256", "sha512")


class LocalBlob:
    """An open file; readable however long, even if it is deleted meanwhile."""

    __slots__ = ("_descriptor", "size")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    @property
    def descriptor(self) -> int:
        return self._descriptor

    async def wait_beyond(self, offset: int) -> int:
        return self.size

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        async for piece in read_pieces(self._descriptor, start, stop):
            yield piece

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def read_pieces(descriptor: int, start: int, stop: int) -> AsyncIterator[bytes]:
    """``pread`` in pieces, in a thread: a cold disk must not stop the event loop."""
    while start < stop:
        piece = await asyncio.to_thread(os.pread, descriptor, min(PIECE, stop - start), start)
        if not piece:
            raise OSError(f"the file ends at {start}, {stop - start} bytes early")
        start += len(piece)
        yield piece


class LocalBlobStore:
    """Content-addressed files below ``root`` (created on demand)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._directories = {name: root / "blobs" / name for name in ALGORITHMS}
        self._quarantine = root / "quarantine"

    def prepare(self) -> None:
        """Create the directories; raises OSError where that is not allowed."""
        for directory in (self.root, *self._directories.values(), self._quarantine):
            ensure_directory(directory)

    def path(self, digest: Digest) -> Path:
        return self._directories[digest.algorithm] / digest.encoded

    def open(self, digest: Digest) -> LocalBlob | None:
        """One ``open`` and one ``fstat``, on the calling thread: the hot path."""
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        return LocalBlob(descriptor)

    async def find(self, digest: Digest) -> LocalBlob | None:
        return self.open(digest)

    async def adopt(self, staged: Path, digest: Digest) -> None:
        await asyncio.to_thread(self._adopt, staged, self.path(digest))

    def _adopt(self, staged: Path, final: Path) -> None:
        _sync(staged)
        staged.replace(final)
        _sync(final.parent)

    async def delete(self, digest: Digest) -> int | None:
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return None
        return size

    async def quarantine(self, digest: Digest) -> None:
        target = self._quarantine / f"{digest.encoded}.{time.time_ns()}"
        try:
            self.path(digest).replace(target)
        except FileNotFoundError:
            return

    async def iterate(self) -> AsyncIterator[StoredBlob]:
        for algorithm, directory in self._directories.items():
            for entry in await asyncio.to_thread(_entries, directory):
                try:
                    status = entry.stat()
                    digest = Digest(f"{algorithm}:{entry.name}")
                except (FileNotFoundError, DigestInvalid):
                    continue
                yield StoredBlob(digest, status.st_size, status.st_mtime)


def ensure_directory(directory: Path) -> None:
    """Create it if need be; raises OSError if that fails or if it cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        return list(entries)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
