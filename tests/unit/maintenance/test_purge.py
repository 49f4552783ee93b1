"""Purge: what was named goes at once; what else is referenced stays."""

from __future__ import annotations

import fcntl

import pytest

from regmirror.oci.names import Digest
from tests.unit.maintenance.world import APP, OTHER, TAG, World, config


@pytest.mark.parametrize("by_digest", [True, False])
async def test_an_image_goes_and_what_another_image_names_stays(world: World, by_digest: bool) -> None:
    shared, own = await world.add_blob(b"shared"), await world.add_blob(b"own")
    image = await world.add_manifest("{}", shared, own, tag=TAG)
    await world.add_manifest("{ }", shared, repository=OTHER)
    await world.toolkit.purger(config()).purge_image(APP, image if by_digest else TAG, world.report)
    assert world.removed() == {image, own}
    assert world.toolkit.store.exists(shared)


async def test_a_repository_goes_with_its_links(world: World) -> None:
    """Pins and grace time do not matter."""
    layer = await world.add_blob(b"layer")
    image = await world.add_manifest("{}", layer, tag=TAG)
    await world.toolkit.pins.add(f"{APP}:**")
    await world.toolkit.purger(config()).purge_repository(APP, world.report)
    assert world.removed() == {image, layer}
    assert not await world.metadata.is_linked(APP, layer)


async def test_a_digest_goes_from_every_repository(world: World) -> None:
    image = await world.add_manifest("{}", tag=TAG)
    await world.add_manifest("{}", repository=OTHER)
    assert await world.toolkit.purger(config()).purge_digest(image, world.report)
    assert [removal.repository for removal in world.removals] == [APP, OTHER]
    assert await world.metadata.find_manifest(APP, image) is None


async def test_a_blob_that_is_being_read_stays_and_that_is_reported(world: World) -> None:
    layer = await world.add_blob(b"layer")
    purger = world.toolkit.purger(config())
    with world.toolkit.store.path(layer).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not await purger.purge_digest(layer, world.report)
    assert await purger.purge_digest(layer, world.report)
    assert world.removed() == {layer}


async def test_an_unknown_digest_removes_nothing(world: World) -> None:
    assert await world.toolkit.purger(config()).purge_digest(Digest.of(b"unknown"), world.report)
    assert world.removals == []
