"""Collection: unreferenced content goes after its grace time, and each removal is reported."""

from __future__ import annotations

import fcntl

from regmirror.maintenance.gc import GcSummary, ignore
from regmirror.metadata.gc import Removal
from regmirror.oci.names import Digest
from tests.unit.maintenance.world import APP, TAG, World, config

GRACE = {"gc": {"grace": "100s", "keep_untagged": "100s"}}


async def test_a_summary_counts_what_it_reports(world: World) -> None:
    summary, removal = GcSummary(), Removal(Digest.of(b"x"), 7, "purged")
    summary.add(removal, world.report)
    summary.add(removal, ignore)
    assert (summary.removed, summary.bytes, world.removals) == (2, 14, [removal])


async def test_an_untagged_image_goes_with_its_blobs_after_the_grace_time(world: World) -> None:
    """B43."""
    layer = await world.add_blob(b"layer")
    old = await world.add_manifest("{}", layer, tag=TAG)
    new = await world.add_manifest("{ }", tag=TAG)
    collector = world.toolkit.collector(config(**GRACE))
    assert (await collector.collect(world.report)).removed == 0
    world.time += 250
    summary = await collector.collect(world.report)
    # The blob's entry begins when its manifest has gone.
    world.time += 250
    await collector.collect(world.report)
    assert world.removed() == {old, layer}
    assert summary.checked >= summary.removed >= 1
    assert not world.toolkit.store.exists(layer)
    assert await world.metadata.find_manifest(APP, new) is not None


async def test_a_blob_that_is_being_read_is_checked_again_later(world: World) -> None:
    """B42."""
    layer = await world.add_blob(b"layer")
    collector = world.toolkit.collector(config(**GRACE))
    world.time += 250
    with world.toolkit.store.path(layer).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        await collector.collect(world.report)
    assert (world.removed(), world.toolkit.store.exists(layer)) == (set(), True)
    world.time += 10_000
    await collector.collect(world.report)
    assert world.removed() == {layer}
