"""Removal: row before file, and nothing that is being read."""

from __future__ import annotations

import fcntl

import pytest

from regmirror.maintenance import remover as module
from regmirror.oci.names import Digest
from regmirror.telemetry.events import BlobRemoved
from tests.unit.maintenance.world import World


@pytest.mark.parametrize("batch", [1, 200])
async def test_rows_and_files_go_and_each_has_an_event(
    world: World, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    digests = [await world.add_blob(f"blob {number}".encode()) for number in range(3)]
    removed = await world.toolkit.remover.remove(digests, "evicted")
    assert (sorted(removed.gone), removed.busy, removed.bytes) == ([(d, 6) for d in sorted(digests)], [], 18)
    assert not any(map(world.toolkit.store.exists, digests))
    assert [await world.metadata.find_size(digest) for digest in digests] == [None] * 3
    assert {event.digest for event in world.events if isinstance(event, BlobRemoved)} == {*digests}


async def test_a_blob_that_is_being_read_stays(world: World) -> None:
    """B40."""
    digest = await world.add_blob(b"blob")
    with world.toolkit.store.path(digest).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        removed = await world.toolkit.remover.remove([digest], "evicted")
    assert (removed.gone, removed.busy) == ([], [digest])
    assert await world.metadata.find_size(digest) == 4


async def test_a_row_without_its_file_goes(world: World) -> None:
    digest = await world.add_blob(b"blob")
    world.toolkit.store.path(digest).unlink()
    removed = await world.toolkit.remover.remove([digest], "purged")
    assert removed.gone == [(digest, 4)]


@pytest.mark.parametrize("is_left", [True, False])
async def test_a_removal_that_was_interrupted_is_finished(
    world: World, is_left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B42: the process was killed between row and file."""
    digest = await world.add_blob(b"blob")

    def die(blobs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "_unlink", die)
        with pytest.raises(KeyboardInterrupt):
            await world.toolkit.remover.remove([digest], "evicted")
    assert world.toolkit.store.exists(digest)
    if not is_left:
        world.toolkit.store.path(digest).unlink()
    await world.toolkit.remover.finish_earlier()
    assert not world.toolkit.store.exists(digest)
    assert await world.toolkit.gc_queries.list_pending_removals() == []


async def test_an_unknown_digest_is_neither_removed_nor_busy(world: World) -> None:
    removed = await world.toolkit.remover.remove([Digest.of(b"unknown")], "purged")
    assert (removed.gone, removed.busy) == ([], [])
