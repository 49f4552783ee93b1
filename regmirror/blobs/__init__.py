"""Blob storage: the ports (``base``), files on a local disk (``local``), and downloads (``staging``)."""

from __future__ import annotations

from pathlib import Path

from regmirror.blobs.base import BlobStore
from regmirror.blobs.local import LocalBlobStore


def open_store(root: Path) -> BlobStore:
    """Return the store below ``root``; creates no directory."""
    return LocalBlobStore(root)
