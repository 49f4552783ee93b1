"""Reconciliation: files and rows that have diverged."""

from __future__ import annotations

import time

import pytest

from regmirror.maintenance import reconcile as module
from regmirror.maintenance.reconcile import QUARANTINE_MAX_AGE, STAGING_MAX_AGE, reconcile
from regmirror.oci.names import Digest
from tests.unit.maintenance.world import World, config


@pytest.mark.parametrize("page", [1, 1_000])
async def test_a_row_without_its_file_goes_and_a_file_without_its_row_gets_one(
    world: World, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B42, B46."""
    monkeypatch.setattr(module, "PAGE", page)
    lost = [await world.add_blob(f"lost {number}".encode()) for number in range(2)]
    intact = await world.add_blob(b"intact")
    for digest in lost:
        world.toolkit.store.path(digest).unlink()
    new = Digest.of(b"new")
    world.toolkit.store.path(new).write_bytes(b"new")
    summary = await world.toolkit.reconcile()
    assert (summary.checked, summary.rows_dropped, summary.rows_added) == (3, 2, 1)
    assert await world.metadata.find_size(new) == 3
    assert await world.metadata.find_size(intact) == 6
    again = await world.toolkit.reconcile()
    assert (again.checked, again.rows_dropped, again.rows_added) == (2, 0, 0)


async def test_an_unreferenced_file_is_collected_later(world: World) -> None:
    """B42: reconciliation gives it an entry in the GC queue."""
    new = Digest.of(b"new")
    world.toolkit.store.path(new).write_bytes(b"new")
    await world.toolkit.reconcile()
    world.time += 10 * 86_400
    world.time = max(world.time, world.toolkit.store.path(new).stat().st_mtime + 10 * 86_400)
    await world.toolkit.collector(config()).collect(world.report)
    assert world.removed() == {new}


@pytest.mark.parametrize("is_dry", [True, False])
async def test_expired_files_in_staging_and_quarantine_go_unless_it_is_a_dry_run(
    world: World, is_dry: bool
) -> None:
    """B8."""
    staged = world.toolkit.staging.directory / f"sha256-{Digest.of(b'x').encoded}"
    corrupt = world.root / "quarantine" / "old"
    for path in (staged, corrupt):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    now = time.time() + max(STAGING_MAX_AGE, QUARANTINE_MAX_AGE) + 60
    staging = None if is_dry else world.toolkit.staging
    await reconcile(world.toolkit.inventory, world.toolkit.store, staging, now)
    assert (staged.exists(), corrupt.exists()) == (is_dry, is_dry)
