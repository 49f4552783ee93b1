"""The ports of blob storage."""

from __future__ import annotations

from pathlib import Path

from regmirror.blobs.base import BlobStore, InsufficientSpace
from regmirror.blobs.local import LocalBlobStore
from tests.contract.memory_store import MemoryBlobStore


def test_a_lack_of_space_has_a_reason_and_a_message() -> None:
    error = InsufficientSpace("quota", "storage.max_size is reached")
    assert (error.reason, error.message, str(error)) == (
        "quota",
        "storage.max_size is reached",
        "storage.max_size is reached",
    )


def test_every_store_has_each_method_of_the_port(tmp_path: Path) -> None:
    methods = {name for name in vars(BlobStore) if not name.startswith("_")}
    for store in (LocalBlobStore(tmp_path), MemoryBlobStore()):
        assert methods - set(dir(store)) == set()
