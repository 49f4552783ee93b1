"""Local index: the blobs in this machine's store, with their sizes.

A row here says that the file exists on this machine; that the mirror has the blob at all is a
statement of the catalogue. ``MetadataStore`` implements both with one table, because one machine
has every file that the mirror has.
"""

from __future__ import annotations

from typing import Protocol

from regmirror.oci.names import Digest


class LocalIndex(Protocol):
    """Rows of the files in this machine's store. Errors are SQLAlchemy's."""

    async def find_size(self, digest: Digest) -> int | None:
        """Return the size of a stored blob in bytes, or None if it is not stored here."""

    async def save_blob(self, digest: Digest, size: int) -> None:
        """Record a blob whose file is stored; replaces an earlier size."""

    async def delete_blob(self, digest: Digest) -> None:
        """Delete the row of a blob whose file does not exist; nothing if there is none."""

    async def stored_bytes(self) -> int:
        """Return the bytes that count against ``storage.max_size``: blobs, manifests, reference rows."""
