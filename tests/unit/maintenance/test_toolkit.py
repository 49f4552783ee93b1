"""The parts of maintenance, and those of a dry run."""

from __future__ import annotations

import fcntl

from regmirror.maintenance.capacity import Limits
from regmirror.maintenance.toolkit import dry_run_toolkit, limits_of
from tests.unit.maintenance.world import World, config, flush_nothing


def test_limits_are_bytes() -> None:
    """B40."""
    limits = limits_of(config(storage={"max_size": "1KiB", "min_free": "2MiB"}))
    assert limits == Limits(1024, 2 * 1024 * 1024)


async def test_a_dry_run_reports_what_it_would_remove_and_keeps_the_files(world: World) -> None:
    """B8: its rows are those of a copy of the database."""
    digest = await world.add_blob(b"blob")
    dry = dry_run_toolkit(world.toolkit)
    assert await dry.purger(config()).purge_digest(digest, world.report)
    assert world.removed() == {digest}
    assert world.toolkit.store.exists(digest)
    assert world.events == []
    assert dry.is_dry
    assert dry.capacity(config(), flush_nothing)._is_dry


async def test_a_dry_run_counts_a_blob_that_is_being_read_as_busy(world: World) -> None:
    """B8: as the real run would."""
    digest = await world.add_blob(b"blob")
    with world.toolkit.store.path(digest).open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not await dry_run_toolkit(world.toolkit).purger(config()).purge_digest(digest, world.report)
    assert world.removals == []


async def test_an_interrupted_removal_gets_no_new_row(world: World) -> None:
    """B42: reconciliation finishes it first."""
    digest = await world.add_blob(b"blob")
    await world.toolkit.gc_queries.remove_blobs(
        [digest], "evicted", unless_referenced=False, pulled_until=None
    )
    assert world.toolkit.store.exists(digest)
    assert (await world.toolkit.reconcile()).rows_added == 0
    assert not world.toolkit.store.exists(digest)
