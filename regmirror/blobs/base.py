"""The contract of a place for blobs. Every backend passes ``tests/contract``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from regmirror.errors import RegmirrorError
from regmirror.oci.names import Digest

PIECE = 256 * 1024  # bytes a read yields at most


class InsufficientSpace(RegmirrorError):
    """There is no room for a blob: by the ``quota`` that is configured, or on the ``disk``."""

    def __init__(self, reason: Literal["quota", "disk"], message: str) -> None:
        super().__init__(message)
        self.reason: Literal["quota", "disk"] = reason
        self.message = message


class Blob(Protocol):
    """A stored file, a stored object, or a download in flight; ``close`` it after use.

    ``size`` is None only while a download's upstream has not told it.
    ``descriptor`` is a file descriptor fit for ``sendfile`` and ``pread`` of what ``wait_until_readable``
    last told, where there is one; it is asked for anew each time.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def descriptor(self) -> int | None: ...

    async def wait_until_readable(self, offset: int) -> int:
        """Wait until bytes after ``offset`` can be read; how far one can read from the start.

        Returns ``offset`` itself at the end of a blob whose size was not known.
        Raises RegistryError when the rest will never come.
        """
        ...

    def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from ``start`` to ``stop``, which ``wait_until_readable`` has told of, in pieces of at
        most PIECE bytes.

        Raises OSError if the store holds fewer.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What a listing tells: ``stored_at`` in wall-clock seconds."""

    digest: Digest
    size: int
    stored_at: float


class BlobStore(Protocol):
    """A place for verified content; everything in it is what its name says."""

    async def find(self, digest: Digest) -> Blob | None:
        """The blob, opened, or None."""
        ...

    async def commit(self, staged: Path, digest: Digest) -> None:
        """Take over a verified file: all or nothing, durable when it returns."""
        ...

    async def delete(self, digest: Digest) -> int | None:
        """Remove the blob; how many bytes it had, or None if it was not there.

        A store that can tell spares a blob that is being read, and returns None as well.
        """
        ...

    async def quarantine(self, digest: Digest) -> None:
        """Put aside a blob that is not what its name says, so that it is never served again."""
        ...

    def iterate(self) -> AsyncIterator[StoredBlob]:
        """Everything stored, in no particular order."""
        ...
