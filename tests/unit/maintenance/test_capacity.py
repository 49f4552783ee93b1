"""Capacity (B40): what is reserved, what is evicted for it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from regmirror.blobs.base import InsufficientSpace
from regmirror.blobs.staging import Reservation
from regmirror.maintenance.capacity import Capacity, Limits
from regmirror.maintenance.disk import DiskUsage
from regmirror.maintenance.eviction import Deficit
from regmirror.oci.names import Digest
from tests.unit.maintenance.world import APP, OTHER, World, config, flush_nothing

NEW = Digest.of(b"new")
GIB = 2**30


class Disk:
    """A disk with ``bytes_free`` bytes, and what is staged on it."""

    def __init__(self, bytes_free: int = GIB, staged: dict[Digest, Reservation] | None = None) -> None:
        self.bytes_free, self.staged = bytes_free, staged or {}

    def free(self) -> int:
        return self.bytes_free

    def usage(self) -> DiskUsage:
        return DiskUsage(self.bytes_free, self.staged)


def capacity(world: World, max_size: int = 0, min_free: int = 0, disk: Disk | None = None) -> Capacity:
    made = world.toolkit.capacity(config(), flush_nothing)
    made.limits = Limits(max_size, min_free)
    made._disk = disk or Disk()
    return made


async def test_without_limits_nothing_is_measured(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """B40."""
    unlimited = capacity(world)
    monkeypatch.setattr(unlimited, "_disk", None)
    await unlimited.reserve(NEW, GIB)


async def test_space_is_made_by_the_least_recently_pulled(world: World) -> None:
    """B40."""
    old = await world.add_blob(b"o" * 40)
    world.time += 10
    young = await world.add_blob(b"y" * 40)
    await capacity(world, max_size=100).reserve(NEW, 50)
    assert not world.toolkit.store.exists(old)
    assert world.toolkit.store.exists(young)


async def test_a_blob_in_flight_counts_by_its_whole_size_except_for_itself(world: World) -> None:
    """B40: two downloads never reserve the same bytes."""
    for digest, is_rejected in ((NEW, False), (Digest.of(b"other"), True)):
        busy = capacity(world, max_size=100, disk=Disk(staged={digest: Reservation(80, 70)}))
        if is_rejected:
            with pytest.raises(InsufficientSpace) as caught:
                await busy.reserve(NEW, 50)
            assert caught.value.reason == "quota"
        else:
            await busy.reserve(NEW, 50)


@pytest.mark.parametrize(
    ("limits", "free", "size", "reason", "message"),
    [
        ({"max_size": 100}, GIB, 200, "quota", "200 bytes exceed storage.max_size"),
        ({"min_free": 100}, 120, 50, "disk", "storage.min_free would be left"),
    ],
)
async def test_what_cannot_fit_evicts_nothing(
    world: World, limits: dict[str, int], free: int, size: int, reason: str, message: str
) -> None:
    """B40, B44."""
    kept = await world.add_blob(b"kept")
    disk = Disk(free, {NEW: Reservation(size, size)})
    with pytest.raises(InsufficientSpace, match=message) as caught:
        await capacity(world, disk=disk, **limits).reserve(NEW, size)
    assert caught.value.reason == reason
    assert world.toolkit.store.exists(kept)


async def test_a_full_store_of_pinned_images_rejects_a_blob(world: World) -> None:
    """B40: a manifest that another repository pins frees nothing either."""
    layer = await world.add_blob(b"l" * 90)
    image = await world.add_manifest("{}", layer)
    await world.add_manifest("{}", layer, repository=OTHER)
    await world.toolkit.pins.add(f"{APP}@{image}")
    full = capacity(world, max_size=100)
    with pytest.raises(InsufficientSpace, match=r"max_size is reached"):
        await full.reserve(NEW, 50)
    assert world.toolkit.store.exists(layer)
    summary = await capacity(world, max_size=50).enforce()
    assert (summary.bytes, world.toolkit.store.exists(layer)) == (0, True)


async def test_without_the_database_the_file_system_is_still_protected(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B44."""

    async def fail() -> int:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    both = capacity(world, max_size=1, min_free=100, disk=Disk(150))
    monkeypatch.setattr(both, "used", fail)
    await both.reserve(NEW, 50)
    assert (await both.find_excess()).wanted == 0


async def test_interrupted_downloads_go_first(world: World) -> None:
    """B40: and each removal is reported."""
    kept = await world.add_blob(b"kept")
    left = world.toolkit.staging.directory / f"sha256-{NEW.encoded}"
    left.write_bytes(b"part")
    summary = await capacity(world).evict(Deficit(0, 4), world.report)
    assert (summary.removed, summary.bytes) == (1, 4)
    assert [(item.digest, item.why) for item in world.removals] == [(NEW, "left by an interrupted download")]
    assert world.toolkit.store.exists(kept)


async def test_servers_are_informed_of_evicted_manifests(world: World) -> None:
    """They have them in memory. A dry run informs nobody."""
    news: Any = world.toolkit.news
    await world.add_manifest("{}")
    dry = capacity(world)
    dry._is_dry = True
    planned = await dry.evict(Deficit(0, 1), world.report)
    assert (planned.removed, news.has_changed()) == (1, False)
    await world.add_manifest("{ }")
    await capacity(world).evict(Deficit(0, 1_000), world.report)
    assert news.has_changed()
