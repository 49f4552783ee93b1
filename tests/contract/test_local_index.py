"""Local index: what every implementation promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from regmirror.metadata.local_index import LocalIndex
from regmirror.metadata.store import MetadataStore
from regmirror.metadata.upgrade import database_path, upgrade
from regmirror.oci.names import Digest

BLOB, OTHER = Digest.of(b"blob"), Digest.of(b"other")


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[LocalIndex]:
    upgrade(database_path(tmp_path))
    store = MetadataStore(database_path(tmp_path))
    yield store
    await store.close()


async def test_the_size_of_a_stored_blob_is_found(index: LocalIndex) -> None:
    assert await index.find_size(BLOB) is None
    await index.save_blob(BLOB, 4)
    assert await index.find_size(BLOB) == 4
    assert await index.find_size(OTHER) is None


async def test_a_later_size_replaces_an_earlier_one(index: LocalIndex) -> None:
    await index.save_blob(BLOB, 4)
    await index.save_blob(BLOB, 5)
    assert await index.find_size(BLOB) == 5
    assert await index.stored_bytes() == 5


async def test_a_deleted_blob_is_not_found_and_not_counted(index: LocalIndex) -> None:
    await index.save_blob(BLOB, 4)
    await index.save_blob(OTHER, 5)
    assert await index.stored_bytes() == 9
    await index.delete_blob(BLOB)
    await index.delete_blob(BLOB)
    assert await index.find_size(BLOB) is None
    assert await index.stored_bytes() == 5


async def test_an_empty_store_has_no_bytes(index: LocalIndex) -> None:
    assert await index.stored_bytes() == 0
