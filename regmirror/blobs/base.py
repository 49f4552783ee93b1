"""The ports of blob storage: a blob, and a store of verified blobs.

Every store passes the suite in ``tests/contract``. Only ``server`` and ``blobs`` name a concrete one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from regmirror.errors import RegmirrorError
from regmirror.oci.names import Digest

PIECE = 256 * 1024  # bytes that one step of ``Blob.read`` yields at most


class InsufficientSpace(RegmirrorError):
    """There is no space for a blob: because of the configured ``quota``, or on the ``disk``."""

    def __init__(self, reason: Literal["quota", "disk"], message: str) -> None:
        super().__init__(message)
        self.reason: Literal["quota", "disk"] = reason
        self.message = message


class Blob(Protocol):
    """A stored blob or a download; ``close`` it after use.

    ``size`` is None only while no response has stated it.
    ``descriptor`` is a file descriptor for ``sendfile`` and ``pread`` of the bytes that
    ``wait_until_readable`` has returned, or None. It can change: read it again before each use.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def descriptor(self) -> int | None: ...

    async def wait_until_readable(self, offset: int) -> int:
        """Wait until bytes after ``offset`` are readable, and return the limit of the readable bytes.

        Returns ``offset`` itself at the end of a blob whose size was not known.
        Raises RegistryError if the bytes will not come.
        """
        ...

    def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``stop``, which must be readable, in pieces of at most PIECE.

        Raises OSError if the blob ends before ``stop``.
        """
        ...

    def close(self) -> None: ...


class StoredBlob(Blob, Protocol):
    """An open stored blob. It stays readable if it is removed meanwhile."""

    @property
    def size(self) -> int: ...


class Removable(Protocol):
    """A stored blob that nobody reads, and that nobody can open until ``close``.

    Its methods wait for the disk: call them in a thread.
    """

    size: int

    def unlink(self) -> None:
        """Remove the blob, unless it has been replaced meanwhile."""
        ...

    def close(self) -> None: ...


class Verifiable(Protocol):
    """A stored blob opened for verification. Its methods wait for the disk: call them in a thread."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, count: int) -> bytes:
        """Return at most ``count`` bytes, without leaving them in the page cache; raises OSError."""
        ...

    def quarantine(self) -> bool:
        """Quarantine exactly this blob; False if it has been removed or replaced meanwhile."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """One entry of a listing; ``stored_at`` in wall-clock seconds."""

    digest: Digest
    size: int
    stored_at: float


class BlobStore(Protocol):
    """A store of verified blobs: each one matches its digest."""

    def open(self, digest: Digest) -> StoredBlob | None:
        """Return the blob, or None if it is not stored.

        Runs on the event loop, on the hot path. Raises OSError if it is stored and cannot be opened.
        """
        ...

    def read_cached(self, digest: Digest, size: int) -> bytearray | None:
        """Return the blob if it has just that size and is in memory; never waits. Raises OSError."""
        ...

    def exists(self, digest: Digest) -> bool:
        """Whether a blob of that name is stored."""
        ...

    def is_stored_as(self, digest: Digest, descriptor: int) -> bool:
        """Whether the open file is the stored blob."""
        ...

    async def commit(self, staged: Path, digest: Digest) -> None:
        """Store a verified file, all or nothing; it is durable on return. Raises OSError."""
        ...

    def lock_for_removal(self, digest: Digest) -> Removable | None:
        """Return the blob, locked; None if it is being read, or not stored. Waits for the disk."""
        ...

    async def quarantine(self, digest: Digest) -> bool:
        """Move the blob out of the store, so that it is never served; False if it was not stored."""
        ...

    def sweep_quarantine(self, older_than: float) -> None:
        """Remove what was quarantined before that time (wall-clock seconds). Waits for the disk."""
        ...

    def open_for_verification(self, digest: Digest) -> Verifiable | None:
        """Return the blob for ``scrub``; None if it is not stored. Does not protect it from removal.

        Raises OSError if it is stored and cannot be opened. Waits for the disk.
        """
        ...

    def scan(self) -> Iterator[BlobEntry]:
        """Yield every stored blob, in no particular order and in constant memory. Waits for the disk."""
        ...

    def pages(self, count: int) -> AsyncIterator[list[BlobEntry]]:
        """Yield lists of ``count`` entries of ``scan``, without blocking the event loop."""
        ...
