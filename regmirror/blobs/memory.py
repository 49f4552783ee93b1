"""Blobs in memory: the smallest store that keeps the contract, for tests."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

from regmirror.blobs.base import PIECE, StoredBlob
from regmirror.oci.names import Digest


class MemoryBlob:
    """Bytes; there is no descriptor."""

    descriptor = None

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    async def wait_until_readable(self, offset: int) -> int:
        return self.size

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        if stop > self.size:
            raise OSError(f"the blob ends at {self.size}")
        for offset in range(start, stop, PIECE):
            yield self._data[offset : min(offset + PIECE, stop)]

    def close(self) -> None:
        """Nothing is held open."""


class MemoryBlobStore:
    """A dictionary from digest to bytes and the time they were stored."""

    def __init__(self) -> None:
        self._blobs: dict[Digest, tuple[bytes, float]] = {}

    async def find(self, digest: Digest) -> MemoryBlob | None:
        found = self._blobs.get(digest)
        return None if found is None else MemoryBlob(found[0])

    async def commit(self, staged: Path, digest: Digest) -> None:
        self._blobs[digest] = (staged.read_bytes(), time.time())
        staged.unlink()

    async def delete(self, digest: Digest) -> int | None:
        found = self._blobs.pop(digest, None)
        return None if found is None else len(found[0])

    async def quarantine(self, digest: Digest) -> None:
        self._blobs.pop(digest, None)

    async def iterate(self) -> AsyncIterator[StoredBlob]:
        for digest, (data, stored_at) in list(self._blobs.items()):
            yield StoredBlob(digest, len(data), stored_at)
