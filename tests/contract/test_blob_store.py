"""The contract of every blob store. A new backend adds a class of five lines at the end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from regmirror.blobs.base import PIECE, BlobStore, Removable, StoredBlob
from regmirror.blobs.local import LocalBlobStore
from regmirror.oci.names import Digest
from tests.contract.memory_store import MemoryBlobStore
from tests.fake_registry import random_bytes

DATA = random_bytes(3 * PIECE + 17)
DIGEST = Digest.of(DATA)


def open_blob(store: BlobStore, digest: Digest) -> StoredBlob:
    """The blob, which is stored."""
    blob = store.open(digest)
    assert blob is not None
    return blob


def lock(store: BlobStore, digest: Digest) -> Removable:
    """The blob, locked for removal."""
    removable = store.lock_for_removal(digest)
    assert removable is not None
    return removable


def remove(store: BlobStore, digest: Digest) -> int | None:
    """Remove the blob: its size, or None if it is not stored or in use."""
    removable = store.lock_for_removal(digest)
    if removable is None:
        return None
    removable.unlink()
    removable.close()
    return removable.size


async def read(blob: StoredBlob, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of a blob from start to stop, each piece checked for its length."""
    pieces = [piece async for piece in blob.read(start, blob.size if stop is None else stop)]
    assert all(0 < len(piece) <= PIECE for piece in pieces)
    return b"".join(pieces)


class BlobStoreContract:
    """The suite; ``store`` is an empty one, ready for use."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.staging = tmp_path

    def stage(self, data: bytes = DATA) -> Path:
        """A verified file, as a download leaves it."""
        path = self.staging / "staged"
        path.write_bytes(data)
        return path

    async def commit(self, store: BlobStore, data: bytes = DATA, algorithm: str = "sha256") -> Digest:
        digest = Digest.of(data, algorithm)
        await store.commit(self.stage(data), digest)
        return digest

    async def test_a_blob_that_was_never_stored_is_not_found(self, store: BlobStore) -> None:
        assert store.open(DIGEST) is None
        assert [*store.scan()] == []

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    @pytest.mark.parametrize("data", [DATA, b"x", b""])
    async def test_a_committed_blob_is_found_with_its_size_and_bytes(
        self, store: BlobStore, data: bytes, algorithm: str
    ) -> None:
        blob = open_blob(store, await self.commit(store, data, algorithm))
        assert blob.size == len(data)
        assert await read(blob) == data
        blob.close()

    async def test_a_commit_removes_the_staged_file(self, store: BlobStore) -> None:
        staged = self.stage()
        await store.commit(staged, DIGEST)
        assert not staged.exists()

    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 5), (PIECE - 1, 2 * PIECE + 1), (10, len(DATA))])
    async def test_any_part_can_be_read(self, store: BlobStore, start: int, stop: int) -> None:
        blob = open_blob(store, await self.commit(store))
        assert await read(blob, start, stop) == DATA[start:stop]
        blob.close()

    async def test_reading_beyond_the_end_is_an_error(self, store: BlobStore) -> None:
        blob = open_blob(store, await self.commit(store))
        with pytest.raises(OSError, match="ends at"):
            await read(blob, len(DATA) - 5, len(DATA) + 5)
        blob.close()

    async def test_a_stored_blob_is_readable_at_once(self, store: BlobStore) -> None:
        blob = open_blob(store, await self.commit(store))
        assert await blob.wait_until_readable(0) == len(DATA)
        assert await blob.wait_until_readable(len(DATA)) == len(DATA)
        blob.close()

    async def test_the_same_blob_may_be_committed_again(self, store: BlobStore) -> None:
        await self.commit(store)
        blob = open_blob(store, await self.commit(store))
        assert await read(blob) == DATA
        blob.close()

    async def test_a_commit_that_fails_stores_nothing(self, store: BlobStore) -> None:
        with pytest.raises(OSError):  # noqa: PT011  # whichever the backend has
            await store.commit(self.staging / "absent", DIGEST)
        assert store.open(DIGEST) is None

    async def test_a_removed_blob_is_gone(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        assert remove(store, digest) == len(DATA)
        assert store.open(digest) is None
        assert remove(store, digest) is None

    async def test_an_open_blob_outlives_its_quarantine(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        blob = open_blob(store, digest)
        assert await store.quarantine(digest)
        assert await read(blob) == DATA
        blob.close()

    async def test_a_blob_in_quarantine_is_never_found_again(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        await store.quarantine(digest)
        assert store.open(digest) is None
        assert [*store.scan()] == []

    async def test_quarantine_of_a_blob_that_is_not_stored_does_nothing(self, store: BlobStore) -> None:
        await store.quarantine(DIGEST)
        assert store.open(DIGEST) is None

    async def test_a_listing_has_digest_size_and_time_of_each_blob(self, store: BlobStore) -> None:
        before = time.time() - 1
        stored = {await self.commit(store, data, name): len(data) for data, name in KINDS}
        found = [*store.scan()]
        assert {blob.digest: blob.size for blob in found} == stored
        assert all(before <= blob.stored_at <= time.time() + 1 for blob in found)

    async def test_closing_a_blob_twice_closes_no_other_blob(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        blob = open_blob(store, digest)
        blob.close()
        other = open_blob(store, digest)  # a file would get the descriptor that has become free
        blob.close()
        assert await read(other) == DATA
        other.close()

    async def test_pages_list_the_same_blobs_in_parts(self, store: BlobStore) -> None:
        stored = {await self.commit(store, data, name) for data, name in KINDS}
        pages = [page async for page in store.pages(2)]
        assert [len(page) for page in pages] == [2, 1]
        assert {blob.digest for page in pages for blob in page} == stored

    async def test_a_blob_is_read_from_memory_only_with_its_size(self, store: BlobStore) -> None:
        digest = await self.commit(store, b"small")
        assert store.read_cached(digest, 5) == bytearray(b"small")
        assert store.read_cached(digest, 4) is None
        assert store.read_cached(DIGEST, 5) is None

    async def test_a_locked_blob_is_locked_once(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        locked = store.lock_for_removal(digest)
        assert locked is not None
        assert store.lock_for_removal(digest) is None
        locked.close()
        assert store.exists(digest)
        assert remove(store, digest) == len(DATA)
        assert not store.exists(digest)

    async def test_a_blob_is_verified_by_its_stored_bytes(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        opened = store.open_for_verification(digest)
        assert opened is not None
        assert opened.size == len(DATA)
        assert opened.read(0, 10) + opened.read(10, len(DATA)) == DATA
        assert opened.quarantine()
        assert not opened.quarantine()
        opened.close()
        opened.close()
        assert store.open_for_verification(digest) is None

    async def test_a_blob_that_was_stored_again_is_not_quarantined(self, store: BlobStore) -> None:
        digest = await self.commit(store)
        opened = store.open_for_verification(digest)
        assert opened is not None
        await self.commit(store)
        assert not opened.quarantine()
        opened.close()
        assert store.exists(digest)


KINDS = [(DATA, "sha256"), (b"small", "sha512"), (b"", "sha256")]


class TestLocalBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalBlobStore:
        store = LocalBlobStore(tmp_path / "store")
        store.prepare()
        return store

    async def test_the_files_are_those_of_an_oci_image_layout(self, store: LocalBlobStore) -> None:
        digest = await self.commit(store)
        assert store.path(digest) == store.root / "blobs" / "sha256" / digest.encoded
        assert store.path(digest).read_bytes() == DATA

    async def test_a_commit_is_a_rename(self, store: LocalBlobStore) -> None:
        staged = self.stage()
        number = staged.stat().st_ino
        await store.commit(staged, DIGEST)
        assert store.path(DIGEST).stat().st_ino == number

    async def test_a_blob_has_a_descriptor_that_reads_it(self, store: LocalBlobStore) -> None:
        blob = open_blob(store, await self.commit(store))
        assert blob.descriptor is not None
        assert os.pread(blob.descriptor, 10, 5) == DATA[5:15]
        blob.close()

    async def test_a_blob_that_is_being_read_is_not_removed(self, store: LocalBlobStore) -> None:
        """B40: not even after the reader has closed it, while a copy of its descriptor is in use."""
        digest = await self.commit(store)
        blob = open_blob(store, digest)
        assert blob.descriptor is not None
        sending = os.dup(blob.descriptor)
        blob.close()
        assert store.lock_for_removal(digest) is None
        assert remove(store, digest) is None
        os.close(sending)
        assert remove(store, digest) == len(DATA)

    async def test_a_removal_spares_a_blob_that_was_stored_again(self, store: LocalBlobStore) -> None:
        """B40, B42: between lock and removal."""
        removable = lock(store, await self.commit(store))
        assert removable.size == len(DATA)
        digest = await self.commit(store)
        removable.unlink()
        removable.close()
        removable.close()
        assert remove(store, digest) == len(DATA)

    async def test_a_lock_that_is_closed_changes_nothing(self, store: LocalBlobStore) -> None:
        digest = await self.commit(store)
        first = lock(store, digest)
        assert store.lock_for_removal(digest) is None
        blob = open_blob(store, digest)
        assert await read(blob) == DATA
        blob.close()
        first.close()
        removable = lock(store, digest)
        removable.unlink()
        removable.close()
        assert store.open(digest) is None
        assert store.lock_for_removal(digest) is None

    async def test_the_stored_file_is_recognised_by_its_descriptor(self, store: LocalBlobStore) -> None:
        digest = await self.commit(store)
        blob = open_blob(store, digest)
        assert blob.descriptor is not None
        assert store.is_stored_as(digest, blob.descriptor)
        await self.commit(store)
        assert not store.is_stored_as(digest, blob.descriptor)
        await store.quarantine(digest)
        assert not store.is_stored_as(digest, blob.descriptor)
        blob.close()

    async def test_files_whose_name_is_no_digest_are_not_listed(self, store: LocalBlobStore) -> None:
        digest = await self.commit(store)
        (store.path(digest).parent / "README").write_text("not a blob")
        assert [blob.digest for blob in store.scan()] == [digest]

    async def test_quarantine_keeps_every_wrong_file_for_the_operator(self, store: LocalBlobStore) -> None:
        for data in (b"first", b"second"):
            await store.commit(self.stage(data), DIGEST)
            await store.quarantine(DIGEST)
        kept = (store.root / "quarantine").iterdir()
        assert sorted(path.read_bytes() for path in kept) == [b"first", b"second"]


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryBlobStore:
        return MemoryBlobStore()
