"""Blobs in memory: the smallest store that keeps the contract."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path

from regmirror.blobs.base import PIECE, BlobEntry
from regmirror.oci.names import Digest


class MemoryBlob:
    """Bytes without a descriptor."""

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

    def close(self) -> None: ...


class MemoryEntry:
    """A blob that can be removed or verified."""

    def __init__(self, store: MemoryBlobStore, digest: Digest, data: bytes) -> None:
        self._store, self._digest, self._data = store, digest, data
        self.size = len(data)
        self._is_locked = False

    def lock(self) -> MemoryEntry | None:
        if self._digest in self._store.locked:
            return None
        self._store.locked.add(self._digest)
        self._is_locked = True
        return self

    def unlink(self) -> None:
        self.quarantine()

    def read(self, start: int, count: int) -> bytes:
        return self._data[start : start + count]

    def quarantine(self) -> bool:
        present = self._store.blobs.get(self._digest)
        if present is None or present[0] is not self._data:
            return False
        del self._store.blobs[self._digest]
        return True

    def close(self) -> None:
        if self._is_locked:
            self._store.locked.discard(self._digest)
            self._is_locked = False


class MemoryBlobStore:
    """A dictionary from digest to bytes and the time they were stored."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, tuple[bytes, float]] = {}
        self.locked: set[Digest] = set()

    def open(self, digest: Digest) -> MemoryBlob | None:
        found = self.blobs.get(digest)
        return None if found is None else MemoryBlob(found[0])

    def read_cached(self, digest: Digest, size: int) -> bytearray | None:
        data, _ = self.blobs.get(digest, (b"", 0.0))
        return bytearray(data) if digest in self.blobs and len(data) == size else None

    def exists(self, digest: Digest) -> bool:
        return digest in self.blobs

    def is_stored_as(self, digest: Digest, descriptor: int) -> bool:
        return False

    async def commit(self, staged: Path, digest: Digest) -> None:
        # A copy, so that each commit is an object of its own.
        self.blobs[digest] = (bytes(bytearray(staged.read_bytes())), time.time())
        staged.unlink()

    def lock_for_removal(self, digest: Digest) -> MemoryEntry | None:
        entry = self.open_for_verification(digest)
        return None if entry is None else entry.lock()

    async def quarantine(self, digest: Digest) -> bool:
        return self.blobs.pop(digest, None) is not None

    def sweep_quarantine(self, older_than: float) -> None: ...

    def open_for_verification(self, digest: Digest) -> MemoryEntry | None:
        found = self.blobs.get(digest)
        return None if found is None else MemoryEntry(self, digest, found[0])

    def scan(self) -> Iterator[BlobEntry]:
        for digest, (data, stored_at) in list(self.blobs.items()):
            yield BlobEntry(digest, len(data), stored_at)

    async def pages(self, count: int) -> AsyncIterator[list[BlobEntry]]:
        entries = self.scan()
        while page := list(islice(entries, count)):
            yield page
