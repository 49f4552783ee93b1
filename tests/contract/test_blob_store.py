"""What every place for blobs does. A new backend adds a class of five lines at the end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from regmirror.blobs.base import PIECE, BlobStore
from regmirror.blobs.local import LocalBlobStore
from regmirror.blobs.memory import MemoryBlobStore
from regmirror.oci.names import Digest
from tests.fake_registry import random_bytes

DATA = random_bytes(3 * PIECE + 17)
DIGEST = Digest.of(DATA)


async def read(blob, start=0, stop=None):
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

    async def test_what_was_never_stored_is_not_found(self, store):
        assert await store.find(DIGEST) is None
        assert [blob async for blob in store.iterate()] == []

    @pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
    @pytest.mark.parametrize("data", [DATA, b"x", b""])
    async def test_an_adopted_blob_is_found_with_its_size_and_bytes(self, store, data, algorithm):
        blob = await store.find(await self.commit(store, data, algorithm))
        assert blob.size == len(data)
        assert await read(blob) == data
        blob.close()

    async def test_adoption_takes_the_staged_file_away(self, store):
        staged = self.stage()
        await store.commit(staged, DIGEST)
        assert not staged.exists()

    @pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 5), (PIECE - 1, 2 * PIECE + 1), (10, len(DATA))])
    async def test_any_part_can_be_read(self, store, start, stop):
        blob = await store.find(await self.commit(store))
        assert await read(blob, start, stop) == DATA[start:stop]
        blob.close()

    async def test_reading_beyond_the_end_is_an_error_and_not_an_empty_answer(self, store):
        blob = await store.find(await self.commit(store))
        with pytest.raises(OSError, match="ends at"):
            await read(blob, len(DATA) - 5, len(DATA) + 5)
        blob.close()

    async def test_nothing_of_a_stored_blob_needs_waiting_for(self, store):
        blob = await store.find(await self.commit(store))
        assert await blob.wait_until_readable(0) == len(DATA)
        assert await blob.wait_until_readable(len(DATA)) == len(DATA)
        blob.close()

    async def test_the_same_blob_may_be_adopted_again(self, store):
        await self.commit(store)
        blob = await store.find(await self.commit(store))
        assert await read(blob) == DATA
        blob.close()

    async def test_an_adoption_that_fails_stores_nothing(self, store):
        with pytest.raises(OSError):  # noqa: PT011  # whichever the backend has
            await store.commit(self.staging / "absent", DIGEST)
        assert await store.find(DIGEST) is None

    async def test_a_deleted_blob_is_gone_and_told_its_size_once(self, store):
        digest = await self.commit(store)
        assert await store.delete(digest) == len(DATA)
        assert await store.find(digest) is None
        assert await store.delete(digest) is None

    async def test_an_open_blob_outlives_its_deletion(self, store):
        digest = await self.commit(store)
        blob = await store.find(digest)
        await store.delete(digest)
        assert await read(blob) == DATA
        blob.close()

    async def test_a_blob_in_quarantine_is_never_found_again(self, store):
        digest = await self.commit(store)
        await store.quarantine(digest)
        assert await store.find(digest) is None
        assert [blob async for blob in store.iterate()] == []

    async def test_what_is_not_there_can_be_put_into_quarantine_without_harm(self, store):
        await store.quarantine(DIGEST)
        assert await store.find(DIGEST) is None

    async def test_a_listing_tells_digest_size_and_time_of_each_blob(self, store):
        before = time.time() - 1
        stored = {await self.commit(store, data, name): len(data) for data, name in KINDS}
        found = [blob async for blob in store.iterate()]
        assert {blob.digest: blob.size for blob in found} == stored
        assert all(before <= blob.stored_at <= time.time() + 1 for blob in found)

    async def test_closing_a_blob_twice_closes_nobody_elses(self, store):
        digest = await self.commit(store)
        blob = await store.find(digest)
        blob.close()
        other = await store.find(digest)  # a file would get the descriptor that has become free
        blob.close()
        assert await read(other) == DATA
        other.close()


KINDS = [(DATA, "sha256"), (b"small", "sha512"), (b"", "sha256")]


class TestLocalBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalBlobStore:
        store = LocalBlobStore(tmp_path / "store")
        store.prepare()
        return store

    async def test_the_files_are_those_of_an_oci_image_layout(self, store):
        digest = await self.commit(store)
        assert store.path(digest) == store.root / "blobs" / "sha256" / digest.encoded
        assert store.path(digest).read_bytes() == DATA

    async def test_adoption_is_a_rename(self, store):
        staged = self.stage()
        number = staged.stat().st_ino
        await store.commit(staged, DIGEST)
        assert store.path(DIGEST).stat().st_ino == number

    async def test_a_blob_has_a_descriptor_that_reads_it(self, store):
        blob = await store.find(await self.commit(store))
        assert os.pread(blob.descriptor, 10, 5) == DATA[5:15]
        blob.close()

    async def test_what_is_being_read_is_not_removed(self, store):
        """B40: not even after the reader has closed it, while a copy of its descriptor is in use."""
        digest = await self.commit(store)
        blob = await store.find(digest)
        sending = os.dup(blob.descriptor)
        blob.close()
        assert store.lock_for_removal(digest) is None
        assert await store.delete(digest) is None
        os.close(sending)
        assert await store.delete(digest) == len(DATA)

    async def test_a_removal_spares_what_has_been_stored_anew(self, store):
        """B40, B42: between lock and removal."""
        removable = store.lock_for_removal(await self.commit(store))
        assert removable.size == len(DATA)
        digest = await self.commit(store)
        removable.unlink()
        removable.close()
        removable.close()
        assert await store.delete(digest) == len(DATA)

    async def test_a_removal_that_is_not_carried_out_leaves_all_as_it_was(self, store):
        digest = await self.commit(store)
        first = store.lock_for_removal(digest)
        assert store.lock_for_removal(digest) is None
        blob = await store.find(digest)
        assert await read(blob) == DATA
        blob.close()
        first.close()
        removable = store.lock_for_removal(digest)
        removable.unlink()
        removable.close()
        assert await store.find(digest) is None
        assert store.lock_for_removal(digest) is None

    async def test_files_whose_name_is_no_digest_are_not_listed(self, store):
        digest = await self.commit(store)
        (store.path(digest).parent / "README").write_text("not a blob")
        assert [blob.digest async for blob in store.iterate()] == [digest]

    async def test_quarantine_keeps_every_wrong_file_for_the_operator(self, store):
        for data in (b"first", b"second"):
            await store.commit(self.stage(data), DIGEST)
            await store.quarantine(DIGEST)
        kept = (store.root / "quarantine").iterdir()
        assert sorted(path.read_bytes() for path in kept) == [b"first", b"second"]


class TestMemoryBlobStore(BlobStoreContract):
    @pytest.fixture
    def store(self) -> MemoryBlobStore:
        return MemoryBlobStore()
